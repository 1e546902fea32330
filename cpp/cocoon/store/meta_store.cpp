#include "cocoon/store/meta_store.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/log.h"
#include "cocoon/store/database.h"
#include "cocoon/store/metered_labels.h"
#include "cocoon/store/outbox.h"
#include "cocoon/store/outlet.h"
#include "cocoon/store/schema.h"
#include "cocoon/store/write_transaction.h"

namespace cocoon::store {

class MetaStore::Impl {
 public:
  explicit Impl(Options options);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // A call under way; close() waits for all of them. Calls of one thread nest: a recorder may use the store.
  class Call {
   public:
    explicit Call(Impl& impl);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    bool in_body = false;  // inside the body of transact()

   private:
    friend class Impl;
    Impl& impl_;
    Call* outer_;
  };

  void transact(const std::function<void(Transaction&)>& body, Durable durable);
  void close();
  [[nodiscard]] bool is_inherited() const { return process_generation() != owner_; }
  [[nodiscard]] Database& database() { return *database_; }
  [[nodiscard]] Outlet& outlet() { return *outlet_; }

  std::shared_ptr<metering::Recorder> recorder;
  std::vector<std::string> labels;
  std::string node_id;
  std::string ledger_id;

 private:
  static thread_local Call* innermost;

  [[nodiscard]] const Call* own_call() const;
  void check_owner() const;
  [[noreturn]] void refuse(const char* why) const;
  void read_meta(const std::vector<std::string>& wanted_labels);

  std::filesystem::path root_;
  std::uint64_t owner_;
  const system::Clock* clock_;
  bool keep_entries_ = true;
  std::unique_ptr<Database> database_;
  std::unique_ptr<Outlet> outlet_;

  std::mutex mutex_;
  std::condition_variable idle_;
  int calls_ = 0;
  enum class State : std::uint8_t { kOpen, kClosing, kClosed } state_ = State::kOpen;
};

thread_local MetaStore::Impl::Call* MetaStore::Impl::innermost = nullptr;

namespace {

// The databases that are open in this process, so that a forked child can let go of those it inherited: SQLite would
// take the locks its parent holds on them for its own. Never destroyed, for threads that outlive main().
struct OpenDatabases {
  struct Item {
    std::uint64_t owner;
    Database* database;
  };
  std::mutex mutex;
  std::vector<Item> items;
};

OpenDatabases& open_databases() {
  static auto* all = new OpenDatabases;
  return *all;
}

void add_open(Database* database) {
  auto& all = open_databases();
  const std::lock_guard lock(all.mutex);
  all.items.push_back({process_generation(), database});
}

void remove_open(Database* database) {
  auto& all = open_databases();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.items, [&](const auto& item) { return item.database == database; });
}

void abandon_inherited(const std::filesystem::path& root) {
  auto& all = open_databases();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.items, [&](const auto& item) {
    if (item.owner == process_generation() || item.database->abandon()) return item.owner != process_generation();
    std::error_code unknown;
    if (std::filesystem::equivalent(item.database->path(), root / "db" / "meta.db", unknown))
      throw StoreError(fmt::format("open node {}: this process was forked while another thread used the node; make "
                                   "such a process with exec or spawn",
                                   root.string()),
                       root.string());
    return false;
  });
}

}  // namespace

MetaStore::Impl::Call::Call(Impl& impl) : impl_(impl), outer_(innermost) {
  impl.check_owner();
  const std::lock_guard lock(impl.mutex_);
  if (impl.state_ == State::kClosed || (impl.state_ == State::kClosing && impl.own_call() == nullptr))
    impl.refuse("closed");
  ++impl.calls_;
  innermost = this;
}

MetaStore::Impl::Call::~Call() {
  innermost = outer_;
  if (impl_.is_inherited()) return;  // the body of a transaction forked, and this is the child
  const std::lock_guard lock(impl_.mutex_);
  if (--impl_.calls_ == 0) impl_.idle_.notify_all();
}

const MetaStore::Impl::Call* MetaStore::Impl::own_call() const {
  const Call* call = innermost;
  while (call != nullptr && &call->impl_ != this) call = call->outer_;
  return call;
}

void MetaStore::Impl::refuse(const char* why) const {
  throw StoreError(fmt::format("node {}: {}", root_.string(), why), root_.string());
}

void MetaStore::Impl::check_owner() const {
  if (is_inherited())
    refuse("it was opened by the process that this one was forked from; a forked process has to open one of its own");
}

MetaStore::Impl::Impl(Options options)
    : recorder(std::move(options.recorder)),
      root_(std::filesystem::absolute(options.root)),
      owner_(process_generation()),
      clock_(options.clock == nullptr ? &system::system_clock() : options.clock) {
  const auto wanted = checked_labels(std::move(options.metered_labels));
  if (!recorder) recorder = std::make_shared<metering::NopRecorder>();
  keep_entries_ = dynamic_cast<metering::NopRecorder*>(recorder.get()) == nullptr;

  abandon_inherited(root_);
  database_ = std::make_unique<Database>(root_);
  read_meta(wanted);
  if (!keep_entries_)
    outlet_ = make_no_delivery(*database_);
  else if (const auto* file = recorder->file())
    outlet_ = make_ledger_drain(*database_, file->path(),
                                {.prune_every = options.prune_every, .rotate_bytes = options.rotate_bytes});
  else
    outlet_ = make_call_delivery(*database_, *recorder);
  add_open(database_.get());
  try {
    outlet_->deliver(0);  // what a crashed process left, before anything of ours
  } catch (...) {
    remove_open(database_.get());
    throw;
  }
}

MetaStore::Impl::~Impl() {
  try {
    close();
  } catch (const std::exception& error) {
    metering::logger()->warn("close node {}: {}", root_.string(), error.what());
  }
}

void MetaStore::Impl::read_meta(const std::vector<std::string>& wanted_labels) {
  const Database::WriteLease write(*database_);
  node_id = meta_value(*write, kNodeId);
  ledger_id = meta_value(*write, kLedgerId);
  labels = split_labels(meta_value(*write, kMeteredLabels));
  if (wanted_labels.empty() || wanted_labels == labels) return;
  set_meta_value(*write, kMeteredLabels, join_labels(wanted_labels));
  database_->sync_wal();
  labels = wanted_labels;
}

void MetaStore::Impl::transact(const std::function<void(Transaction&)>& body, Durable durable) {
  Call call(*this);
  for (const Call* outer = call.outer_; outer != nullptr; outer = outer->outer_) {
    if (outer->in_body && outer->impl_.root_ == root_)
      throw Error(fmt::format("transact on node {} from inside the body of another transaction of it", root_.string()));
  }
  WriteTransaction::Result done;
  {
    const Database::WriteLease write(*database_);
    WriteTransaction transaction(*write, *clock_, keep_entries_);
    call.in_body = true;
    const auto after_body = [&] {
      call.in_body = false;
      if (!is_inherited()) return;
      transaction.disown();
      check_owner();
    };
    try {
      body(transaction);
    } catch (...) {
      after_body();
      throw;
    }
    after_body();
    // Die before it: nothing happened. Die after it: the transition stands, and the next drain tells the recorder.
    done = transaction.commit();
    if (!done.rows.empty()) outlet_->committed(std::move(done.rows));
  }
  if (done.last_seq != 0)
    outlet_->deliver(done.last_seq);
  else if (done.changed && durable == Durable::kNow)
    database_->sync_wal();
}

void MetaStore::Impl::close() {
  if (is_inherited()) return;
  {
    std::unique_lock lock(mutex_);
    if (own_call() != nullptr) throw Error(fmt::format("close node {} from inside a call of it", root_.string()));
    if (state_ != State::kOpen) {
      idle_.wait(lock, [&] { return state_ == State::kClosed; });
      return;
    }
    state_ = State::kClosing;
    idle_.wait(lock, [&] { return calls_ == 0; });
  }
  try {
    outlet_->flush();
  } catch (const std::exception& error) {
    metering::logger()->warn("close node {}: {}; entries wait in the node's database", root_.string(), error.what());
  }
  remove_open(database_.get());
  outlet_.reset();
  database_.reset();
  const std::lock_guard lock(mutex_);
  state_ = State::kClosed;
  idle_.notify_all();
}

MetaStore::MetaStore(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}

MetaStore::~MetaStore() {
  // In a forked child everything here is the parent's: not even closing it would be harmless.
  if (impl_ && impl_->is_inherited()) static_cast<void>(impl_.release());  // NOLINT(bugprone-unused-return-value)
}

const std::string& MetaStore::node_id() const { return impl_->node_id; }
const std::string& MetaStore::ledger_id() const { return impl_->ledger_id; }
const std::vector<std::string>& MetaStore::metered_labels() const { return impl_->labels; }
const std::shared_ptr<metering::Recorder>& MetaStore::recorder() const { return impl_->recorder; }

void MetaStore::transact(const std::function<void(Transaction&)>& body, Durable durable) {
  impl_->transact(body, durable);
}

std::optional<Row> MetaStore::find(Table table, std::string_view id) const {
  const Impl::Call call(*impl_);
  const Database::ReadLease reader(impl_->database());
  auto found = find_record(*reader, table, id);
  if (!found) return std::nullopt;
  return std::move(found->row);
}

Row MetaStore::resolve(Table table, std::string_view ref, std::string_view hypervisor) const {
  const Impl::Call call(*impl_);
  const Database::ReadLease reader(impl_->database());
  return resolve_record(*reader, table, ref, hypervisor);
}

std::vector<Row> MetaStore::list(Table table, std::string_view hypervisor, std::string_view state) const {
  const Impl::Call call(*impl_);
  const Database::ReadLease reader(impl_->database());
  return list_records(*reader, table, hypervisor, state);
}

std::uint64_t MetaStore::pending() const {
  const Impl::Call call(*impl_);
  return impl_->outlet().pending();
}

void MetaStore::flush() {
  const Impl::Call call(*impl_);
  impl_->outlet().flush();
}

std::uint64_t MetaStore::settled() const {
  const Impl::Call call(*impl_);
  const Database::ReadLease reader(impl_->database());
  return pruned_through(*reader);
}

std::filesystem::path MetaStore::rotate() {
  const Impl::Call call(*impl_);
  return impl_->outlet().rotate();
}

void MetaStore::close() { impl_->close(); }

std::uint64_t MetaStore::change_counter() const {
  const Impl::Call call(*impl_);
  return impl_->database().change_counter();
}

}  // namespace cocoon::store
