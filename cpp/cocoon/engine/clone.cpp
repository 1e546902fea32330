// clone: check → reserve → folders and disks → spawn → load → finalize.

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/saved_vm.h"
#include "cocoon/error.h"

namespace cocoon::engine {

VmView Backend::clone(std::string_view snapshot, const VmSpec& spec, system::Cancel& cancel) {
  // Shared with all others who read it: any number of clones at once, and nobody removes it under them. It is let go
  // when the guest runs; a memory file that the VMM has mapped outlives its name.
  const auto use = node_->snapshots().use(snapshot, cancel);
  const auto saved = read_saved_vm(use, hypervisor());

  const auto id = store::make_id();
  lifecycle::VmRecord vm;
  vm.id = id;
  vm.hypervisor = std::string(hypervisor());
  vm.run_dir = (node_->run_dir() / hypervisor() / id).string();
  vm.log_dir = (node_->log_dir() / hypervisor() / id).string();
  vm.config = clone_config(spec, saved, use.record().vm_id.empty(), vm.run_dir);
  driver_->check(vm.config);
  driver_->check_saved(saved, binary());

  // The lock says that the placeholder has an owner. Die before it is reserved: an empty lock file, reused by nobody.
  OpLock lock(*node_, id, cancel);
  std::optional<system::ProcessIdentity> process;
  bool made_dirs = false;
  try {
    // 1. The name is taken. Die here: a placeholder whose lock is free; rm and reconcile remove it.
    vm = *commit(node_->store(), id, lifecycle::Reserve{.record = vm});
    // 2. Folders and disks. Die here: the same placeholder, with folders that go with it.
    make_vm_dirs(vm);
    made_dirs = true;
    load_disks(saved, vm.config, cancel);
    // A record that outlives a power cut has disks that do.
    system::sync_dir(vm.run_dir);
    system::sync_dir(system::Path(vm.run_dir).parent_path());
    // 3. The guest goes on in a VMM of its own. Die here, or while it loads: the same, with a VMM, which whoever
    //    removes the placeholder kills; nothing is billed.
    process = launch_saved(vm, saved, "clone", cancel);
    // 4. The VM, its storage and its compute interval, in one transaction. Die after it: the next drain appends.
    auto done =
        commit_if(node_->store(), vm,
                  lifecycle::FinalizeClone{
                      .config = vm.config, .source_snapshot_id = use.record().id, .process = to_record(*process)});
    if (done.race != Race::kWon) throw removed_meanwhile("clone", vm);
    return view(*std::move(done.record));
  } catch (...) {
    // A commit that failed after the fact is a commit.
    const auto now = find_vm(node_->store(), id);
    if (process && (!now || now->process != to_record(*process))) discard(vm, "clone", *process);
    abandon(vm, "clone", lock, made_dirs);
  }
}

}  // namespace cocoon::engine
