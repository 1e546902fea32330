#include "cocoon/vmm/qemu.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/vmm/host_tsc.h"
#include "cocoon/vmm/kvm_probe.h"
#include "cocoon/vmm/qemu_session.h"
#include "cocoon/vmm/qmp.h"

namespace cocoon::vmm {
namespace {

using lifecycle::VmRecord;
using std::chrono::milliseconds;
using system::Cancel;
using system::Path;

// A QEMU built without seccomp refuses -sandbox with words that no other one contains, and there is no other way of
// asking it than to run it (30 ms at each start). Unknown words: -sandbox is given, and QEMU's refusal is in its log.
bool contains_no_sandbox(const Path& binary) {
  constexpr std::string_view kWords = "-sandbox support is not enabled in this QEMU";
  std::ifstream file(binary, std::ios::binary);
  std::string piece(1 << 20, '\0');
  for (std::size_t kept = 0; file;) {
    file.read(piece.data() + kept, static_cast<std::streamsize>(piece.size() - kept));
    const std::string_view seen(piece.data(), kept + static_cast<std::size_t>(file.gcount()));
    if (seen.find(kWords) != std::string_view::npos) return true;
    kept = std::min(seen.size(), kWords.size() - 1);
    piece.replace(0, kept, seen.substr(seen.size() - kept));
  }
  return false;
}

bool knows_sandbox(const Path& binary) {
  static std::mutex mutex;
  static std::map<std::pair<Path, std::filesystem::file_time_type>, bool> known;  // guarded by mutex
  std::error_code error;
  const auto changed = std::filesystem::last_write_time(binary, error);
  if (error) return true;  // it cannot be started either
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace({binary, changed}, true);
  if (is_new) entry->second = !contains_no_sandbox(binary);
  return entry->second;
}

// Errors VmmError: there is no guest. "stop" would hide that it never booted, and "system_powerdown" be accepted
// without anybody to hear of it.
bool is_guest_paused(Qmp& qmp) {
  const std::string status = status_of(qmp);
  return is_paused(meaning_of(status),
                   VmmError(fmt::format("the guest is not running (QEMU says '{}')", status), 0, status));
}

}  // namespace

Qemu::Qemu(std::function<QemuHost(const Path&)> host) : host_(std::move(host)) {
  if (!host_) {
    host_ = [](const Path& binary) {
      return QemuHost{.kvm = kvm_status().usable, .sandbox = knows_sandbox(binary), .tsc_khz = host_tsc_khz()};
    };
  }
}

void Qemu::check(const lifecycle::VmConfig& config) const { check_qemu_config(config); }

Command Qemu::command(const VmRecord& vm, const Path& binary) const {
  return {.argv = qemu_argv(vm, binary, host_(binary)), .environment = {}};
}

std::vector<std::string> Qemu::runtime_files() const { return {std::string(kQmpSocket), std::string(kConsoleSocket)}; }

Path Qemu::api_socket(const VmRecord& vm) const { return Path(vm.run_dir) / kQmpSocket; }

Path Qemu::console(const VmRecord& vm) const { return Path(vm.run_dir) / kConsoleSocket; }

std::optional<Path> Qemu::console_log(const VmRecord& vm) const { return Path(vm.log_dir) / kConsoleLog; }

std::optional<Path> Qemu::vsock(const VmRecord&) const { return std::nullopt; }

Path Qemu::log(const VmRecord& vm) const { return Path(vm.log_dir) / kQemuLog; }

bool Qemu::owns(const system::ProcessInfo& process, std::string_view vm_id, const Path& run_dir) const {
  return is_qemu_argv(process.argv, vm_id) && works_in(process, run_dir);
}

void Qemu::boot(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("boot", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    check_owner(qmp, vm, api_socket(vm));
    const std::string status = status_of(qmp);
    if (status != "prelaunch") {
      throw VmmError(fmt::format("QEMU is not waiting to boot (it says '{}')", status), 0, status);
    }
    qmp.execute("cont");
  });
}

GuestState Qemu::guest_state(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  return about("state of", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    return meaning_of(status_of(qmp));
  });
}

void Qemu::pause(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("pause", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    if (!is_guest_paused(qmp)) qmp.execute("stop");
  });
}

void Qemu::resume(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("resume", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    if (is_guest_paused(qmp)) qmp.execute("cont");
  });
}

void Qemu::request_power_off(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("power off", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    if (is_guest_paused(qmp)) qmp.execute("cont");
    qmp.execute("system_powerdown");
  });
}

bool Qemu::quit(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("quit", vm, [&] { Qmp::connect(api_socket(vm), timeout, cancel).execute_last("quit"); });
  return true;
}

}  // namespace cocoon::vmm
