#include "cocoon/engine/liveness.h"

#include <chrono>
#include <filesystem>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/error.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/clock.h"
#include "cocoon/system/file.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;

// The recorded process, if it still exists (also as a zombie).
std::optional<system::ProcessInfo> find_recorded(const lifecycle::VmRecord& vm) {
  if (!vm.process || vm.process->boot_id != system::system_clock().boot_id()) return std::nullopt;
  const auto identity = from_record(*vm.process);
  auto found = system::find_process(identity.pid);
  if (!found || !(found->identity == identity)) return std::nullopt;
  return found;
}

// The recorded process while it is more than a zombie. One that is dying has lost its memory, and with it its argv, but
// not yet its lock: it is waited for, since for these milliseconds nothing true can be said of it.
std::optional<system::ProcessInfo> find_recorded_alive(const lifecycle::VmRecord& vm) {
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  system::Cancel never;
  for (;;) {
    auto found = find_recorded(vm);
    if (!found || found->zombie()) return std::nullopt;
    if (!found->argv.empty() || std::chrono::steady_clock::now() >= deadline) return found;
    system::pause_for(200us, never);
  }
}

// Whether `found`, which looks like the VM's VMM, is only what that had forked. Each spawn begins with the removal of
// the exit file: one that is there is that of the last VMM.
bool is_remnant(const lifecycle::VmRecord& vm, const system::ProcessIdentity& found) {
  const auto exit = system::find_exit_record(system::Path(vm.run_dir) / kExitFile);
  if (!exit || exit->identity == found || (vm.process && exit->identity != from_record(*vm.process))) return false;
  return exit->identity.boot_id == found.boot_id && exit->identity.start_ticks <= found.start_ticks;
}

}  // namespace

lifecycle::ProcessIdentity to_record(const system::ProcessIdentity& process) {
  return {.pid = process.pid, .start_ticks = process.start_ticks, .boot_id = process.boot_id};
}

system::ProcessIdentity from_record(const lifecycle::ProcessIdentity& process) {
  return {.pid = static_cast<pid_t>(process.pid), .start_ticks = process.start_ticks, .boot_id = process.boot_id};
}

bool is_vmm_of(const vmm::Driver& driver, const system::ProcessInfo& process, const std::string& vm_id,
               const system::Path& run_dir) {
  if (process.zombie() || !driver.owns(process, vm_id, run_dir)) return false;
  // spawn() hands the lock on as descriptor 3. The name stays in the link when the file is unlinked.
  std::error_code error;
  const auto lock =
      std::filesystem::read_symlink(fmt::format("/proc/{}/fd/{}", process.identity.pid, system::kLockFd), error);
  const auto expected = (run_dir / kLockFile).string();
  return !error && (lock == expected || lock == expected + " (deleted)");
}

std::vector<system::ProcessInfo> find_processes(const vmm::Driver& driver, const lifecycle::VmRecord& vm) {
  return system::scan_processes(
      [&](const system::ProcessInfo& process) { return is_vmm_of(driver, process, vm.id, vm.run_dir); });
}

Liveness probe(const vmm::Driver& driver, const lifecycle::VmRecord& vm) {
  try {
    const auto recorded = find_recorded_alive(vm);
    if (recorded && driver.owns(*recorded, vm.id, vm.run_dir))
      return {.life = Life::kAlive, .process = recorded->identity, .remnant = {}, .why = {}};

    const system::Path lock = system::Path(vm.run_dir) / kLockFile;
    const auto state = system::FileLock::look(lock);
    const bool held = state == system::FileLock::State::kHeld;
    // Without the file nobody can tell by it: somebody removed the folder, perhaps under a living VMM.
    if (state == system::FileLock::State::kFree || (!held && vm.state == lifecycle::VmState::kCreating)) return {};
    const auto found = find_processes(driver, vm);
    if (!found.empty()) {
      const auto& process = found.front().identity;
      if (is_remnant(vm, process)) return {.process = {}, .remnant = process, .why = {}};
      return {.life = Life::kAlive, .process = process, .remnant = {}, .why = {}};
    }
    // Its first thread may be a zombie while the others, and the lock with them, still go: they are waited for.
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    system::Cancel never;
    while (held && system::FileLock::is_held(lock)) {
      const auto dying = find_recorded(vm);
      if (!dying || std::chrono::steady_clock::now() >= deadline)
        return {.life = Life::kUnknown,
                .process = {},
                .remnant = {},
                .why = fmt::format("{} is held by a process that is not found in /proc", lock.string())};
      system::pause_for(200us, never);
    }
    return {};
  } catch (const Inconclusive& error) {
    return {.life = Life::kUnknown, .process = {}, .remnant = {}, .why = error.what()};
  } catch (const StoreError& error) {
    return {.life = Life::kUnknown, .process = {}, .remnant = {}, .why = error.what()};
  }
}

Liveness settle(const vmm::Driver& driver, const lifecycle::VmRecord& vm, std::string_view verb,
                system::Cancel& cancel) {
  const auto deadline = std::chrono::steady_clock::now() + 3s;
  for (;;) {
    auto alive = probe(driver, vm);
    if (alive.life != Life::kUnknown) return alive;
    if (std::chrono::steady_clock::now() >= deadline)
      throw Inconclusive(
          fmt::format("{} {}: cannot tell whether its VMM is alive: {}", verb, vm.config.name, alive.why));
    system::pause_for(1ms, cancel);
  }
}

std::optional<vmm::GuestState> find_guest_state(const vmm::Driver& driver, const lifecycle::VmRecord& vm,
                                                const system::ProcessIdentity& process,
                                                std::chrono::milliseconds timeout, system::Cancel& cancel) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    try {
      return driver.guest_state(vm, timeout, cancel);
    } catch (const VmmError&) {
      // It hung up: because it is dying, or because it does not listen yet.
      const auto pidfd = system::Pidfd::open(process);
      if (!pidfd || pidfd->wait(20ms, cancel)) return std::nullopt;
      if (std::chrono::steady_clock::now() >= deadline) throw;
    }
  }
}

std::optional<lifecycle::Death> find_death(const lifecycle::VmRecord& vm) {
  if (!vm.process) return std::nullopt;
  const system::Path file = system::Path(vm.run_dir) / kExitFile;
  const auto read = [&]() -> std::optional<lifecycle::Death> {
    const auto exit = system::find_exit_record(file);
    if (!exit || !(exit->identity == from_record(*vm.process))) return std::nullopt;
    return lifecycle::Death{
        .at = {.wall_ns = exit->wall_ns, .uptime_ns = exit->uptime_ns, .boot_id = exit->identity.boot_id},
        .evidence = "shim"};
  };
  // The parent stamps the death within a millisecond and reaps afterwards: while anything of it is left, the line is
  // coming.
  const auto deadline = std::chrono::steady_clock::now() + 500ms;
  system::Cancel never;
  for (;;) {
    if (auto death = read()) return death;
    const auto recorded = find_recorded(vm);
    if (!recorded) return read();
    if (std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    system::pause_for(100us, never);
  }
}

bool kill_process(const system::ProcessIdentity& process) {
  bool alive = false;
  if (const auto pidfd = system::Pidfd::open(process)) {
    system::Cancel cancel;
    alive = !pidfd->wait(0ms, cancel);
    if (alive) system::kill_now(*pidfd);
  }
  // Its parent stamps the death into the run dir and reaps: until then the folder is not ours alone.
  const auto deadline = std::chrono::steady_clock::now() + 500ms;
  system::Cancel never;
  for (;;) {
    const auto found = system::find_process(process.pid);
    if (!found || !(found->identity == process) || std::chrono::steady_clock::now() >= deadline) return alive;
    system::pause_for(100us, never);
  }
}

bool kill_vmm(const vmm::Driver& driver, const lifecycle::VmRecord& vm, const system::ProcessIdentity& process) {
  const bool killed = kill_process(process);
  kill_remnants(driver, vm);
  return killed;
}

void kill_remnants(const vmm::Driver& driver, const lifecycle::VmRecord& vm) {
  if (!system::FileLock::is_held(system::Path(vm.run_dir) / kLockFile)) return;
  for (const auto& remnant : find_processes(driver, vm)) {
    spdlog::info("{}: killing process {}, which its VMM had forked", vm.config.name, remnant.identity.pid);
    // It is no child of the shim: nobody stamps its death, and who reaps it is not known.
    if (const auto pidfd = system::Pidfd::open(remnant.identity)) system::kill_now(*pidfd);
  }
}

}  // namespace cocoon::engine
