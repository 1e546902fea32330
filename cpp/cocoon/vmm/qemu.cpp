#include "cocoon/vmm/qemu.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/vmm/kvm_probe.h"
#include "cocoon/vmm/qmp.h"

namespace cocoon::vmm {
namespace {

using lifecycle::VmConfig;
using lifecycle::VmRecord;
using system::Path;

constexpr std::string_view kApiSocket = "qmp.sock";
constexpr std::string_view kConsoleSocket = "console.sock";
constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kMaxCpu = 288;       // of both machines, see `-machine help` and KVM's limit
constexpr std::int64_t kMinMemory = 4 * kMiB;  // less, and the firmware itself does not fit

// Under TCG on a busy host the kernel can hang while it calibrates its timers against each other: it is told not to.
constexpr std::string_view kTcgMicrovmCmdline = "no_timer_check tsc_early_khz=2500000 lpj=5000000";

bool is_microvm(const VmConfig& config) { return config.machine.empty() || config.machine == "microvm"; }

bool uses_kvm(const VmConfig& config) {
  if (config.accelerator == "kvm") return true;
  return config.accelerator.empty() && kvm_status().usable;
}

// In QEMU's option lists a comma ends a value; a doubled one is a comma.
std::string escaped(std::string_view value) {
  std::string text;
  for (const char c : value) {
    text += c;
    if (c == ',') text += ',';
  }
  return text;
}

// Files of the run dir by their name alone, so that the VM does not depend on where its run dir lies.
std::string name_in(const VmRecord& vm, const std::string& path) {
  const Path file(path);
  return escaped(file.parent_path() == Path(vm.run_dir) ? file.filename().string() : path);
}

std::string kernel_line(const VmConfig& config, bool kvm) {
  auto line = config.cmdline;
  const auto add = [&](std::string_view words) { line += fmt::format("{}{}", line.empty() ? "" : " ", words); };
  if (line.find("console=") == std::string::npos) add("console=ttyS0");
  if (!kvm && is_microvm(config) && line.find("tsc_early_khz=") == std::string::npos) add(kTcgMicrovmCmdline);
  return line;
}

void refuse(std::string_view what, const std::string& value, std::string_view allowed) {
  throw InvalidArgument(fmt::format("{}: {}, allowed with qemu: {}", what, value, allowed));
}

std::string status_of(const VmRecord& vm, Qmp& qmp) {
  const auto status = qmp.call("query-status");
  if (!status.is_object() || !status.contains("status") || !status["status"].is_string())
    throw VmmError(fmt::format("QMP query-status of {}: no status", vm.config.name), 0, status.dump());
  return status["status"].get<std::string>();
}

}  // namespace

void Qemu::check(const VmConfig& config) const {
  if (!is_microvm(config) && config.machine != "q35") refuse("machine", config.machine, "microvm, q35");
  if (!config.accelerator.empty() && config.accelerator != "kvm" && config.accelerator != "tcg")
    refuse("accelerator", config.accelerator, "kvm, tcg, or nothing for whatever runs guests here");
  if (config.cpu > kMaxCpu) refuse("cpu", fmt::format("{}", config.cpu), fmt::format("1 to {}", kMaxCpu));
  if (config.mem_bytes < kMinMemory || config.mem_bytes % kMiB != 0)
    refuse("memory", fmt::format("{} bytes", config.mem_bytes), "4 MiB or more, in whole MiB");
  if (config.kernel.empty() && !config.initrd.empty())
    refuse("initrd", config.initrd, "only together with a kernel");
}

Command Qemu::command(const VmRecord& vm, const Path& binary) const {
  const auto& config = vm.config;
  const bool kvm = uses_kvm(config);
  const bool microvm = is_microvm(config);
  Command command;
  auto& argv = command.argv;
  argv = {binary.string(),
          "-name",
          fmt::format("cocoon-{}", vm.id),
          "-machine",
          microvm ? "microvm" : "q35",
          "-accel",
          kvm ? "kvm" : "tcg,thread=multi",
          "-cpu",
          kvm ? "host" : "max",
          "-smp",
          fmt::format("{}", config.cpu),
          "-m",
          fmt::format("{}M", config.mem_bytes / kMiB),
          "-nodefaults",
          "-no-user-config",
          "-display",
          "none",
          "-no-reboot",
          "-S",
          "-qmp",
          fmt::format("unix:{},server=on,wait=off", kApiSocket),
          "-chardev",
          fmt::format("socket,id=console,path={},server=on,wait=off,logfile={},logappend=on", kConsoleSocket,
                      escaped(console_log(vm).string())),
          "-serial",
          "chardev:console"};
  if (!config.kernel.empty()) {
    argv.insert(argv.end(), {"-kernel", config.kernel, "-append", kernel_line(config, kvm)});
    if (!config.initrd.empty()) argv.insert(argv.end(), {"-initrd", config.initrd});
  }
  const char* const device = microvm ? "virtio-blk-device" : "virtio-blk-pci";
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const auto& disk = config.disks[i];
    argv.insert(argv.end(),
                {"-drive",
                 fmt::format("if=none,id=disk{},file={},format={},readonly={}", i, name_in(vm, disk.path), disk.format,
                             disk.readonly ? "on" : "off"),
                 "-device",
                 fmt::format("{},drive=disk{}{}", device, i,
                             disk.serial.empty() ? "" : fmt::format(",serial={}", escaped(disk.serial)))});
  }
  return command;
}

std::vector<std::string> Qemu::runtime_files() const {
  return {std::string(kApiSocket), std::string(kConsoleSocket)};
}

Path Qemu::api_socket(const VmRecord& vm) const { return Path(vm.run_dir) / kApiSocket; }
Path Qemu::console(const VmRecord& vm) const { return Path(vm.run_dir) / kConsoleSocket; }
Path Qemu::console_log(const VmRecord& vm) const { return Path(vm.log_dir) / "console.log"; }
Path Qemu::log(const VmRecord& vm) const { return Path(vm.log_dir) / "qemu.log"; }

bool Qemu::owns(const system::ProcessInfo& process, std::string_view vm_id, const Path& run_dir) const {
  const auto& argv = process.argv;
  if (argv.empty() || !Path(argv.front()).filename().string().starts_with("qemu-system-")) return false;
  const auto name = std::find(argv.begin(), argv.end(), "-name");
  if (name == argv.end() || name + 1 == argv.end() || name[1] != fmt::format("cocoon-{}", vm_id)) return false;
  return process.cwd == run_dir;
}

GuestState Qemu::guest_state(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp qmp(api_socket(vm), timeout, cancel);
  const auto status = status_of(vm, qmp);
  if (status == "prelaunch" || status == "inmigrate") return GuestState::kNotBooted;
  if (status == "running") return GuestState::kRunning;
  // All the ways in which a guest is there and does not run: told to, saving or moving its state, or out of disk.
  for (const auto* held : {"paused", "suspended", "save-vm", "restore-vm", "finish-migrate", "postmigrate", "debug",
                           "watchdog", "io-error", "colo"})
    if (status == held) return GuestState::kPaused;
  for (const auto* over : {"shutdown", "guest-panicked", "internal-error"})
    if (status == over) return GuestState::kEnded;
  throw VmmError(fmt::format("QMP query-status of {}: unknown status '{}'", vm.config.name, status), 0, status);
}

void Qemu::boot(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp(api_socket(vm), timeout, cancel).call("cont");
}

void Qemu::pause(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp(api_socket(vm), timeout, cancel).call("stop");
}

void Qemu::resume(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp(api_socket(vm), timeout, cancel).call("cont");
}

void Qemu::request_power_off(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp(api_socket(vm), timeout, cancel).call("system_powerdown");
}

void Qemu::quit(const VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const {
  Qmp(api_socket(vm), timeout, cancel).call("quit");
}

}  // namespace cocoon::vmm
