#include "cocoon/engine/gc.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/commit.h"
#include "cocoon/engine/node.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/reconcile.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using snapshot::SnapshotRecord;
using Stale = snapshot::LocalFile::Stale;

// What else lies in a folder is not ours, and stays.
bool is_id(std::string_view name) {
  constexpr std::size_t kLength = 26;
  return name.size() == kLength &&
         std::all_of(name.begin(), name.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '2' && c <= '7'); });
}

std::vector<std::string> ids_in(const system::Path& folder) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) return {};
  auto names = system::list_dir(folder);
  std::erase_if(names, [](const auto& name) { return !is_id(name); });
  return names;
}

// As du(1) counts; what cannot be looked at counts nothing.
std::int64_t disk_bytes(const system::Path& path) {
  std::int64_t bytes = 0;
  const auto add = [&](const system::Path& file) {
    struct stat status{};
    if (::lstat(file.c_str(), &status) == 0) bytes += std::int64_t{status.st_blocks} * 512;
  };
  add(path);
  std::error_code error;
  for (auto at = std::filesystem::recursive_directory_iterator(path, error);
       !error && at != std::filesystem::recursive_directory_iterator(); at.increment(error))
    add(at->path());
  return bytes;
}

class Collector {
 public:
  Collector(Node& node, const GcOptions& options, system::Cancel& cancel)
      : node_(node), options_(options), cancel_(cancel) {
    report_.dry_run = options.dry_run;
  }

  GcReport run() {
    vms();
    orphan_dirs("vms", "run-dir", node_.run_dir());
    orphan_dirs("logs", "log-dir", node_.log_dir());
    unfinished_snapshots();
    evict_snapshots();
    unused_locks();
    report_.kept = static_cast<std::int64_t>(node_.store().list(store::Table::kVm).size() +
                                             node_.store().list(store::Table::kSnapshot).size());
    // In a dry run what would go is counted still.
    if (options_.dry_run)
      report_.kept -= std::count_if(report_.removed.begin(), report_.removed.end(), [](const auto& item) {
        return item.what == "placeholder" || item.what == "snapshot";
      });
    return std::move(report_);
  }

 private:
  // Does it unless this is a dry run, and says so. `work` returns false when there was an owner after all, or nothing
  // any more.
  template <typename Work>
  void collect(GcItem item, Work&& work) {
    cancel_.check();
    try {
      if (options_.dry_run || work()) report_.removed.push_back(std::move(item));
    } catch (const Cancelled&) {
      throw;
    } catch (const NotFound&) {
      return;  // somebody else has removed it
    } catch (const InvalidState&) {
      return;  // it is in use
    } catch (const Error& error) {
      item.error = error.what();
      report_.failed.push_back(std::move(item));
    }
  }

  // Placeholders, intervals and processes: what reconcile finds and puts right.
  void vms() {
    static const std::map<std::string, std::pair<const char*, const char*>, std::less<>> kGarbage = {
        {"stale-placeholder", {"placeholder", "the process that was creating it is dead"}},
        {"open-but-process-dead", {"interval", "its VMM is dead, and its compute interval was open"}},
        {"orphan-process", {"process", "a VMM that no record speaks for, or that was never booted"}},
        {"kept-without-vm", {"snapshot", "no VM sleeps in it any more"}},
    };
    const auto rows = reconcile_garbage(node_, !options_.dry_run, cancel_).rows;
    for (const auto& row : rows) {
      const auto known = kGarbage.find(row.status);
      const bool failed = row.status.starts_with("failed: ") || row.status.starts_with("inconclusive: ");
      if (known == kGarbage.end() && !failed) continue;
      if (failed) {
        report_.failed.push_back(
            {.module = "vms", .what = "vm", .id = row.id, .path = {}, .reason = {}, .error = row.status});
        continue;
      }
      if (!options_.dry_run && row.action.empty()) continue;  // lost a race to somebody who did it
      report_.removed.push_back({.module = known->second.first == std::string_view("snapshot") ? "snapshots" : "vms",
                                 .what = known->second.first,
                                 .id = row.id,
                                 .path = {},
                                 .reason = known->second.second});
    }
  }

  // Run and log dirs of VMs that have no record. Whoever makes one holds the VM's op lock from before its record until
  // after it, and a VMM holds vm.lock in its run dir.
  void orphan_dirs(const char* module, const char* what, const system::Path& parent) {
    if (!node_.owns(parent)) return;
    for (const auto hypervisor : vmm::hypervisors()) {
      for (const auto& id : ids_in(parent / hypervisor)) {
        const auto path = parent / hypervisor / id;
        if (find_vm(node_.store(), id)) continue;
        // Who removes a VM removes its folders before its record: they may have been seen by us, and be gone.
        const auto is_orphan = [&] {
          std::error_code ignored;
          return !find_vm(node_.store(), id) && std::filesystem::exists(path, ignored) &&
                 !system::FileLock::is_held(node_.run_dir() / hypervisor / id / kLockFile);
        };
        if (system::FileLock::is_held(node_.op_lock_path(id)) || !is_orphan()) continue;
        collect({.module = module,
                 .what = what,
                 .id = id,
                 .path = path.string(),
                 .reason = "no record of this VM",
                 .bytes = disk_bytes(path)},
                [&] {
                  auto lock = OpLock::try_acquire(node_, id);
                  if (!lock) return false;
                  const bool orphan = is_orphan();
                  if (orphan) system::remove_tree(path);
                  if (!find_vm(node_.store(), id)) lock->retire();
                  return orphan;
                });
      }
    }
  }

  void unfinished_snapshots() {
    auto& snapshots = node_.snapshots();
    const auto discard = [&](const char* module, const char* what, const std::string& id, const system::Path& path,
                             const char* reason) {
      if (!snapshots.is_stale(id)) return;
      collect({.module = module,
               .what = what,
               .id = id,
               .path = path.string(),
               .reason = reason,
               .bytes = disk_bytes(path)},
              [&] { return snapshots.discard_stale(id) == Stale::kDiscarded; });
    };
    const auto& folder = snapshots.folder();
    for (const auto& row : node_.store().list(store::Table::kSnapshot, {}, "pending"))
      discard("snapshots", "pending", row.id, snapshots.staging_folder() / row.id,
              "the process that was making it is dead");
    for (const auto& id : ids_in(snapshots.staging_folder()))
      if (!reported(id))
        discard("staging", "folder", id, snapshots.staging_folder() / id, "the process that was filling it is dead");
    for (const auto& id : ids_in(folder))
      if (!reported(id)) discard("snapshots", "folder", id, folder / id, "no record of this snapshot");
    for (const auto& record : snapshots.list()) {
      std::error_code ignored;
      if (std::filesystem::exists(folder / record.id, ignored)) continue;
      const auto trash = snapshots.staging_folder() / record.id;
      collect({.module = "snapshots",
               .what = "snapshot",
               .id = record.id,
               .path = trash.string(),
               .reason = "somebody died while removing it",
               .bytes = disk_bytes(trash)},
              [&] {
                snapshots.remove(record.id, cancel_);
                return true;
              });
    }
  }

  // The records that go, and why.
  [[nodiscard]] std::map<std::string, std::vector<std::string>> pick_victims(
      const std::vector<SnapshotRecord>& newest_first) const {
    std::map<std::string, std::vector<std::string>> victims;
    if (options_.keep_last)
      for (std::size_t i = 0; i < newest_first.size(); ++i)
        if (std::cmp_greater_equal(i, *options_.keep_last))
          victims[newest_first[i].id].push_back(fmt::format("beyond the newest {}", *options_.keep_last));

    std::vector<std::pair<std::int64_t, const SnapshotRecord*>> by_use;
    by_use.reserve(newest_first.size());
    for (const auto& record : newest_first) by_use.emplace_back(node_.snapshots().last_used_ns(record), &record);
    std::stable_sort(by_use.begin(), by_use.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    if (options_.max_age) {
      const auto oldest = node_.clock().wall_ns() - std::chrono::nanoseconds(*options_.max_age).count();
      for (const auto& [used, record] : by_use)
        if (used < oldest)
          victims[record->id].push_back(fmt::format("unused for more than {} s", options_.max_age->count()));
    }
    if (options_.max_bytes) {
      std::int64_t total = 0;
      for (const auto& [used, record] : by_use) total += record->size_bytes;
      for (const auto& [used, record] : by_use) {
        if (total <= *options_.max_bytes) break;
        total -= record->size_bytes;
        victims[record->id].push_back(fmt::format("all snapshots have more than {} bytes", *options_.max_bytes));
      }
    }
    return victims;
  }

  void evict_snapshots() {
    if (!options_.keep_last && !options_.max_age && !options_.max_bytes) return;
    auto& snapshots = node_.snapshots();
    auto records = snapshots.list();
    std::erase_if(records, [&](const auto& record) { return record.kept || reported(record.id); });
    const auto victims = pick_victims(records);
    // The oldest first: whoever interrupts us has lost the least.
    std::reverse(records.begin(), records.end());
    for (const auto& record : records) {
      const auto victim = victims.find(record.id);
      if (victim == victims.end() || snapshots.is_in_use(record.id)) continue;
      const auto path = snapshots.folder() / record.id;
      collect({.module = "snapshots",
               .what = "snapshot",
               .id = record.id,
               .path = path.string(),
               .reason = fmt::format("{}", fmt::join(victim->second, "; ")),
               .bytes = disk_bytes(path)},
              [&] {
                snapshots.remove(record.id, cancel_);
                return true;
              });
    }
  }

  // Lock files of what is not there any more. Whoever holds one, or is about to, has its record or its folder.
  void unused_locks() {
    for (const auto& id : ids_in(node_.root() / "locks")) {
      const auto path = node_.op_lock_path(id);
      if (find_vm(node_.store(), id) || system::FileLock::is_held(path)) continue;
      collect({.module = "locks", .what = "lock", .id = id, .path = path.string(), .reason = "no record of this VM"},
              [&] {
                auto lock = OpLock::try_acquire(node_, id);
                if (!lock || find_vm(node_.store(), id)) return false;
                lock->retire();
                return true;
              });
    }
    auto& snapshots = node_.snapshots();
    for (const auto& id : ids_in(snapshots.locks_folder())) {
      if (node_.store().find(store::Table::kSnapshot, id) || !snapshots.is_stale(id) || reported(id)) continue;
      collect({.module = "locks",
               .what = "lock",
               .id = id,
               .path = (snapshots.locks_folder() / id).string(),
               .reason = "no record of this snapshot"},
              [&] {
                std::error_code ignored;
                return std::filesystem::exists(snapshots.locks_folder() / id, ignored) &&
                       snapshots.discard_stale(id) != Stale::kOwned;
              });
    }
  }

  // Of snapshots.
  [[nodiscard]] bool reported(const std::string& id) const {
    const auto is_it = [&](const GcItem& item) {
      return item.id == id && (item.module == "snapshots" || item.module == "staging");
    };
    return std::any_of(report_.removed.begin(), report_.removed.end(), is_it) ||
           std::any_of(report_.failed.begin(), report_.failed.end(), is_it);
  }

  Node& node_;
  const GcOptions& options_;
  system::Cancel& cancel_;
  GcReport report_;
};

}  // namespace

GcReport Node::gc(const GcOptions& options, system::Cancel& cancel) {
  if (options.keep_last && *options.keep_last < 0)
    throw InvalidArgument(fmt::format("keep_last: {}, allowed: 0 or more", *options.keep_last));
  if (options.max_bytes && *options.max_bytes < 0)
    throw InvalidArgument(fmt::format("max_bytes: {}, allowed: 0 or more", *options.max_bytes));
  return Collector(*this, options, cancel).run();
}

}  // namespace cocoon::engine
