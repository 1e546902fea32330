// start: is it alive already? → found dead → clean → spawn → wait for the API → boot → mark started.

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using lifecycle::VmState;

constexpr auto kApiTimeout = 10s;
constexpr std::size_t kLogLines = 20;

void refuse_unstartable(const VmRecord& vm) {
  const auto refuse = [&](std::string_view why) {
    throw InvalidState(fmt::format("start {}: {}", vm.config.name, why), std::string(to_string(vm.state)));
  };
  if (vm.state == VmState::kCreating) refuse("it is still being created");
  if (vm.state == VmState::kHibernated) refuse("it is hibernated, wake it");
  if (vm.dirty) refuse("a failed restore left its files mixed, restore it from a snapshot");
}

// Each run has logs of its own; those of the run before stay beside them.
void rotate_log(const system::Path& log) {
  auto old = log;
  old += ".1";
  if (::rename(log.c_str(), old.c_str()) != 0 && errno != ENOENT)
    throw StoreError(system_message("rename " + log.string(), errno), log.string(), errno);
}

// The short list of what a VMM may know of our environment.
std::vector<std::string> base_environment() {
  std::vector<std::string> environment;
  for (const char* name : {"PATH", "TMPDIR", "LD_LIBRARY_PATH"})
    if (const char* value = std::getenv(name)) environment.push_back(fmt::format("{}={}", name, value));
  environment.emplace_back("LANG=C.UTF-8");
  return environment;
}

}  // namespace

void Backend::remove_runtime_files(const VmRecord& vm) const {
  for (const auto& name : driver_->runtime_files()) system::remove_file(system::Path(vm.run_dir) / name);
}

void Backend::report_death(const VmRecord& vm, const std::string& when) const {
  // Its parent writes how it died a moment after it did.
  const auto exit_file = system::Path(vm.run_dir) / kExitFile;
  const auto deadline = std::chrono::steady_clock::now() + 250ms;
  system::Cancel never;
  auto exit = system::find_exit_record(exit_file);
  while (!exit && std::chrono::steady_clock::now() < deadline) {
    system::pause_for(1ms, never);
    exit = system::find_exit_record(exit_file);
  }
  auto tail = system::tail_text(driver_->log(vm), kLogLines);
  throw VmmError(fmt::format("start {}: {} ended {} ({}){}{}", vm.config.name, hypervisor(), when,
                             exit ? exit->describe() : "how is not known",
                             tail.empty() ? "; its log is empty" : "; last lines of its log: ", tail),
                 0, {}, tail);
}

void Backend::wait_for_api(const VmRecord& vm, const system::Pidfd& process, system::Cancel& cancel) const {
  const auto deadline = std::chrono::steady_clock::now() + options_.socket_timeout;
  for (;;) {
    // Asked, not only connected to: a socket that we have bound takes connections before there is anybody to answer.
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    try {
      (void)driver_->guest_state(vm, std::max(left, 1ms), cancel);
      return;
    } catch (const VmmTimeout&) {
      // It is late, or its time is up: both are seen below.
    } catch (const VmmError& error) {
      if (error.status != 0 || !error.body.empty()) throw;  // it has answered
    }
    // The wait for its death is the pause between two looks.
    if (process.wait(1ms, cancel)) report_death(vm, "before its API socket answered");
    if (std::chrono::steady_clock::now() >= deadline) {
      auto tail = system::tail_text(driver_->log(vm), kLogLines);
      throw VmmTimeout(
          fmt::format("start {}: the API socket of {} did not answer within {} ms{}{}", vm.config.name, hypervisor(),
                      options_.socket_timeout.count(), tail.empty() ? "" : "; last lines of its log: ", tail),
          0, {}, tail);
    }
  }
}

system::ProcessIdentity Backend::launch(const VmRecord& vm, system::Cancel& cancel) {
  const system::Path run_dir = vm.run_dir;
  const auto program = binary();
  make_vm_dirs(vm);
  // A socket or exit file of an earlier run would be taken for this one's.
  remove_runtime_files(vm);
  system::remove_file(run_dir / kExitFile);
  rotate_log(driver_->log(vm));
  if (const auto printed = driver_->console_log(vm)) rotate_log(*printed);

  const auto command = driver_->command(vm, program);
  system::SpawnSpec spec;
  spec.argv = command.argv;
  spec.environment = base_environment();
  spec.environment.insert(spec.environment.end(), command.environment.begin(), command.environment.end());
  spec.working_dir = run_dir;
  spec.output = driver_->log(vm);
  spec.stdin_fd = command.input.get();
  spec.stdout_fd = command.output.get();
  for (const auto& fd : command.passed) spec.pass_fds.push_back(fd.get());
  spec.exit_file = run_dir / kExitFile;
  spec.network_namespace = vm.config.network_namespace;
  // Held by us until the VMM has inherited it, then by the VMM alone.
  const auto lock = system::FileLock::try_acquire(run_dir / kLockFile);
  if (!lock)
    throw Inconclusive(fmt::format("start {}: {} is held by another process, so a VMM of it may be alive",
                                   vm.config.name, (run_dir / kLockFile).string()));
  spec.lock_fd = lock->fd();
  cancel.check();
  return system::spawn(node_->shim(), spec);
}

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
        kill_process(*alive.process);
        continue;
      }
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
    forget_if_removed(vm);
    throw;
  } catch (const Error&) {
    if (forget_if_removed(vm)) throw NotFound(fmt::format("start {}: it was removed meanwhile", vm.config.name), id);
    throw;
  }
}

void Backend::run_vmm(const VmRecord& vm, system::Cancel& cancel) {
  // 1. Spawn. Die here: a VMM whose guest was never let run; start and reconcile kill it, nothing is billed.
  const auto process = launch(vm, cancel);
  try {
    const auto pidfd = system::Pidfd::open(process);
    if (!pidfd) report_death(vm, "at once");
    wait_for_api(vm, *pidfd, cancel);
    // 2. The guest runs. Die here: reconcile finds it alive and running, and bills it from then on.
    try {
      driver_->boot(vm, kApiTimeout, cancel);
    } catch (const VmmError&) {
      if (pidfd->wait(200ms, cancel)) report_death(vm, "while it was told to boot");
      throw;
    }
    // A guest that is over already never ran: its interval would begin after its end.
    if (pidfd->wait(0ms, cancel)) report_death(vm, "as soon as it was told to boot");
    // 3. State, identity and compute.start in one transaction. Die after it: the next drain appends the line.
    const auto done = commit_if(node_->store(), vm, lifecycle::MarkStarted{.process = to_record(process)});
    if (done.race == Race::kWon) return;
    if (done.race == Race::kGone)
      throw NotFound(fmt::format("start {}: it was removed meanwhile", vm.config.name), vm.id);
    const auto& now = *done.record;
    if (now.state == VmState::kRunning && now.compute_open() && now.process == to_record(process))
      return;  // somebody who saw it run has said so before us
    throw InvalidState(fmt::format("start {}: it was changed meanwhile and is {} now, so what was started is stopped",
                                   vm.config.name, to_string(now.state)),
                       std::string(to_string(now.state)));
  } catch (const NotFound&) {
    discard(vm, process);
    throw;
  } catch (const InvalidState&) {
    discard(vm, process);
    throw;
  } catch (const Cancelled&) {
    discard(vm, process);  // and the VM is as it was
    throw;
  } catch (...) {
    discard(vm, process);
    try {
      // A lost race needs no mark: whoever won has said what the VM is now.
      commit_if(node_->store(), vm, lifecycle::MarkError{});
    } catch (const std::exception& error) {
      spdlog::warn("start {}: it could not be marked as failed: {}", vm.config.name, error.what());
    }
    throw;
  }
}

void Backend::discard(const VmRecord& vm, const system::ProcessIdentity& process) const noexcept {
  try {
    kill_process(process);
    for (;;) {
      const auto now = find_vm(node_->store(), vm.id);
      if (!now) return;
      if (now->compute_open() && now->process == to_record(process)) {
        // Somebody had billed it already: it must not be billed when it is dead.
        if (commit_if(node_->store(), *now, lifecycle::FoundDead{.death = find_death(*now)}).race == Race::kChanged)
          continue;
      }
      remove_runtime_files(vm);
      return;
    }
  } catch (const std::exception& error) {
    spdlog::error("start {}: undoing it (VMM pid {}): {}", vm.config.name, process.pid, error.what());
  }
}

bool Backend::forget_if_removed(const VmRecord& vm) const noexcept {
  try {
    if (find_vm(node_->store(), vm.id)) return false;
    // Whoever removed it removed its folders before we were done with them.
    system::remove_tree(vm.run_dir);
    system::remove_tree(vm.log_dir);
    return true;
  } catch (const std::exception& error) {
    spdlog::warn("start {}: removing its folders: {}", vm.config.name, error.what());
    return false;
  }
}

}  // namespace cocoon::engine
