// create: check → reserve → folders and disks → finalize.

#include <filesystem>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

// Takes back what a create that failed had made; nothing of it is in the ledger. What cannot be taken back does not
// keep the rest: a placeholder that stays is removed by rm and reconcile.
void roll_back(Node& node, const lifecycle::VmRecord& vm, OpLock& lock) noexcept {
  const auto attempt = [&](auto&& step) {
    try {
      step();
    } catch (const std::exception& error) {
      spdlog::warn("create {}: taking back what was made: {}", vm.config.name, error.what());
    }
  };
  attempt([&] { system::remove_tree(vm.run_dir); });
  attempt([&] { system::remove_tree(vm.log_dir); });
  attempt([&] {
    if (const auto now = find_vm(node.store(), vm.id); now && now->state == lifecycle::VmState::kCreating)
      commit(node.store(), vm.id, lifecycle::RollbackCreate{});
    lock.retire();
  });
}

}  // namespace

VmView Backend::create(const VmSpec& spec, system::Cancel& cancel) {
  const auto id = store::make_id();
  lifecycle::VmRecord vm;
  vm.id = id;
  vm.hypervisor = std::string(hypervisor());
  vm.run_dir = (node_->run_dir() / hypervisor() / id).string();
  vm.log_dir = (node_->log_dir() / hypervisor() / id).string();
  vm.config = engine::resolve(spec, vm.run_dir);
  driver_->check(vm.config);

  // The lock says that the placeholder has an owner. Die before it is reserved: an empty lock file, reused by nobody.
  OpLock lock(*node_, id, cancel);
  try {
    // 1. The name is taken. Die here: a placeholder whose lock is free; rm and reconcile remove it.
    commit(node_->store(), id, lifecycle::Reserve{.record = vm});
    // 2. Folders and disks. Die here: the same placeholder, with folders that go with it.
    system::make_private_dirs(vm.run_dir);
    system::make_private_dirs(vm.log_dir);
    make_own_disk(spec, vm.config, cancel);
    { const auto made = system::FileLock::try_acquire(system::Path(vm.run_dir) / kLockFile); }
    cancel.check();
    // 3. The VM and its storage interval, in one transaction.
    auto created = commit(node_->store(), id, lifecycle::FinalizeCreate{.config = vm.config});
    return view(*std::move(created));
  } catch (...) {
    roll_back(*node_, vm, lock);
    throw;
  }
}

}  // namespace cocoon::engine
