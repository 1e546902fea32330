// hibernate: staging → pause → state and disks → published and hibernated in one commit → the VMM ends.
// wake: load → woken → the snapshot that kept the memory goes.

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/disk_exchange.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/paused_guest.h"
#include "cocoon/engine/saved_vm.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using lifecycle::VmRecord;
using lifecycle::VmState;

// A run dir below /run goes with a reboot, and the disks in it.
bool lacks_disks(const VmRecord& vm) {
  std::error_code ignored;
  return std::any_of(vm.config.disks.begin(), vm.config.disks.end(), [&](const lifecycle::DiskConfig& disk) {
    return !disk.readonly && !std::filesystem::exists(disk.path, ignored);
  });
}

system::Path waking_mark(const VmRecord& vm) { return system::Path(vm.run_dir) / kWakingFile; }

void set_waking_mark(const VmRecord& vm) {
  const auto mark = waking_mark(vm);
  const system::Fd file(::open(mark.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw StoreError(system_message("create " + mark.string(), errno), mark.string(), errno);
  system::sync_dir(vm.run_dir);
}

}  // namespace

VmView Backend::hibernate(std::string_view ref, system::Cancel& cancel) {
  const auto id = resolve(ref);
  auto& snapshots = node_->snapshots();
  auto& store = node_->store();
  return with_op_lock(*node_, id, cancel, [&] {
    const auto vm = load_vm(store, id);
    const auto alive = settle(*driver_, vm, "hibernate", cancel);
    if (alive.life != Life::kAlive || vm.state != VmState::kRunning || vm.process != to_record(*alive.process))
      throw InvalidState(fmt::format("hibernate {}: it is {}{}, allowed: running", vm.config.name, to_string(vm.state),
                                     alive.life == Life::kAlive ? "" : " and its VMM is not alive"),
                         std::string(to_string(vm.state)));
    (void)plan_disk_files(vm);
    // 1. A folder to fill. Die here, or anywhere before 4: a folder whose lock is free; gc removes it.
    auto staging = snapshots.begin({.name = {},
                                    .description = {},
                                    .hypervisor = vm.hypervisor,
                                    .vm_id = vm.id,
                                    .cpu = vm.config.cpu,
                                    .mem_bytes = vm.config.mem_bytes,
                                    .storage_bytes = vm.config.storage_bytes,
                                    .kept = true});
    const auto kept_id = staging.id();
    system::remove_file(waking_mark(vm));  // of a wake that died between its commit and its end
    std::optional<PausedGuest> guest;
    try {
      // 2. The guest stands still. Die here: it stays so until start, resume or reconcile find the mark.
      guest.emplace(*driver_, vm, "hibernate", cancel);
      // 3. Its state and its disks. The disks that stay in the run dir are the same; the copies are for a wake that
      //    fails when its guest has already written to those.
      write_saved_vm(staging.dir(), save(vm, staging.dir(), cancel));
      // 4. The snapshot and its interval, the VM and the end of its own: one transaction. Any failure up to here: the
      //    guest goes on. Die after it: a VMM that is paused for ever; reconcile, wake, stop and rm kill it.
      snapshots.publish(std::move(staging), cancel, [&](store::Transaction& transaction) {
        const auto done = commit_if_in(store, transaction, vm, lifecycle::Hibernate{.kept_snapshot_id = kept_id});
        if (done.race == Race::kGone) throw removed_meanwhile("hibernate", vm);
        if (done.race == Race::kChanged) throw changed_meanwhile("hibernate", *done.record, "it goes on");
      });
    } catch (const Cancelled&) {
      throw;
    } catch (const Error& error) {
      const auto now = find_vm(store, id);
      if (!now) throw removed_meanwhile("hibernate", vm);
      if (now->kept_snapshot_id != kept_id) {
        guest.reset();  // it goes on before anything else
        explain(vm, "hibernate", "while it was saved", error);
        throw;
      }
      // A commit that failed after the fact is a commit.
      spdlog::warn("hibernate {}: it is hibernated, though an error was seen at the end", vm.config.name);
    }
    guest->abandon();
    kill_vmm(*driver_, vm, *alive.process);
    PausedGuest::forget(vm);
    remove_runtime_files(vm);
    return view(load_vm(store, id));
  });
}

VmView Backend::wake(std::string_view ref, system::Cancel& cancel) {
  const auto id = resolve(ref);
  auto& store = node_->store();
  return with_op_lock(*node_, id, cancel, [&] {
    auto vm = load_vm(store, id);
    if (vm.state != VmState::kHibernated || vm.compute_open())
      throw InvalidState(fmt::format("wake {}: it is {}, allowed: hibernated", vm.config.name, to_string(vm.state)),
                         std::string(to_string(vm.state)));
    const auto kept_id = vm.kept_snapshot_id;
    std::optional<snapshot::Use> use = node_->snapshots().use(kept_id, cancel);
    const auto saved = read_saved_vm(*use, hypervisor());
    driver_->check(vm.config);
    driver_->check_saved(saved, binary());
    // 1. A VMM that a hibernate did not end, or a wake left, is not billed and must not go on.
    const auto alive = settle(*driver_, vm, "wake", cancel);
    if (alive.life == Life::kAlive) kill_vmm(*driver_, vm, *alive.process);

    std::optional<system::ProcessIdentity> process;
    try {
      std::error_code ignored;
      make_vm_dirs(vm);
      if (std::filesystem::exists(waking_mark(vm), ignored) || lacks_disks(vm)) {
        // 2. An earlier wake may have let the guest write to its disks: they are taken from the snapshot again. Die
        //    here: the same mark, and the same again.
        DiskExchange::clean_up(vm.config);
        DiskExchange(saved, vm.config, cancel).run();
        DiskExchange::clean_up(vm.config);
      }
      // 3. From here on the disks may be ahead of the memory. Die here, or anywhere before 5: hibernated, with a VMM
      //    that is not billed; reconcile, wake and rm kill it.
      set_waking_mark(vm);
      // 4. The guest goes on.
      process = launch_saved(vm, saved, "wake", cancel);
      // 5. State, identity and compute.start, in one transaction.
      const auto done = commit_if(store, vm, lifecycle::Wake{.process = to_record(*process)});
      if (done.race == Race::kGone) throw removed_meanwhile("wake", vm);
      if (done.race == Race::kChanged) throw changed_meanwhile("wake", *done.record, "what was woken is stopped");
    } catch (...) {
      const auto now = find_vm(store, id);
      const bool is_committed = process && now && now->process == to_record(*process);
      if (process && !is_committed) discard(vm, "wake", *process);
      if (!now) {
        forget_if_removed(vm, "wake");
        use.reset();
        drop_kept(kept_id);
        try {
          throw;
        } catch (const Cancelled&) {
          throw;
        } catch (const Error&) {
          throw removed_meanwhile("wake", vm);
        }
      }
      throw;
    }
    system::remove_file(waking_mark(vm));
    use.reset();
    // 6. What kept its memory. Die before it: a kept snapshot that no VM names; reconcile removes it.
    drop_kept(kept_id);
    return view(load_vm(store, id));
  });
}

void Backend::drop_kept(const std::string& snapshot_id) const noexcept {
  try {
    system::Cancel never;
    node_->snapshots().remove(snapshot_id, never);
  } catch (const NotFound&) {
    return;  // somebody was faster
  } catch (const std::exception& error) {
    spdlog::warn("{}; reconcile removes it", error.what());
  }
}

}  // namespace cocoon::engine
