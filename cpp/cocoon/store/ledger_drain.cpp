// The drain into a ledger file, which is the group commit: steps 2 and 3 of docs/ledger.md, "Commit protocol", and the
// recovery that makes a crash at any point of them harmless.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <iterator>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/metering/ledger_parts.h"
#include "cocoon/metering/log.h"
#include "cocoon/store/ledger_tail.h"
#include "cocoon/store/outbox.h"
#include "cocoon/store/outlet.h"

namespace cocoon::store {
namespace {

class LedgerDrain final : public Outlet {
 public:
  LedgerDrain(Database& database, const std::filesystem::path& ledger, DrainOptions options)
      : database_(database),
        note_(::open(database.ledger_note().c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)),
        file_(ledger),
        prune_every_(std::max<std::size_t>(options.prune_every, 1)),
        rotate_bytes_(options.rotate_bytes) {}

  void committed(std::vector<OutboxRow> rows) override;
  void deliver(std::uint64_t through) override;
  void flush() override;
  std::uint64_t pending() override;
  std::filesystem::path rotate() override;

 private:
  // Whether what committed before this drain is on the disk.
  enum class Durable : std::uint8_t { kNo, kFailed, kYes };

  // What a drain leaves for those of other processes, in <root>/db/ledger.note. Never synced: it is believed only by
  // processes that recovered since the machine started, and only about the very file and size it speaks of.
  struct Note {
    metering::LedgerFile::State file;
    std::uint64_t covered = 0;
  };

  void drain_locked(Connection& connection, std::uint64_t through, Durable& durable);
  std::vector<OutboxRow> next_rows_locked(Connection& connection);
  void locate_locked(Connection& connection);
  bool follow_locked(Connection& connection);
  [[nodiscard]] bool noted_locked(std::uint64_t through) const;
  void leave_note_locked();
  void recover_locked(Connection& connection);
  std::uint64_t last_seq_locked(const Given& given);
  bool prune_due_locked(Connection& connection);
  void prune_locked();
  std::filesystem::path rotate_locked(Connection& connection);
  void pack_parts();
  void warn_once(const char* what);

  Database& database_;

  // Under the ledger's lock and the drain's lease.
  system::Fd note_;
  metering::LedgerFile file_;
  std::size_t prune_every_;
  std::uint64_t rotate_bytes_;
  bool known_ = false;         // covered_ is true of the file as we left it
  bool distrust_ = false;      // a sync of the ledger failed
  std::uint64_t covered_ = 0;  // the ledger holds every row up to here
  std::uint64_t pruned_ = 0;   // as last seen; other processes prune too
  bool alone_ = false;         // nobody else has drained since we last did
  std::string lines_;

  class Turn;
  std::mutex turn_mutex_;
  std::condition_variable turn_over_;
  bool draining_ = false;
  std::uint64_t served_ = 0;  // up to here a drain of this process found or made it durable

  std::mutex fresh_mutex_;
  std::vector<OutboxRow> fresh_;  // consecutive, committed by this process, as far as they fit

  std::atomic<bool> warned_{false};
};

void LedgerDrain::committed(std::vector<OutboxRow> rows) {
  constexpr std::size_t kMostFresh = 1024;  // while the ledger fails they pile up, and are read back when it works
  const std::lock_guard lock(fresh_mutex_);
  if (fresh_.size() + rows.size() > kMostFresh || (!fresh_.empty() && fresh_.back().seq + 1 != rows.front().seq))
    fresh_.clear();
  fresh_.insert(fresh_.end(), std::make_move_iterator(rows.begin()), std::make_move_iterator(rows.end()));
}

// The rows after covered_. Where other processes drain too, those of all: then one sync serves them all.
std::vector<OutboxRow> LedgerDrain::next_rows_locked(Connection& connection) {
  {
    const std::lock_guard lock(fresh_mutex_);
    const auto next = std::find_if(fresh_.begin(), fresh_.end(), [&](const auto& row) { return row.seq > covered_; });
    fresh_.erase(fresh_.begin(), next);
    if (alone_ && !fresh_.empty() && fresh_.front().seq == covered_ + 1) return std::exchange(fresh_, {});
  }
  return rows_after(connection, covered_);
}

// One drain at a time within the process too: whoever comes meanwhile is most often served by it, and then never
// touches the ledger's lock.
class LedgerDrain::Turn {
 public:
  Turn(LedgerDrain& drain, std::uint64_t through) : drain_(drain) {
    std::unique_lock lock(drain_.turn_mutex_);
    drain_.turn_over_.wait(lock, [&] { return !drain_.draining_ || served(through); });
    mine_ = !served(through);
    if (mine_) drain_.draining_ = true;
  }
  ~Turn() {
    if (!mine_) return;
    {
      const std::lock_guard lock(drain_.turn_mutex_);
      drain_.draining_ = false;
      drain_.served_ = std::max(drain_.served_, covered_);
    }
    drain_.turn_over_.notify_all();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // False: another thread's drain has covered it.
  [[nodiscard]] bool mine() const { return mine_; }
  void covered(std::uint64_t seq) { covered_ = seq; }

 private:
  [[nodiscard]] bool served(std::uint64_t through) const { return through != 0 && drain_.served_ >= through; }

  LedgerDrain& drain_;
  bool mine_ = false;
  std::uint64_t covered_ = 0;
};

void LedgerDrain::deliver(std::uint64_t through) {
  Turn turn(*this, through);
  if (!turn.mine()) return;
  auto durable = Durable::kNo;
  bool rotated = false;
  try {
    LockFile::Held lock(database_.ledger_lock(), LockFile::Held::Unchecked{});
    const auto lease = database_.drainer();
    if (through != 0 && noted_locked(through)) return;  // the usual case where many processes wait for one sync
    lock.ensure_named();
    drain_locked(*lease, through, durable);
    turn.covered(covered_);
    if (rotate_bytes_ != 0 && file_.state().size >= rotate_bytes_) rotated = !rotate_locked(*lease).empty();
    warned_ = false;
  } catch (const std::exception& error) {
    if (durable == Durable::kFailed) throw;
    warn_once(error.what());
  }
  // The transition is committed: that its entry has to wait is no reason to fail, only to be durable without it.
  if (durable == Durable::kNo) database_.sync_wal();
  if (rotated) pack_parts();
}

void LedgerDrain::drain_locked(Connection& connection, std::uint64_t through, Durable& durable) {
  locate_locked(connection);
  if (through != 0 && covered_ >= through) {
    durable = Durable::kYes;  // somebody's drain read our rows, so its sync came after our commit
    return;
  }
  do {
    // 1. Read the rows. Die here, or after 2: the next drain reads them again.
    const auto rows = next_rows_locked(connection);
    if (rows.empty() && through == 0) return;
    // 2. Sync the WAL: no line may be in the ledger whose transition a power cut could take back.
    durable = Durable::kFailed;
    database_.sync_wal();
    durable = Durable::kYes;
    if (rows.empty()) return;
    // 3. Append, with one write. Die in it: a torn line, which the next opener cuts off and appends again.
    lines_.clear();
    for (const auto& row : rows) (lines_ += row.line) += '\n';
    file_.append(lines_, rows.back().seq);
    covered_ = rows.back().seq;
    if (!alone_) leave_note_locked();
    // 4. Prune. Die before it: recovery finds rows that the ledger holds, and leaves them to the next prune.
    if (prune_due_locked(connection)) prune_locked();
  } while (through == 0 || covered_ < through);
}

// Finds out how far the ledger is.
void LedgerDrain::locate_locked(Connection& connection) {
  const bool changed = file_.refresh();
  const bool was_known = std::exchange(known_, false);
  alone_ = !changed;
  if (changed || !was_known) {
    const bool followed = was_known && file_.grew() && follow_locked(connection);
    if (!followed) recover_locked(connection);
  }
  known_ = true;
}

// Another process appended to the file as we left it. False: not as a drain does, it has to be looked at closely.
bool LedgerDrain::follow_locked(Connection& connection) {
  Note note;
  const bool read = ::pread(note_.get(), &note, sizeof note, 0) == static_cast<ssize_t>(sizeof note);
  if (read && note.file == file_.state() && note.covered >= covered_) {
    covered_ = note.covered;
    return true;
  }
  const Given given{.pruned = pruned_, .last = last_given(connection)};
  const auto last = last_seq_locked(given);
  if (last < covered_ || last > given.last) return false;
  covered_ = last;
  return true;
}

// Another process's drain has covered it, and so its sync came after that commit.
bool LedgerDrain::noted_locked(std::uint64_t through) const {
  Note note;
  return known_ && ::pread(note_.get(), &note, sizeof note, 0) == static_cast<ssize_t>(sizeof note) &&
         note.covered >= through && note.file.device == file_.state().device && note.file.inode == file_.state().inode;
}

// Without it the next drain of another process reads the ledger's tail and asks the database.
void LedgerDrain::leave_note_locked() {
  const Note note{.file = file_.state(), .covered = covered_};
  if (::pwrite(note_.get(), &note, sizeof note, 0) != static_cast<ssize_t>(sizeof note)) note_.reset();
}

std::uint64_t LedgerDrain::last_seq_locked(const Given& given) {
  return file_.last_seq([&](std::string_view torn) {
    if (is_somebody_elses(torn, given)) return true;
    metering::logger()->info("ledger {}: {} bytes of an unfinished last line are cut off", file_.path().string(),
                             torn.size());
    return false;
  });
}

void LedgerDrain::recover_locked(Connection& connection) {
  Given given{.pruned = pruned_through(connection), .last = last_given(connection)};
  // What rotated parts hold is in the ledger too. A part of another node's says nothing of ours.
  const auto rotated = metering::rotated_through(file_.path());
  if (rotated <= given.last) given.pruned = std::max(given.pruned, rotated);
  const auto last = std::max(last_seq_locked(given), rotated);
  auto tail = read_tail(file_, connection, given, distrust_);
  const auto& path = file_.path().string();
  if (last > given.last) {
    metering::logger()->warn(
        "ledger {}: its last seq is {}, but this node gave only {}: another node's file, or an older "
        "database; it is left as it is, new entries follow it",
        path, last, given.last);
    tail.cut_at.reset();
  } else if (last < given.pruned) {
    metering::logger()->warn(
        "ledger {}: its last seq is {}, but entries up to {} were in it: lines were taken away; new "
        "entries follow from {}",
        path, last, given.pruned, given.pruned + 1);
  }
  if (tail.cut_at) {
    metering::logger()->info("ledger {}: from offset {} on it is written again from the outbox", path, *tail.cut_at);
    // Die after the cut: the rows are in the outbox still.
    file_.cut(*tail.cut_at);
    file_.append(tail.kept, 0);
  }
  distrust_ = false;
  pruned_ = given.pruned;
  covered_ = tail.covered;
  leave_note_locked();  // what a note says from before, of another database perhaps, is nothing to believe
}

bool LedgerDrain::prune_due_locked(Connection& connection) {
  const auto due = [&] { return covered_ > pruned_ && covered_ - pruned_ >= prune_every_; };
  if (!due()) return false;
  pruned_ = pruned_through(connection);
  return due();
}

// Rows may leave the outbox only when a power cut cannot take their lines any more.
void LedgerDrain::prune_locked() {
  if (covered_ <= pruned_) return;
  distrust_ = true;  // a failed sync may have dropped pages that still read well
  file_.sync();
  distrust_ = false;
  // Die here: as before the prune.
  {
    const Database::WriteLease write(database_);
    prune_rows(*write, covered_);
  }
  pruned_ = covered_;
}

// The ledger gets the name of a part, and a new one begins. Everything that the rename relies on is on the disk before
// it: a power cut may take the rename back, but never leaves rows in the outbox whose lines went with the part.
// Returns the part, "" where there is nothing to rotate.
std::filesystem::path LedgerDrain::rotate_locked(Connection& connection) {
  // 1. All that is committed is in the file. Die here, or before 3: the ledger is as it was, only longer.
  auto durable = Durable::kNo;
  drain_locked(connection, 0, durable);
  const auto first = file_.first_seq();
  if (first == 0) return {};
  const auto last = last_seq_locked({.pruned = pruned_, .last = last_given(connection)});
  // 2. The file is on the disk, and its rows have left the outbox.
  distrust_ = true;
  file_.sync();
  distrust_ = false;
  pruned_ = pruned_through(connection);
  prune_locked();
  database_.sync_wal();
  // 3. The rename. Die after it: there is no ledger, and whoever opens the node next, or drains, begins a new one
  //    behind the part.
  known_ = false;
  const auto part = metering::rename_to_part(file_.path(), first, last);
  // 4. The new file. Other processes find another inode under the name than the one they have open, and look at it as
  //    one that opens the node does.
  locate_locked(connection);
  return part;
}

void LedgerDrain::pack_parts() {
  try {
    metering::pack_parts(file_.path());
  } catch (const LedgerError& error) {
    metering::logger()->warn("{}; the part stays as it is", error.what());
  }
}

std::filesystem::path LedgerDrain::rotate() {
  std::filesystem::path part;
  {
    const LockFile::Held lock(database_.ledger_lock());
    const auto lease = database_.drainer();
    part = rotate_locked(*lease);
  }
  pack_parts();  // those too whose packing was interrupted
  const std::filesystem::path packed = part.string() + ".zst";
  std::error_code ignored;
  return !part.empty() && std::filesystem::exists(packed, ignored) ? packed : part;
}

void LedgerDrain::flush() {
  const LockFile::Held lock(database_.ledger_lock());
  const auto lease = database_.drainer();
  auto durable = Durable::kNo;
  drain_locked(*lease, 0, durable);
  pruned_ = pruned_through(*lease);
  prune_locked();
  warned_ = false;
}

std::uint64_t LedgerDrain::pending() {
  const LockFile::Held lock(database_.ledger_lock());
  const auto lease = database_.drainer();
  try {
    locate_locked(*lease);
  } catch (const LedgerError& error) {
    warn_once(error.what());  // what we knew last counts
  }
  return count_after(*lease, covered_);
}

void LedgerDrain::warn_once(const char* what) {
  if (warned_.exchange(true)) return;
  metering::logger()->warn("{}; entries wait in the node's database and are written when the ledger works again", what);
}

}  // namespace

std::unique_ptr<Outlet> make_ledger_drain(Database& database, const std::filesystem::path& ledger,
                                          DrainOptions options) {
  return std::make_unique<LedgerDrain>(database, ledger, options);
}

}  // namespace cocoon::store
