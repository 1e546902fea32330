#include "cocoon/vmm/cloud_hypervisor.h"

#include <array>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/socket.h"
#include "cocoon/vmm/about.h"
#include "cocoon/vmm/cloud_hypervisor_api.h"
#include "cocoon/vmm/saved_checks.h"
#include "cocoon/vmm/vm_config.h"

namespace cocoon::vmm {
namespace {

using lifecycle::DiskConfig;
using lifecycle::VmConfig;
using lifecycle::VmRecord;
using nlohmann::json;
using std::chrono::milliseconds;
using system::Cancel;
using system::Path;

// Older ones guess the format of a disk from what the guest has written to it (GHSA-jmr4-g2hv-mjj6), and ignore
// image_type silently, as they do every field that they do not know.
constexpr int kMinMajor = 51;

// In the run dir, which is its working directory: a clone, in a run dir of its own, finds its own by the same names.
constexpr std::string_view kApiSocket = "api.sock";
constexpr std::string_view kLog = "cloud-hypervisor.log";
constexpr std::string_view kPassedSocket = "fd=4";  // Command::passed begins there

constexpr std::int64_t kMaxCpus = 254;
constexpr std::size_t kMaxDisks = 29;           // slots of its PCI bus, less bridge, rng and vsock
constexpr std::size_t kAddedCmdlineBytes = 16;  // what command_line() adds
constexpr std::uint32_t kGuestCid = 3;          // a host sees guests by their sockets: they may all have the same
constexpr std::array<std::string_view, 2> kFormats{"raw", "qcow2"};
constexpr std::array<std::string_view, 1> kAccelerators{"kvm"};
constexpr std::array<std::string_view, 1> kMachines{"firmware"};

std::string command_line(const VmConfig& config) {
  if (has_parameter(config.cmdline, "console")) return config.cmdline;
  return config.cmdline + (config.cmdline.empty() ? "" : " ") + "console=ttyS0";
}

// Errors VmmError: there is no guest.
bool is_guest_paused(Rest& api) {
  const auto said = ask_cloud_hypervisor(api);
  return is_paused(
      cloud_hypervisor_state(said),
      VmmError(fmt::format("the guest is not running (Cloud Hypervisor says '{}')", said.value_or("no VM")), 0,
               said.value_or("")));
}

json payload(const VmConfig& config) {
  if (!config.machine.empty()) return {{"firmware", config.kernel}};
  json payload{{"kernel", config.kernel}, {"cmdline", command_line(config)}};
  if (!config.initrd.empty()) payload["initramfs"] = config.initrd;
  return payload;
}

json disk_config(const DiskConfig& disk, std::size_t index, const Path& run_dir) {
  // The host's page cache stays in between, as with the other hypervisors: a copy of a disk sees what the guest wrote,
  // and O_DIRECT would lose the tail of an odd-sized file. Sparse: what the guest discards goes back to the host.
  json config{{"id", fmt::format("disk{}", index)},
              {"path", path_for_vmm(disk.path, run_dir)},
              {"readonly", disk.readonly},
              {"image_type", disk.format == "qcow2" ? "Qcow2" : "Raw"},
              {"sparse", true}};
  if (disk.format == "qcow2") config["backing_files"] = true;
  if (!disk.serial.empty()) config["serial"] = disk.serial;
  return config;
}

// The body of vm.create.
json vm_config(const VmConfig& config, const Path& run_dir) {
  json disks = json::array();
  for (std::size_t i = 0; i < config.disks.size(); ++i) disks.push_back(disk_config(config.disks[i], i, run_dir));
  return {{"cpus", {{"boot_vcpus", config.cpu}, {"max_vcpus", config.cpu}}},
          // Shared, which is a memfd: snapshots of it leave out what the guest has never touched.
          {"memory", {{"size", config.mem_bytes}, {"shared", true}}},
          {"payload", payload(config)},
          {"disks", std::move(disks)},
          {"vsock", {{"id", "vsock"}, {"cid", kGuestCid}, {"socket", kCloudHypervisorVsock}}},
          {"serial", {{"mode", "Socket"}, {"socket", kCloudHypervisorConsole}}},
          {"console", {{"mode", "Off"}}}};  // virtio-console; left out it would be our terminal
}

}  // namespace

void CloudHypervisor::check(const VmConfig& config) const {
  if (!config.machine.empty()) require_one_of("machine", config.machine, hypervisor(), kMachines);
  if (!config.accelerator.empty()) require_one_of("accelerator", config.accelerator, hypervisor(), kAccelerators);
  check_config(config, {.hypervisor = hypervisor(),
                        .max_cpus = kMaxCpus,
                        .max_disks = kMaxDisks,
                        .disk_formats = kFormats,
                        .max_cmdline_bytes = kMaxCmdlineBytes - kAddedCmdlineBytes});
  if (!config.machine.empty() && (!config.initrd.empty() || !config.cmdline.empty())) {
    throw InvalidArgument(fmt::format(
        "{}: '{}', allowed with machine 'firmware': none, the firmware finds them on a disk",
        config.initrd.empty() ? "cmdline" : "initrd", config.initrd.empty() ? config.cmdline : config.initrd));
  }
  const std::size_t bytes = to_json_text(vm_config(config, {})).size();
  if (bytes > kMaxCloudHypervisorBody) {
    throw InvalidArgument(
        fmt::format("disks: {} bytes of configuration, at most {} are allowed: shorter paths, or fewer disks", bytes,
                    kMaxCloudHypervisorBody));
  }
}

Command CloudHypervisor::command(const VmRecord& vm, const Path& binary) const {
  require_program_name(binary, program());
  if (vm.config.kernel.empty()) {
    throw InvalidArgument(
        "kernel: '', cloud-hypervisor has no firmware of its own: give a kernel, or a firmware and "
        "machine 'firmware'");
  }
  Command command{.argv = {binary.string(), "--api-socket", std::string(kPassedSocket)}};
  // Bound by us: there is nothing to wait for, and nobody else can have it.
  command.passed.push_back(system::listen_on(api_socket(vm)));
  return command;
}

// After kill -9 all of them are there, and the console's and the vsock's would be "address in use".
std::vector<std::string> CloudHypervisor::runtime_files() const {
  return {std::string(kApiSocket), std::string(kCloudHypervisorConsole), std::string(kCloudHypervisorVsock),
          kBaseMemory};
}

Path CloudHypervisor::api_socket(const VmRecord& vm) const { return Path(vm.run_dir) / kApiSocket; }

Path CloudHypervisor::console(const VmRecord& vm) const { return Path(vm.run_dir) / kCloudHypervisorConsole; }

std::optional<Path> CloudHypervisor::console_log(const VmRecord&) const { return std::nullopt; }

std::optional<Path> CloudHypervisor::vsock(const VmRecord& vm) const {
  return Path(vm.run_dir) / kCloudHypervisorVsock;
}

Path CloudHypervisor::log(const VmRecord& vm) const { return Path(vm.log_dir) / kLog; }

// Its command line names no VM; its working directory does.
bool CloudHypervisor::owns(const system::ProcessInfo& process, std::string_view vm_id, const Path& run_dir) const {
  const auto& argv = process.argv;
  return argv.size() > 2 && has_program_name(argv[0], program()) && argv[1] == "--api-socket" &&
         argv[2] == kPassedSocket && run_dir.filename() == vm_id && works_in(process, run_dir);
}

std::string CloudHypervisor::check_new(Rest& api, const VmRecord& vm) const {
  const json ping = api.get("/api/v1/vmm.ping");
  const auto pid = ping.find("pid");
  if (pid == ping.end() || !pid->is_number_integer()) throw VmmError("vmm.ping returned no pid", 0, ping.dump());
  const auto process = system::find_process(pid->get<pid_t>());
  if (!process || !owns(*process, vm.id, vm.run_dir)) {
    throw VmmError(fmt::format("the Cloud Hypervisor at {} is not this VM's", api_socket(vm).string()), 0, ping.dump());
  }
  std::string version = text_member(ping, "version");
  require_version("Cloud Hypervisor", version, kMinMajor, 0);
  return version;
}

void CloudHypervisor::boot(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("boot", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    check_new(api, vm);
    // The first only parses; nearly everything that can be wrong is said by the second.
    api.put("/api/v1/vm.create", vm_config(vm.config, vm.run_dir));
    api.put("/api/v1/vm.boot");
  });
}

GuestState CloudHypervisor::guest_state(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  return about("state of", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    return cloud_hypervisor_state(ask_cloud_hypervisor(api));
  });
}

// A repeated one is an error there: so the state is asked for first.
void CloudHypervisor::pause(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("pause", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    if (!is_guest_paused(api)) api.put("/api/v1/vm.pause");
  });
}

void CloudHypervisor::resume(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("resume", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    if (is_guest_paused(api)) api.put("/api/v1/vm.resume");
  });
}

void CloudHypervisor::request_power_off(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("power off", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    if (is_guest_paused(api)) api.put("/api/v1/vm.resume");
    api.put("/api/v1/vm.power-button");
  });
}

bool CloudHypervisor::quit(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("quit", vm, [&] { connect_cloud_hypervisor(api_socket(vm), timeout, cancel).put("/api/v1/vmm.shutdown"); });
  return true;
}

}  // namespace cocoon::vmm
