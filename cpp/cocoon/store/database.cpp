#include "cocoon/store/database.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "cocoon/error.h"
#include "cocoon/store/schema.h"
#include "cocoon/system/file.h"

namespace cocoon::store {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostReaders = 4;

// Of SQLite's file format.
constexpr std::uint64_t kWalHeader = 32;
constexpr std::uint64_t kWalFrame = 24 + 4096;

constexpr std::uint64_t kCheckpointFrames = 1000;
constexpr std::uint64_t kFewestFrames = 16;  // to be ahead by
constexpr std::uint64_t kFramesOfOne = 8;    // a usual transition has 3 or 4

[[noreturn]] void fail(const std::string& tried, const fs::path& path, int code) {
  throw StoreError(system_message(tried + " " + path.string(), code), path.string(), code);
}

fs::path prepare_folder(const fs::path& root) {
  struct stat status{};
  if (::stat(root.c_str(), &status) == 0 && !S_ISDIR(status.st_mode)) fail("open node", root, ENOTDIR);
  auto folder = root / "db";
  system::make_private_dirs(folder);
  return folder;
}

// SQLite would make it readable to everybody. No descriptor of ours ever opens it: closing one would drop the locks
// that SQLite holds on it in this process.
void make_database_file(const fs::path& path) {
  if (::mknod(path.c_str(), S_IFREG | 0600, 0) != 0 && errno != EEXIST) fail("make database", path, errno);
}

}  // namespace

Database::Database(const fs::path& root)
    : path_(prepare_folder(root) / "meta.db"),
      store_lock_(path_.parent_path() / "store.lock"),
      ledger_lock_(path_.parent_path() / "ledger.lock") {
  const LockFile::Held lock(store_lock_);
  make_database_file(path_);
  write_ = std::make_unique<Connection>(path_, Connection::Mode::kWrite);
  // Die inside: an empty database, or one of the older version; the next opener does it again.
  const bool changed = prepare_schema(*write_);
  // The first query opens the WAL, and keeps SQLite from deleting it while the connection lives.
  static_cast<void>(meta_value(*write_, kNodeId));
  const auto wal_path = path_.string() + "-wal";
  wal_.reset(::open(wal_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!wal_) fail("open database journal", wal_path, errno);
  if (changed) sync_wal();
  system::sync_dir(path_.parent_path());  // the WAL's name: SQLite syncs what is in it only
  drain_ = std::make_unique<Connection>(path_, Connection::Mode::kRead);
}

Database::~Database() = default;

void Database::sync_wal() const {
  if (::fdatasync(wal_.get()) != 0) fail("sync database journal", path_.string() + "-wal", errno);
}

// Called by the writer after its commits, with the store's lock held.
//
// A sync of a file that grew has to write the file system's journal too, and costs half as much again. So the WAL is
// made longer ahead of its frames, in ever larger steps. Behind its last frame a WAL may hold anything: what has not
// the header's salt and a matching checksum is no frame.
//
// Its size is looked up only when what we know of it is used up: since Linux 6.13 a file whose times were asked for
// gets exact ones at its next write, which is a change of its inode, and that too a sync would have to write.
void Database::tend_wal(Connection& writer) noexcept {
  const auto frames = writer.wal_frames();
  if (frames == 0) return;
  if (frames >= kCheckpointFrames) {
    // The next writer begins at the front again, in place. If somebody was reading, then a later one does.
    writer.checkpoint();
    return;
  }
  const auto end_of = [](std::uint64_t frame) { return kWalHeader + std::min(frame, kCheckpointFrames) * kWalFrame; };
  if (wal_size_ >= end_of(frames + kFramesOfOne)) return;
  struct stat status{};
  if (::fstat(wal_.get(), &status) != 0) return;
  wal_size_ = static_cast<std::uint64_t>(status.st_size);
  const auto wanted = end_of(frames + std::max(frames, kFewestFrames));
  static constexpr std::array<char, std::size_t{64} << 10> kZeros{};
  while (wal_size_ < wanted) {
    const auto written =
        ::pwrite(wal_.get(), kZeros.data(), std::min(kZeros.size(), wanted - wal_size_), static_cast<off_t>(wal_size_));
    if (written <= 0) return;  // then it grows frame by frame, as SQLite makes it
    wal_size_ += static_cast<std::uint64_t>(written);
  }
}

std::unique_ptr<Connection> Database::take_reader() {
  std::unique_lock lock(pool_mutex_);
  reader_returned_.wait(lock, [&] { return !idle_readers_.empty() || readers_ < kMostReaders; });
  if (!idle_readers_.empty()) {
    auto reader = std::move(idle_readers_.back());
    idle_readers_.pop_back();
    return reader;
  }
  idle_readers_.reserve(kMostReaders);  // so that giving it back cannot fail
  auto reader = std::make_unique<Connection>(path_, Connection::Mode::kRead);
  ++readers_;
  return reader;
}

void Database::give_reader(std::unique_ptr<Connection> connection) noexcept {
  {
    const std::lock_guard lock(pool_mutex_);
    idle_readers_.push_back(std::move(connection));
  }
  reader_returned_.notify_one();
}

std::uint64_t Database::change_counter() {
  const std::lock_guard lock(watch_mutex_);
  if (!watch_) watch_ = std::make_unique<Connection>(path_, Connection::Mode::kRead);
  Query query(*watch_, "PRAGMA data_version");
  return query.next() ? query.seq(0) : 0;
}

bool Database::abandon() {
  // Each lock is free, or was held by a thread that does not exist in this process.
  for (auto* mutex : {&write_mutex_, &drain_mutex_, &watch_mutex_, &pool_mutex_}) {
    if (!mutex->try_lock()) return false;
    mutex->unlock();
  }
  if (idle_readers_.size() != readers_) return false;
  bool all = write_->abandon() && drain_->abandon() && (!watch_ || watch_->abandon());
  for (const auto& reader : idle_readers_) all = reader->abandon() && all;
  return all;
}

}  // namespace cocoon::store
