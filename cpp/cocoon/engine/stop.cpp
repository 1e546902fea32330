// stop: dead already? → ask the guest → ask the VMM → SIGTERM → SIGKILL → mark stopped.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/error.h"
#include "cocoon/system/clock.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using lifecycle::VmState;

constexpr auto kAskTimeout = 2s;
constexpr auto kPowerOffTimeout = 4s;  // it may be three requests

}  // namespace

void Backend::shut_down(const VmRecord& vm, const system::Pidfd& process, const StopOptions& options,
                        system::Cancel& cancel) {
  if (options.force) {
    system::kill_now(process);
    return;
  }
  // Each step is tried only because the one before it did not end the VMM; why it did not is of no consequence.
  const auto tried = [&](std::string_view step, auto&& ask, std::chrono::milliseconds wait) {
    try {
      ask();
    } catch (const VmmError& error) {
      spdlog::info("stop {}: {}: {}", vm.config.name, step, error.what());
      return process.wait(0ms, cancel);
    }
    return process.wait(wait, cancel);
  };
  const auto timeout = options.timeout.value_or(options_.stop_timeout);
  const auto power_off = [&] { driver_->request_power_off(vm, kPowerOffTimeout, cancel); };
  if (timeout > 0ms && tried("asking the guest to power off", power_off, timeout)) return;
  bool quitting = false;
  if (tried("asking the VMM to quit", [&] { quitting = driver_->quit(vm, kAskTimeout, cancel); }, 0ms)) return;
  if (quitting && process.wait(options_.terminate_grace, cancel)) return;
  system::terminate(process, options_.terminate_grace, cancel);
}

void Backend::stop_one(const std::string& id, const StopOptions& options, system::Cancel& cancel) {
  with_op_lock(*node_, id, cancel, [&] { stop_locked(id, options, cancel); });
}

void Backend::stop_locked(const std::string& id, const StopOptions& options, system::Cancel& cancel) {
  auto& store = node_->store();
  std::optional<lifecycle::ProcessIdentity> ended;  // by this call
  for (;;) {
    cancel.check();
    const auto vm = load_vm(store, id);
    if (vm.state == VmState::kCreating)
      throw InvalidState(fmt::format("stop {}: it is still being created", vm.config.name), "creating");
    const auto alive = settle(*driver_, vm, "stop", cancel);
    Committed done;
    if (alive.life == Life::kDead) {
      // Dead before we asked: it crashed, whenever that was. Ended by us while somebody else committed: stopped.
      const bool ended_by_us = ended && vm.process == ended;
      const bool can_be_stopped =
          vm.state == VmState::kCreated || vm.state == VmState::kError || vm.state == VmState::kRunning;
      if (vm.compute_open() && !ended_by_us) {
        done = commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)});
        if (done.race == Race::kWon && done.record->state == VmState::kError) continue;
      } else if (vm.compute_open() || can_be_stopped) {
        done = commit_if(store, vm, lifecycle::MarkStopped{});
      }
    } else if (vm.compute_open() && vm.process && *vm.process != to_record(*alive.process)) {
      // The interval is another VMM's, and that one is dead: it is closed as such before this one is stopped.
      done = commit_if(store, vm, lifecycle::FoundDead{.death = find_death(vm)});
      if (done.race == Race::kWon) continue;
    } else {
      const auto asked_at = system::system_clock().uptime_ns();
      try {
        const auto process = system::Pidfd::open(*alive.process);
        if (!process) continue;  // it died by itself a moment ago: found dead, not stopped
        shut_down(vm, *process, options, cancel);
      } catch (const Cancelled&) {
        // The guest may have obeyed all the same: then it was stopped, whoever stopped waiting for it.
        if (probe(*driver_, vm).life == Life::kDead) commit_if(store, vm, lifecycle::MarkStopped{});
        throw;
      } catch (...) {
        try {
          commit_if(store, vm, lifecycle::MarkError{});
        } catch (const std::exception& error) {
          spdlog::warn("stop {}: it could not be marked as failed: {}", vm.config.name, error.what());
        }
        throw;
      }
      // Die here: the VMM is dead and its interval open; whoever looks next closes it, dated by the shim's stamp.
      const auto death = find_death(vm);
      const bool crashed = death && vm.compute_open() && death->at.uptime_ns < asked_at;
      if (!crashed) ended = to_record(*alive.process);
      done = crashed ? commit_if(store, vm, lifecycle::FoundDead{.death = death})
                     : commit_if(store, vm, lifecycle::MarkStopped{});
    }
    if (done.race == Race::kGone) throw removed_meanwhile("stop", vm);
    if (done.race == Race::kChanged) continue;
    kill_remnants(*driver_, vm);
    remove_runtime_files(vm);
    return;
  }
}

}  // namespace cocoon::engine
