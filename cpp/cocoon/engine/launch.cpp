// A VMM from its spawn to its API's answer, and what is undone when the sequence that wanted it fails.

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;

constexpr auto kLoadTimeout = 10min;  // memory is read from a disk
constexpr auto kLockTimeout = 3s;     // of somebody who removes the VM
constexpr std::size_t kLogLines = 20;

// Each run has logs of its own; those of the run before stay beside them.
void rotate_log(const system::Path& log) {
  auto old = log;
  old += ".1";
  if (::rename(log.c_str(), old.c_str()) != 0 && errno != ENOENT)
    throw StoreError(system_message("rename " + log.string(), errno), log.string(), errno);
}

}  // namespace

void Backend::remove_runtime_files(const VmRecord& vm, std::initializer_list<const char*> more) const {
  auto names = driver_->runtime_files();
  names.insert(names.end(), more.begin(), more.end());
  system::remove_files(vm.run_dir, names);
}

void Backend::report_death(const VmRecord& vm, std::string_view verb, const std::string& when) const {
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
  throw VmmError(fmt::format("{} {}: {} ended {} ({}){}{}", verb, vm.config.name, hypervisor(), when,
                             exit ? exit->describe() : "how is not known",
                             tail.empty() ? "; its log is empty" : "; last lines of its log: ", tail),
                 0, {}, tail);
}

void Backend::explain(const VmRecord& vm, std::string_view verb, std::string_view when, const Error& error) const {
  const auto* of_vmm = dynamic_cast<const VmmError*>(&error);
  if ((of_vmm != nullptr && of_vmm->status != 0) || !vm.process) return;  // it has answered
  // Its sockets close before it is dead.
  system::Cancel never;
  const auto process = system::Pidfd::open(from_record(*vm.process));
  if (process && !process->wait(of_vmm != nullptr ? kDying : 0ms, never)) return;
  // Who removes a VM has its lock: the VMM goes, then the folder, in a moment the record.
  const auto deadline = std::chrono::steady_clock::now() + kLockTimeout;
  while (system::FileLock::look(system::Path(vm.run_dir) / kLockFile) != system::FileLock::State::kFree) {
    const auto now = find_vm(node_->store(), vm.id);
    if (!now) throw removed_meanwhile(verb, vm);
    if (probe(*driver_, *now).remnant || std::chrono::steady_clock::now() >= deadline) break;
    system::pause_for(1ms, never);
  }
  if (of_vmm != nullptr) report_death(vm, verb, fmt::format("{} ({})", when, error.what()));
}

void Backend::wait_for_api(const VmRecord& vm, std::string_view verb, const system::Pidfd& process,
                           system::Cancel& cancel) const {
  const auto begin = std::chrono::steady_clock::now();
  const auto deadline = begin + options_.socket_timeout;
  for (;;) {
    // Asked, not only connected to: a socket that we have bound takes connections before there is anybody to answer.
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    try {
      (void)driver_->guest_state(vm, std::max(left, 1ms), cancel);
      return;
    } catch (const VmmError& error) {
      // That it is late, or its time is up, is seen below.
      const bool late = dynamic_cast<const VmmTimeout*>(&error) != nullptr;
      if (!late && (error.status != 0 || !error.body.empty())) throw;  // it has answered
    }
    // The wait for its death is the pause between two looks: short against what it has taken so far.
    const auto pause = std::clamp<std::chrono::nanoseconds>((std::chrono::steady_clock::now() - begin) / 8, 100us, 1ms);
    if (process.wait(pause, cancel)) report_death(vm, verb, "before its API socket answered");
    // Spawned just after a removal had looked for processes, it has lost its socket with its folder.
    if (std::error_code ignored; !std::filesystem::exists(vm.run_dir, ignored)) throw removed_meanwhile(verb, vm);
    if (std::chrono::steady_clock::now() >= deadline) {
      auto tail = system::tail_text(driver_->log(vm), kLogLines);
      throw VmmTimeout(
          fmt::format("{} {}: the API socket of {} did not answer within {} ms{}{}", verb, vm.config.name, hypervisor(),
                      options_.socket_timeout.count(), tail.empty() ? "" : "; last lines of its log: ", tail),
          0, {}, tail);
    }
  }
}

system::FileLock Backend::lock_run_dir(const VmRecord& vm, std::string_view verb, system::Cancel& cancel) const {
  const auto path = system::Path(vm.run_dir) / kLockFile;
  const auto deadline = std::chrono::steady_clock::now() + kLockTimeout;
  for (bool first = true;; first = false) {
    std::error_code ignored;
    try {
      if (auto lock = system::FileLock::try_acquire(path)) return *std::move(lock);
      if (first) kill_remnants(*driver_, vm);
    } catch (const StoreError&) {
      if (std::filesystem::exists(path.parent_path(), ignored)) throw;
    }
    // No VMM was found alive, so it is somebody who removes the VM: first the folder goes, in a moment the record.
    if (!find_vm(node_->store(), vm.id)) throw removed_meanwhile(verb, vm);
    if (std::chrono::steady_clock::now() >= deadline)
      throw Inconclusive(fmt::format("{} {}: {} is held by another process, so a VMM of it may be alive", verb,
                                     vm.config.name, path.string()));
    system::pause_for(1ms, cancel);
  }
}

system::ProcessIdentity Backend::launch(const VmRecord& vm, const vmm::Saved* saved, std::string_view verb,
                                        system::Cancel& cancel) {
  const system::Path run_dir = vm.run_dir;
  const auto program = binary();
  make_vm_dirs(vm);
  // Held by us until the VMM has inherited it, then by the VMM alone.
  const auto lock = lock_run_dir(vm, verb, cancel);
  // A socket or exit file of an earlier run would be taken for this one's.
  remove_runtime_files(vm, {kExitFile, kSavingFile});
  rotate_log(driver_->log(vm));
  if (const auto printed = driver_->console_log(vm)) rotate_log(*printed);

  const auto command = saved != nullptr ? driver_->load_command(vm, program, *saved) : driver_->command(vm, program);
  system::SpawnSpec spec;
  spec.argv = command.argv;
  spec.environment = system::base_environment();
  spec.environment.insert(spec.environment.end(), command.environment.begin(), command.environment.end());
  spec.working_dir = run_dir;
  spec.output = driver_->log(vm);
  spec.stdin_fd = command.input.get();
  spec.stdout_fd = command.output.get();
  for (const auto& fd : command.passed) spec.pass_fds.push_back(fd.get());
  spec.exit_file = run_dir / kExitFile;
  spec.network_namespace = vm.config.network_namespace;
  spec.lock_fd = lock.fd();
  cancel.check();
  return system::spawn(node_->shim(), spec);
}

system::ProcessIdentity Backend::launch_saved(const VmRecord& vm, const vmm::Saved& saved, std::string_view verb,
                                              system::Cancel& cancel) {
  const auto process = launch(vm, &saved, verb, cancel);
  try {
    const auto pidfd = system::Pidfd::open(process);
    if (!pidfd) report_death(vm, verb, "at once");
    wait_for_api(vm, verb, *pidfd, cancel);
    try {
      driver_->load(vm, saved, kLoadTimeout, cancel);
    } catch (const VmmError& error) {
      // A VMM that cannot load what it was given may end: what it said before says more than how it ended.
      if (!pidfd->wait(kDying, cancel)) throw;
      report_death(vm, verb, fmt::format("while it loaded the snapshot ({})", error.what()));
    }
    if (pidfd->wait(0ms, cancel)) report_death(vm, verb, "as soon as it had loaded the snapshot");
  } catch (...) {
    discard(vm, verb, process);
    throw;
  }
  return process;
}

void Backend::discard(const VmRecord& vm, std::string_view verb,
                      const system::ProcessIdentity& process) const noexcept {
  try {
    kill_vmm(*driver_, vm, process);
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
    spdlog::error("{} {}: undoing it (VMM pid {}): {}", verb, vm.config.name, process.pid, error.what());
  }
}

bool Backend::forget_if_removed(const VmRecord& vm, std::string_view verb) const noexcept {
  try {
    if (find_vm(node_->store(), vm.id)) return false;
    // Whoever removed it removed its folders before we were done with them.
    system::remove_tree(vm.run_dir);
    system::remove_tree(vm.log_dir);
    return true;
  } catch (const std::exception& error) {
    spdlog::warn("{} {}: removing its folders: {}", verb, vm.config.name, error.what());
    return false;
  }
}

}  // namespace cocoon::engine
