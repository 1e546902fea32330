// restore: check → stage the disks → kill → exchange them → load → done. What can fail is tried before the kill; what
// fails after it is undone.

#include <optional>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/disk_exchange.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/saved_vm.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using lifecycle::VmConfig;
using lifecycle::VmRecord;
using lifecycle::VmState;

void refuse_unrestorable(const VmRecord& vm) {
  const auto refuse = [&](std::string_view why) {
    throw InvalidState(fmt::format("restore {}: {}", vm.config.name, why), std::string(to_string(vm.state)));
  };
  if (vm.state == VmState::kCreating) refuse("it is still being created");
  // Its memory would be lost without a word.
  if (vm.state == VmState::kHibernated) refuse("it is hibernated, wake it first");
}

// The VMM is dead: that is committed however often others commit in between, if nobody has started another one.
VmRecord commit_killed(store::MetaStore& store, const vmm::Driver& driver, VmRecord seen, const std::string& source) {
  for (;;) {
    auto done = commit_if(store, seen, lifecycle::RestoreKilled{.source_snapshot_id = source, .dirty = true});
    if (done.race == Race::kGone) throw removed_meanwhile("restore", seen);
    if (done.race == Race::kWon) return *std::move(done.record);
    seen = *std::move(done.record);
    if (probe(driver, seen).life != Life::kDead) throw changed_meanwhile("restore", seen, "");
  }
}

// After a failure behind the kill: the old disks come back. They fit the VM, but not the memory that is gone.
void undo(store::MetaStore& store, const VmRecord& vm) noexcept {
  bool is_clean = false;
  try {
    DiskExchange::put_back(vm.config);
    is_clean = true;
  } catch (const std::exception& error) {
    spdlog::error("restore {}: its old disks are not back, so it cannot be started: {}", vm.config.name, error.what());
  }
  try {
    for (auto now = find_vm(store, vm.id); now;) {
      auto done = commit_if(store, *now, lifecycle::RestoreFailed{.dirty = !is_clean});
      if (done.race != Race::kChanged) return;
      now = std::move(done.record);
    }
  } catch (const std::exception& error) {
    spdlog::error("restore {}: it could not be marked as failed: {}", vm.config.name, error.what());
  }
}

}  // namespace

VmView Backend::restore(std::string_view ref, std::string_view snapshot, system::Cancel& cancel) {
  const auto id = resolve(ref);
  const auto use = node_->snapshots().use(snapshot, cancel);
  with_op_lock(*node_, id, cancel, [&] { restore_locked(id, use, cancel); });
  return view(load_vm(node_->store(), id));
}

void Backend::restore_locked(const std::string& id, const snapshot::Use& use, system::Cancel& cancel) {
  auto& store = node_->store();
  const auto& source = use.record().id;
  const auto saved = read_saved_vm(use, hypervisor());

  VmRecord vm;
  VmConfig config;
  std::optional<system::ProcessIdentity> alive;
  for (;;) {
    cancel.check();
    vm = load_vm(store, id);
    refuse_unrestorable(vm);
    config = restored_config(vm, saved);
    driver_->check(config);
    driver_->check_saved(saved, binary());
    alive = settle(*driver_, vm, "restore", cancel).process;
    // Dead already, or another one lives: the interval is closed for what it was, and the restore is another story.
    if (vm.compute_open() && (!alive || (vm.process && *vm.process != to_record(*alive)))) {
      commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)});
      continue;
    }
    if (!vm.dirty) break;
    // A restore has died in its middle. Its VMM, if it had one, was never billed.
    if (alive) kill_vmm(*driver_, vm, *alive);
    undo(store, vm);
    break;
  }

  try {
    // 1. The snapshot's disks, beside the VM's. Die here: files that the next restore, reconcile or rm removes.
    DiskExchange::clean_up(vm.config);
    DiskExchange disks(saved, config, cancel);
    cancel.check();
    // 2. The VMM ends. Die here: found dead, with the old disks.
    if (alive && !kill_vmm(*driver_, vm, *alive) && vm.compute_open()) {
      // It died by itself a moment ago.
      if (auto dead = commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)}); dead.race == Race::kWon)
        vm = *std::move(dead.record);
    }
    // 3. Nothing runs, and the disks are about to be neither the old nor the new ones. Die here, or anywhere before 6:
    //    dirty, which start refuses; reconcile puts the old ones back, and so does the next restore.
    vm = commit_killed(store, *driver_, std::move(vm), source);
    std::optional<system::ProcessIdentity> process;
    try {
      // 4. The new disks take the names.
      disks.run();
      // 5. The guest goes on from the snapshot.
      auto target = vm;
      target.config = config;
      process = launch_saved(target, saved, "restore", cancel);
      // 6. Shape, identity and the new intervals, in one transaction.
      const auto done = commit_if(
          store, vm,
          lifecycle::RestoreDone{.config = config, .source_snapshot_id = source, .process = to_record(*process)});
      if (done.race == Race::kGone) throw removed_meanwhile("restore", vm);
      if (done.race == Race::kChanged) throw changed_meanwhile("restore", *done.record, "it was undone");
    } catch (...) {
      const auto now = find_vm(store, id);
      if (process && now && now->state == VmState::kRunning && now->process == to_record(*process) && !now->dirty)
        throw;  // a commit that failed after the fact is a commit
      if (process) discard(vm, "restore", *process);
      undo(store, vm);
      throw;
    }
    // 7. The old disks go. Die here: reconcile, rm and the next restore remove them.
    try {
      DiskExchange::clean_up(config);
    } catch (const StoreError& error) {
      spdlog::warn("restore {}: {}", vm.config.name, error.what());
    }
  } catch (const Cancelled&) {
    forget_if_removed(vm, "restore");
    throw;
  } catch (const Error&) {
    if (forget_if_removed(vm, "restore")) throw removed_meanwhile("restore", vm);
    throw;
  }
}

}  // namespace cocoon::engine
