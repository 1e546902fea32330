// snapshot: staging → pause → the VMM's state → disks → resume → description → publish.
// What must be inside the pause is inside; what can be synced, described and recorded later is.

#include <utility>

#include <fmt/format.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/paused_guest.h"
#include "cocoon/engine/saved_vm.h"
#include "cocoon/error.h"
#include "cocoon/snapshot/local_file.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;

constexpr auto kSaveTimeout = 10min;  // memory is written to a disk

// What lives then was left by a sequence that died, and is nobody's guest.
void refuse_unsaveable(const VmRecord& vm) {
  if (vm.state == lifecycle::VmState::kCreating || vm.state == lifecycle::VmState::kHibernated || vm.dirty)
    throw InvalidState(fmt::format("snapshot {}: it is {}{}, allowed: running", vm.config.name, to_string(vm.state),
                                   vm.dirty ? " after a failed restore" : ""),
                       std::string(to_string(vm.state)));
}

lifecycle::SnapshotTaken snapshot_taken(store::Transaction& transaction, const std::string& vm_id,
                                        const std::string& snapshot_id) {
  lifecycle::SnapshotTaken event{.snapshot_id = snapshot_id, .gone = {}};
  if (const auto row = transaction.find(store::Table::kVm, vm_id)) {
    for (auto& earlier : vm_from_row(*row).snapshot_ids)
      if (!transaction.find(store::Table::kSnapshot, earlier)) event.gone.push_back(std::move(earlier));
  }
  return event;
}

}  // namespace

lifecycle::SavedVm Backend::save(const VmRecord& vm, const system::Path& dir, system::Cancel& cancel) const {
  lifecycle::SavedVm saved;
  saved.hypervisor = vm.hypervisor;
  saved.config = vm.config;
  saved.disk_files = plan_disk_files(vm);
  auto state = driver_->save(vm, dir, kSaveTimeout, cancel);
  save_disks(vm.config, saved.disk_files, dir, cancel);
  saved.vmm_version = std::move(state.vmm_version);
  saved.state_files = std::move(state.files);
  saved.facts = std::move(state.facts);
  return saved;
}

lifecycle::SnapshotRecord Backend::snapshot(std::string_view ref, const SnapshotOptions& options,
                                            system::Cancel& cancel) {
  const auto id = resolve(ref);
  auto& snapshots = node_->snapshots();
  auto& store = node_->store();
  return with_op_lock(*node_, id, cancel, [&] {
    const auto vm = load_alive(id, "snapshot", cancel);
    refuse_unsaveable(vm);
    (void)plan_disk_files(vm);  // refused while the guest runs
    // 1. A folder to fill. Die here, or anywhere before 5: a folder whose lock is free; gc removes it.
    auto staging = snapshots.begin({.name = options.name,
                                    .description = options.description,
                                    .hypervisor = vm.hypervisor,
                                    .vm_id = vm.id,
                                    .cpu = vm.config.cpu,
                                    .mem_bytes = vm.config.mem_bytes,
                                    .storage_bytes = vm.config.storage_bytes});
    const auto snapshot_id = staging.id();
    lifecycle::SavedVm saved;
    try {
      // 2. The guest stands still. Die here: it stays so until start, resume or reconcile find the mark.
      PausedGuest guest(*driver_, vm, "snapshot", cancel);
      // 3. Its state and its disks, not yet on the disk.
      saved = save(vm, staging.dir(), cancel);
      // 4. It goes on.
      guest.resume();
    } catch (const Cancelled&) {
      throw;
    } catch (const Error& error) {
      if (!find_vm(store, id)) throw removed_meanwhile("snapshot", vm);
      explain(vm, "snapshot", "while it was saved", error);
      throw;
    }
    write_saved_vm(staging.dir(), saved);
    // 5. On the disk, under its name, metered, and known to its VM, in one transaction. Whatever became of the VM
    //    since: its moment is past. Only of one that was removed nothing more is said.
    return snapshots.publish(std::move(staging), cancel, [&](store::Transaction& transaction) {
      commit_in(store, transaction, id, snapshot_taken(transaction, id, snapshot_id));
    });
  });
}

}  // namespace cocoon::engine
