#include "cocoon/vmm/qemu_command.h"

#include <array>
#include <string>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/vmm/vm_config.h"

namespace cocoon::vmm {
namespace {

using lifecycle::DiskConfig;
using lifecycle::VmConfig;
using lifecycle::VmRecord;

constexpr std::string_view kMicrovm = "microvm";
constexpr std::string_view kQ35 = "q35";
constexpr std::array<std::string_view, 2> kMachines{kMicrovm, kQ35};
constexpr std::array<std::string_view, 2> kAccelerators{"kvm", "tcg"};
constexpr std::array<std::string_view, 2> kFormats{"raw", "qcow2"};

constexpr std::int64_t kMiB = 1 << 20;
// Both machines take 288, but the 256th needs an x2APIC, which neither TCG nor the guest's interrupts come with.
constexpr std::int64_t kMaxCpus = 255;
// A microvm has 24 virtio transports, and under 7.2 a guest whose 24th is in use hangs; some are for other devices.
constexpr std::size_t kMaxDisks = 20;
constexpr std::size_t kAddedCmdlineBytes = 80;  // room for what command_line() adds

// QEMU's option syntax: a comma ends a value, two are one.
std::string escaped(std::string_view value) {
  std::string doubled;
  for (const char c : value) doubled.append(c == ',' ? 2 : 1, c);
  return doubled;
}

// The user's, and what this machine's guests need unless the user says otherwise.
std::string command_line(const VmConfig& config, bool microvm, bool tcg, std::int64_t tsc_khz) {
  std::string line = config.cmdline;
  const auto add = [&](std::string_view name, const std::string& parameter) {
    if (!has_parameter(config.cmdline, name)) line += (line.empty() ? "" : " ") + parameter;
  };
  add("console", "console=ttyS0");
  if (microvm && tcg) {
    // Linux measures the time stamp counter and its timer interrupt against the PIT. On a busy host an emulated
    // guest gets too little of the processor for that, and hangs there for ever (11 of 12 starts; with these two none
    // of 18, measured with three times as many guests as processors). q35 has better timers, and no start hung.
    add("no_timer_check", "no_timer_check");
    // The guest reads the host's counter, and a microvm has no other clock to notice a wrong rate by: 2 500 000 on
    // a host of 2.6 GHz made its seconds 4 % short.
    if (tsc_khz > 0) add("tsc_early_khz", fmt::format("tsc_early_khz={}", tsc_khz));
  }
  return line;
}

void add_disks(std::vector<std::string>& argv, const VmRecord& vm, bool microvm) {
  for (std::size_t i = 0; i < vm.config.disks.size(); ++i) {
    const DiskConfig& disk = vm.config.disks[i];
    const std::string path = escaped(path_for_vmm(disk.path, vm.run_dir));
    // What the guest discards gives its space back to the host.
    argv.insert(argv.end(),
                {"-blockdev", fmt::format("driver={},node-name=disk{},{},file.driver=file,file.filename={}",
                                          disk.format, i, disk.readonly ? "read-only=on" : "discard=unmap", path)});
    // No bus is named: QEMU fills a microvm's transports in the order in which its ACPI tables list them, so that
    // the guest's vda, vdb, … are our order; by number it would be the reverse.
    argv.insert(argv.end(),
                {"-device", fmt::format("{},drive=disk{}{}", microvm ? "virtio-blk-device" : "virtio-blk-pci", i,
                                        disk.serial.empty() ? "" : ",serial=" + escaped(disk.serial))});
  }
}

}  // namespace

std::string qemu_name(std::string_view vm_id) { return fmt::format("cocoon-{}", vm_id); }

bool is_qemu_argv(const std::vector<std::string>& argv, std::string_view vm_id) {
  return argv.size() > 2 && has_program_name(argv[0], "qemu") && argv[1] == "-name" && argv[2] == qemu_name(vm_id);
}

bool is_saved_machine(std::string_view machine, const VmConfig& config) {
  if (config.machine != kQ35) return machine == kMicrovm;
  // It becomes an argument: nothing but a version may follow.
  constexpr std::string_view kVersioned = "pc-q35-";
  return machine.starts_with(kVersioned) && machine.size() > kVersioned.size() &&
         machine.find_first_not_of("0123456789.", kVersioned.size()) == std::string_view::npos;
}

void check_qemu_config(const VmConfig& config) {
  if (!config.machine.empty()) require_one_of("machine", config.machine, "qemu", kMachines);
  if (!config.accelerator.empty()) require_one_of("accelerator", config.accelerator, "qemu", kAccelerators);
  check_config(config, {.hypervisor = "qemu",
                        .max_cpus = kMaxCpus,
                        .max_disks = kMaxDisks,
                        .disk_formats = kFormats,
                        .max_cmdline_bytes = kMaxCmdlineBytes - kAddedCmdlineBytes});
}

std::vector<std::string> qemu_argv(const VmRecord& vm, const system::Path& binary, const QemuHost& host,
                                   const std::optional<QemuIncoming>& incoming) {
  const VmConfig& config = vm.config;
  require_program_name(binary, "qemu");
  const bool microvm = config.machine != kQ35;
  // A VM can be made, and marked by those who own its process, without one; only to start it takes a kernel.
  if (microvm && config.kernel.empty())
    throw InvalidArgument("kernel: '', a microvm has no firmware that boots disks: give a kernel, or machine 'q35'");
  const bool kvm_here = config.accelerator.empty() ? host.kvm : config.accelerator == "kvm";
  const bool kvm = incoming ? incoming->kvm : kvm_here;

  // Name first: is_qemu_argv() looks there.
  std::vector<std::string> argv{binary.string(), "-name", qemu_name(vm.id)};
  const auto add = [&](std::initializer_list<std::string> more) { argv.insert(argv.end(), more); };
  // -S: the guest runs when boot() says so; until then QEMU answers "prelaunch". -no-reboot: a guest that resets ends
  // its QEMU, so that each boot is one interval.
  add({"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S", "-msg", "timestamp=on"});
  // QEMU needs no privilege and starts no program once it runs. Snapshots do not need spawn either: memory is migrated
  // to "fd:", a file that the engine opened and passed over QMP.
  if (host.sandbox) {
    add({"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  }
  if (incoming) add({"-incoming", "defer"});
  add({"-machine", incoming ? incoming->machine : std::string(microvm ? kMicrovm : kQ35)});
  if (microvm) add({"-global", "virtio-mmio.force-legacy=false"});  // virtio 1.0; the default is the draft before it
  add({"-accel", kvm ? "kvm" : "tcg,thread=multi", "-cpu", kvm ? "host" : "max"});
  add({"-smp", std::to_string(config.cpu), "-m", fmt::format("{}M", config.mem_bytes / kMiB)});
  const std::string console_log = (system::Path(vm.log_dir) / kConsoleLog).string();
  add({"-chardev", fmt::format("socket,id=console,path={},server=on,wait=off,logfile={},logappend=on", kConsoleSocket,
                               escaped(console_log))});
  add({"-serial", "chardev:console"});
  // Behind the console: QEMU makes its sockets in this order, so that where QMP answers the console is there too.
  add({"-qmp", fmt::format("unix:{},server=on,wait=off", kQmpSocket)});
  if (!config.kernel.empty()) {
    add({"-kernel", config.kernel});
    if (!config.initrd.empty()) add({"-initrd", config.initrd});
    add({"-append", command_line(config, microvm, !kvm, host.tsc_khz)});
  }
  add_disks(argv, vm, microvm);
  return argv;
}

}  // namespace cocoon::vmm
