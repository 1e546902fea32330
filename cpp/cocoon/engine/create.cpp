// create: check → reserve → folders and disks → finalize.

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

// The parent of all run dirs must be ours alone, or its owner could put another folder in a run dir's place.
void require_own(const system::Path& folder) {
  struct stat status{};
  if (::stat(folder.c_str(), &status) != 0)
    throw StoreError(system_message("stat " + folder.string(), errno), folder.string(), errno);
  if (status.st_uid != ::geteuid() || (status.st_mode & S_IWOTH) != 0)
    throw StoreError(fmt::format("{}: it belongs to uid {} with mode {:o}, allowed: our own, not writable by others",
                                 folder.string(), status.st_uid, status.st_mode & 07777U),
                     folder.string(), EPERM);
}

void take_back(const Node& node, const lifecycle::VmRecord& vm, std::string_view verb, OpLock& lock) noexcept {
  try {
    const auto now = find_vm(node.store(), vm.id);
    if (now && now->state != lifecycle::VmState::kCreating) return;  // it was committed after all
    system::remove_tree(vm.run_dir);
    system::remove_tree(vm.log_dir);
    if (now) commit_if(node.store(), *now, lifecycle::RollbackCreate{});
    lock.retire();
  } catch (const std::exception& error) {
    spdlog::warn("{} {}: taking back what was made: {}", verb, vm.config.name, error.what());
  }
}

}  // namespace

void Backend::abandon(const lifecycle::VmRecord& vm, std::string_view verb, OpLock& lock, bool made_dirs) const {
  // Who removes a VM removes its folders, then its record.
  std::error_code ignored;
  const bool removed =
      made_dirs && (!std::filesystem::exists(vm.run_dir, ignored) || !find_vm(node_->store(), vm.id).has_value());
  take_back(*node_, vm, verb, lock);
  try {
    throw;
  } catch (const Cancelled&) {
    throw;
  } catch (const Error&) {
    // Whatever it stumbled over is what the removal has left.
    if (removed) throw removed_meanwhile(verb, vm);
    throw;
  }
}

void Backend::make_vm_dirs(const lifecycle::VmRecord& vm) const {
  for (const auto* folder : {&vm.run_dir, &vm.log_dir}) {
    system::make_private_dirs(*folder);
    require_own(system::Path(*folder).parent_path());
  }
  // Each time: what is below /run is gone after a reboot, and the claim with it.
  node_->claim(node_->run_dir());
  node_->claim(node_->log_dir());
}

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
  std::optional<lifecycle::VmRecord> created;
  bool made_dirs = false;
  try {
    // 1. The name is taken. Die here: a placeholder whose lock is free; rm and reconcile remove it.
    commit(node_->store(), id, lifecycle::Reserve{.record = vm});
    // 2. Folders and disks. Die here: the same placeholder, with folders that go with it.
    make_vm_dirs(vm);
    made_dirs = true;
    // Names before content: then the folders below are on the disk with the file, and syncing them costs nothing.
    {
      const auto made = system::FileLock::try_acquire(system::Path(vm.run_dir) / kLockFile);
    }
    make_own_disk(spec, vm.config, cancel);
    cancel.check();
    // A record that outlives a power cut has a disk that does.
    system::sync_dir(vm.run_dir);
    system::sync_dir(system::Path(vm.run_dir).parent_path());
    // 3. The VM and its storage interval, in one transaction.
    created = commit(node_->store(), id, lifecycle::FinalizeCreate{.config = vm.config});
  } catch (...) {
    abandon(vm, "create", lock, made_dirs);
  }
  return view(*std::move(created));
}

}  // namespace cocoon::engine
