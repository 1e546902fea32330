#include "cocoon/snapshot/local_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/snapshot/commit.h"

namespace cocoon::snapshot {
namespace {

using namespace std::chrono_literals;

// How long a reader that is just leaving is waited for. (Another remover asks for a moment, too, who holds the lock.)
constexpr auto kPatience = 100ms;
constexpr auto kLook = 1ms;

std::string label(const SnapshotRecord& record) { return record.name.empty() ? record.id : record.name; }

bool is_there(const system::Path& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT) return false;
  throw StoreError(system_message("stat " + path.string(), errno), path.string(), errno);
}

// nullopt if it is held for more than a moment, in which somebody may have looked at it.
std::optional<Lock> exclude_soon(const system::Path& path) {
  system::Cancel never;
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    auto lock = Lock::try_exclude(path);
    if (lock || std::chrono::steady_clock::now() >= give_up) return lock;
    system::pause_for(kLook, never);
  }
}

NotFound removed_meanwhile(const std::string& id) {
  return {fmt::format("remove snapshot {}: it was removed meanwhile", id), id};
}

[[noreturn]] void refuse_half_removed(const SnapshotRecord& record) {
  throw InvalidState(
      fmt::format("snapshot {}: its data is gone, somebody died while removing it; remove it again", label(record)),
      "removing");
}

}  // namespace

LocalFile::LocalFile(store::MetaStore& store, const system::Path& root, Trust trust)
    : store_(&store), folder_(root / "snapshots"), trust_(std::move(trust)) {
  system::make_private_dirs(staging_folder());
  system::make_private_dirs(locks_folder());
}

SnapshotRecord LocalFile::resolve(std::string_view ref) const {
  return record_from_row(store_->resolve(store::Table::kSnapshot, ref));
}

SnapshotRecord LocalFile::resolve_ready(std::string_view ref) const {
  auto record = resolve(ref);
  if (record.pending)
    throw InvalidState(fmt::format("snapshot {}: it is still being made, or was abandoned", label(record)), "pending");
  return record;
}

std::vector<SnapshotRecord> LocalFile::list() const {
  std::vector<SnapshotRecord> records;
  for (const auto& row : store_->list(store::Table::kSnapshot, {}, "ready")) records.push_back(record_from_row(row));
  std::reverse(records.begin(), records.end());
  return records;
}

SnapshotRecord LocalFile::inspect(std::string_view ref) const { return resolve_ready(ref); }

system::Path LocalFile::data_dir(std::string_view ref) const {
  const auto record = resolve_ready(ref);
  auto folder = final_dir(record.id);
  if (!is_there(folder)) refuse_half_removed(record);
  return folder;
}

Use LocalFile::use(std::string_view ref, system::Cancel& cancel) const {
  const auto found = resolve_ready(ref);
  auto lock = Lock::share(lock_path(found.id), cancel);
  auto record = find_record(*store_, found.id);
  if (!record) {
    lock.retire();
    throw NotFound(fmt::format("snapshot {}: it was removed meanwhile", label(found)), std::string(ref));
  }
  if (!is_there(final_dir(found.id))) refuse_half_removed(found);
  // The lock file's time is when it was last used, for gc; a read-only file system has no gc either.
  ::futimens(lock.fd(), nullptr);
  return {*std::move(record), final_dir(found.id), std::move(lock)};
}

// remove: nobody reads it → out of sight → data → the record and its last entry.

Lock LocalFile::lock_for_removal(const SnapshotRecord& record, system::Cancel& cancel) const {
  const auto path = lock_path(record.id);
  // Counted, not timed: a process that stood still meanwhile has seen nothing of those who came and went.
  for (int meetings = 0;;) {
    if (auto lock = Lock::try_exclude(path)) return *std::move(lock);
    if (record.pending)
      throw InvalidState(fmt::format("remove snapshot {}: it is still being made", label(record)), "pending");
    // Held by another remover, who is waited for, or by readers. (Looking, we are one: not while we pause.)
    if (const auto beside = Lock::try_share(path); !beside) {
      meetings = 0;
    } else if (++meetings > kPatience / kLook) {
      if (!find_record(*store_, record.id)) {
        beside->retire();
        throw removed_meanwhile(record.id);
      }
      throw InvalidState(
          fmt::format("remove snapshot {}: it is in use by a clone, a restore or an export", label(record)), "in use");
    }
    system::pause_for(kLook, cancel);
  }
}

void LocalFile::check_not_asleep(const SnapshotRecord& record) const {
  if (!record.kept) return;
  const auto row = store_->find(store::Table::kVm, record.vm_id);
  if (!row) return;
  const auto vm = lifecycle::vm_from_document(row->document);
  // Once it does not name this snapshot it never will again: both are committed together.
  if (vm.kept_snapshot_id == record.id)
    throw InvalidState(
        fmt::format("remove snapshot {}: it holds the memory of the hibernated VM {}; wake or remove that",
                    label(record), vm.config.name),
        "hibernated");
}

void LocalFile::remove_one(const std::string& id, system::Cancel& cancel, const Also& also) {
  const auto before = find_record(*store_, id);
  if (!before) throw removed_meanwhile(id);
  const auto lock = lock_for_removal(*before, cancel);
  const auto record = find_record(*store_, id);
  if (!record) {
    lock.retire();
    throw removed_meanwhile(id);
  }
  check_not_asleep(*record);

  // 1. Out of sight. Die here: a record without data, which nobody can use; removing it again goes on from here, as
  //    does gc. It is billed until it is gone.
  const auto trash = staging_dir(id);
  if (::rename(final_dir(id).c_str(), trash.c_str()) != 0 && errno != ENOENT)
    throw StoreError(system_message("remove snapshot " + final_dir(id).string(), errno), final_dir(id).string(), errno);
  // 2. The data, ahead of the record, so that a clean-up that failed can be tried again.
  system::remove_tree(trash);
  // 3. The record and its last entry. Die after it: an empty lock file, for gc.
  store_->transact([&](store::Transaction& transaction) {
    if (also) also(transaction);
    apply_in(transaction, id, lifecycle::RemoveSnapshot{});
  });
  lock.retire();
}

void LocalFile::remove(std::string_view ref, system::Cancel& cancel, const Also& also) {
  remove_one(resolve(ref).id, cancel, also);
}

std::vector<std::string> LocalFile::remove(std::span<const std::string> refs, system::Cancel& cancel) {
  std::vector<std::pair<std::string, std::string>> wanted;  // id, and the reference as given
  for (const auto& ref : refs) {
    const auto id = resolve(ref).id;
    if (std::none_of(wanted.begin(), wanted.end(), [&](const auto& other) { return other.first == id; }))
      wanted.emplace_back(id, ref);
  }
  std::vector<std::string> done;
  std::map<std::string, std::exception_ptr> errors;
  for (const auto& [id, ref] : wanted) {
    cancel.check();
    try {
      remove_one(id, cancel, {});
      done.push_back(id);
    } catch (const Cancelled&) {
      throw;
    } catch (const Error&) {
      if (refs.size() == 1) throw;
      errors.emplace(ref, std::current_exception());
    }
  }
  if (!errors.empty())
    throw BulkError(fmt::format("remove: {} of {} snapshots failed", errors.size(), wanted.size()), done, errors);
  return done;
}

// The lock is held exclusively, and the record, if there is one, is pending.
void LocalFile::forget(const std::string& id, const Lock& lock) const {
  system::remove_tree(staging_dir(id));
  system::remove_tree(final_dir(id));
  store_->transact([&](store::Transaction& transaction) {
    const auto record = find_in(transaction, id);
    if (record && record->pending) apply_in(transaction, id, lifecycle::RemoveSnapshot{});
  });
  lock.retire();
}

bool LocalFile::is_in_use(const std::string& id) const {
  const auto path = lock_path(id);
  return is_there(path) && !Lock::try_exclude(path);
}

bool LocalFile::is_stale(const std::string& id) const {
  if (is_in_use(id)) return false;
  const auto record = find_record(*store_, id);
  return !record || record->pending;
}

std::int64_t LocalFile::last_used_ns(const SnapshotRecord& record) const {
  constexpr std::int64_t kSecond = 1'000'000'000;
  struct stat status{};
  if (::stat(lock_path(record.id).c_str(), &status) != 0) return record.created_at_ns;
  return std::max(record.created_at_ns, status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec);
}

LocalFile::Stale LocalFile::discard_stale(const std::string& id) const {
  const auto lock = exclude_soon(lock_path(id));
  if (!lock) return Stale::kOwned;
  const auto record = find_record(*store_, id);
  if (record && !record->pending) return Stale::kOwned;
  const bool is_any = record || is_there(staging_dir(id)) || is_there(final_dir(id));
  forget(id, *lock);
  return is_any ? Stale::kDiscarded : Stale::kNothing;
}

}  // namespace cocoon::snapshot
