// remove: kill if forced → nobody answers, no process is left → folders → the record and its last entries → the
// snapshot that kept its memory.
//
// With force it does not wait for the op lock: it loads the generation, kills, probes, and commits only if the
// generation is unchanged, else it begins again. Without that condition a start that completes between the kill and
// the commit would leave a VMM without a record.

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/disk_exchange.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/error.h"
#include "cocoon/system/socket.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using lifecycle::VmState;

constexpr auto kProbeTimeout = 500ms;
// How long a VMM that is started again and again while it is being removed is killed again.
constexpr auto kPatience = 3s;

// vm.lock, for as long as what it guards is removed. A VMM of this run dir holds it for all its life and is spawned
// with it, so whoever has it knows that there is no such VMM and that there will be none: no need to look through all
// of /proc. Empty: a VMM has it, or somebody who may be about to spawn one; or it is not there, and says nothing.
class RunDirLock {
 public:
  explicit RunDirLock(const VmRecord& vm)
      : lock_(system::FileLock::try_acquire_existing(system::Path(vm.run_dir) / kLockFile)) {}
  // By name: a process forked meanwhile has inherited the open file, and must not prolong it.
  ~RunDirLock() {
    if (lock_) lock_->unlock();
  }
  RunDirLock(const RunDirLock&) = delete;
  RunDirLock& operator=(const RunDirLock&) = delete;
  explicit operator bool() const { return lock_.has_value(); }

 private:
  std::optional<system::FileLock> lock_;
};

bool has_killed(const std::vector<system::ProcessIdentity>& killed, const VmRecord& vm) {
  if (!vm.process) return !killed.empty();
  return std::find(killed.begin(), killed.end(), from_record(*vm.process)) != killed.end();
}

}  // namespace

bool Backend::try_remove(const std::string& id, bool force, std::chrono::steady_clock::time_point give_up,
                         std::vector<system::ProcessIdentity>& killed, system::Cancel& cancel) {
  auto& store = node_->store();
  const auto vm = load_vm(store, id);

  // A placeholder whose lock is free has no maker: a VMM in it is a clone's that died, and nobody's.
  const bool may_kill = force || vm.state == VmState::kCreating;

  // 1. No VMM of it is alive. Die here: its interval is open, and whoever looks next closes it by the shim's stamp.
  const auto alive = settle(*driver_, vm, "remove", cancel);
  if (alive.life == Life::kAlive) {
    if (!may_kill)
      throw InvalidState(fmt::format("remove {}: it is running (pid {}); stop it first, or remove it with force",
                                     vm.config.name, alive.process->pid),
                         "running");
    if (kill_process(*alive.process)) killed.push_back(*alive.process);
  }
  const RunDirLock lock(vm);
  auto socket = system::probe_socket(driver_->api_socket(vm), kProbeTimeout);
  if (!lock || socket != system::SocketProbe::kDead) {
    // Others that the record does not know of: spawned by a starter that died, or is about to lose its race.
    for (const auto& stray : find_processes(*driver_, vm)) {
      if (kill_process(stray.identity)) killed.push_back(stray.identity);
    }
    socket = system::probe_socket(driver_->api_socket(vm), kProbeTimeout);
  }
  switch (socket) {
    case system::SocketProbe::kDead:
      break;
    case system::SocketProbe::kLive:
      if (may_kill && std::chrono::steady_clock::now() < give_up) {
        system::pause_for(1ms, cancel);
        return false;  // started again meanwhile
      }
      [[fallthrough]];
    case system::SocketProbe::kInconclusive:
      throw Inconclusive(fmt::format("remove {}: something still answers at {}, though no process of it is found",
                                     vm.config.name, driver_->api_socket(vm).string()));
  }
  const bool stopped_by_us = has_killed(killed, vm);
  const auto death = stopped_by_us ? std::nullopt : find_death(vm);

  // 2. A disk outside of the run dir is the user's own again, if a restore that died had put another in its place.
  if (vm.dirty) DiskExchange::put_back(vm.config);
  DiskExchange::clean_up(vm.config);
  // 3. Folders first, so that a clean-up that failed can be tried again. Die here: the record is still there.
  system::remove_tree(vm.run_dir);
  system::remove_tree(vm.log_dir);

  // 4. The record and its last entries. Die after it: nothing is left but the outbox, which the next opener drains.
  const auto done = commit_if(store, vm, lifecycle::Remove{.stopped_by_caller = stopped_by_us, .death = death});
  if (done.race == Race::kGone) throw removed_meanwhile("remove", vm);
  if (done.race != Race::kWon) return false;
  // 5. The memory it was hibernated with. Die before it: a kept snapshot that no VM names; reconcile removes it.
  if (!vm.kept_snapshot_id.empty()) drop_kept(vm.kept_snapshot_id);
  return true;
}

void Backend::remove_one(const std::string& id, bool force, system::Cancel& cancel) {
  // With force it is not waited for, but taken if it is free: gc and reconcile pass by what is locked, and would
  // otherwise find the VMM that we have killed dead, and bill a crash.
  auto lock = force ? OpLock::try_acquire(*node_, id) : OpLock(*node_, id, cancel);
  with_lock(std::move(lock), [&] {
    std::vector<system::ProcessIdentity> killed;
    const auto give_up = std::chrono::steady_clock::now() + kPatience;
    while (!try_remove(id, force, give_up, killed, cancel)) cancel.check();
    system::remove_file(node_->op_lock_path(id));
  });
}

}  // namespace cocoon::engine
