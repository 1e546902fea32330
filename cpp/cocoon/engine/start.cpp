// start: is it alive already? → found dead → clean → spawn → wait for the API → boot → mark started.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/paused_guest.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using lifecycle::VmState;

constexpr auto kApiTimeout = 10s;

void refuse_unstartable(const VmRecord& vm) {
  const auto refuse = [&](std::string_view why) {
    throw InvalidState(fmt::format("start {}: {}", vm.config.name, why), std::string(to_string(vm.state)));
  };
  if (vm.state == VmState::kCreating) refuse("it is still being created");
  if (vm.state == VmState::kHibernated) refuse("it is hibernated, wake it");
  if (vm.dirty) refuse("a failed restore left its files mixed, restore it from a snapshot");
}

}  // namespace

void Backend::start_one(const std::string& id, system::Cancel& cancel) {
  with_op_lock(*node_, id, cancel, [&] { start_locked(id, cancel); });
}

void Backend::start_locked(const std::string& id, system::Cancel& cancel) {
  auto& store = node_->store();
  VmRecord vm;
  for (;;) {
    cancel.check();
    vm = load_vm(store, id);
    refuse_unstartable(vm);
    const auto alive = settle(*driver_, vm, "start", cancel);
    if (alive.life == Life::kAlive) {
      const auto guest = find_guest_state(*driver_, vm, *alive.process, kApiTimeout, cancel);
      if (!guest) continue;  // it died while it was asked
      if (guest == vmm::GuestState::kNotBooted || guest == vmm::GuestState::kEnded) {
        // Half made by a starter that died, or its guest is over: existing is not running.
        kill_vmm(*driver_, vm, *alive.process);
        continue;
      }
      PausedGuest::rescue(*driver_, vm, cancel);
      const auto process = to_record(*alive.process);
      if (vm.state == VmState::kRunning && vm.compute_open() && vm.process == process) return;
      if (vm.compute_open() && vm.process && vm.process != process) {
        // The interval is another VMM's, and that one is dead: it must not be billed until this one ends.
        commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)});
        continue;
      }
      if (commit_if(store, vm, lifecycle::FoundAlive{.process = process}).race == Race::kWon) return;
      continue;
    }
    if (!vm.compute_open()) break;
    // Lost or won, the record is read again: what follows is decided from what it says then.
    commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)});
  }

  try {
    run_vmm(vm, cancel);
  } catch (const Cancelled&) {
    forget_if_removed(vm, "start");
    throw;
  } catch (const Error&) {
    if (forget_if_removed(vm, "start")) throw removed_meanwhile("start", vm);
    throw;
  }
}

void Backend::run_vmm(const VmRecord& vm, system::Cancel& cancel) {
  // 1. Spawn. Die here: a VMM whose guest was never let run; start and reconcile kill it, nothing is billed.
  const auto process = launch(vm, nullptr, "start", cancel);
  try {
    const auto pidfd = system::Pidfd::open(process);
    if (!pidfd) report_death(vm, "start", "at once");
    wait_for_api(vm, "start", *pidfd, cancel);
    // 2. The guest runs. Die here: reconcile finds it alive and running, and bills it from then on.
    try {
      driver_->boot(vm, kApiTimeout, cancel);
    } catch (const VmmError&) {
      if (pidfd->wait(kDying, cancel)) report_death(vm, "start", "while it was told to boot");
      throw;
    }
    // A guest that is over already never ran: its interval would begin after its end.
    if (pidfd->wait(0ms, cancel)) report_death(vm, "start", "as soon as it was told to boot");
    // 3. State, identity and compute.start in one transaction. Die after it: the next drain appends the line.
    const auto done = commit_if(node_->store(), vm, lifecycle::MarkStarted{.process = to_record(process)});
    if (done.race == Race::kWon) return;
    if (done.race == Race::kGone) throw removed_meanwhile("start", vm);
    const auto& now = *done.record;
    if (now.state == VmState::kRunning && now.compute_open() && now.process == to_record(process))
      return;  // somebody who saw it run has said so before us
    throw changed_meanwhile("start", now, "what was started is stopped");
  } catch (const NotFound&) {
    discard(vm, "start", process);
    throw;
  } catch (const InvalidState&) {
    discard(vm, "start", process);
    throw;
  } catch (const Cancelled&) {
    discard(vm, "start", process);  // and the VM is as it was
    throw;
  } catch (...) {
    discard(vm, "start", process);
    try {
      // A lost race needs no mark: whoever won has said what the VM is now.
      commit_if(node_->store(), vm, lifecycle::MarkError{});
    } catch (const std::exception& error) {
      spdlog::warn("start {}: it could not be marked as failed: {}", vm.config.name, error.what());
    }
    throw;
  }
}

}  // namespace cocoon::engine
