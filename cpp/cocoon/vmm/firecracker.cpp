#include "cocoon/vmm/firecracker.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/vmm/about.h"
#include "cocoon/vmm/firecracker_api.h"
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

// In the run dir, which is its working directory: a clone, in a run dir of its own, finds its own by the same names.
constexpr std::string_view kApiSocket = "api.sock";
constexpr std::string_view kConsoleInput = "console.in";
constexpr std::string_view kVsockSocket = "vsock.uds";
constexpr std::string_view kDiskLink = "disk{}";  // one for each disk: a snapshot holds these names and no others
constexpr std::string_view kLog = "firecracker.log";
constexpr std::string_view kConsoleLog = "console.log";

constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kMaxCpus = 32;
// Each device takes an interrupt, and there are 19: clock, generation id, vsock and entropy are others.
constexpr std::size_t kMaxDisks = 15;
constexpr std::size_t kOtherDevices = 2;            // vsock, entropy
constexpr std::size_t kCmdlineBytesPerDevice = 40;  // " virtio_mmio.device=4K@0xc0001000:5", which it appends
constexpr std::size_t kAddedCmdlineBytes = 60;      // " pci=off", which it appends, and what command_line() adds
constexpr std::size_t kMaxIdBytes = 64;
constexpr std::uint32_t kGuestCid = 3;  // a host sees guests by their sockets: they may all have the same
constexpr std::array<std::string_view, 1> kFormats{"raw"};
constexpr std::array<std::string_view, 1> kAccelerators{"kvm"};

// An id that it does not like is a panic, not an error.
bool is_id(std::string_view id) {
  return !id.empty() && id.size() <= kMaxIdBytes && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
  });
}

// The user's, and what lets a guest be heard, and its restart and its panic end the VMM rather than hang.
std::string command_line(const VmConfig& config) {
  std::string line = config.cmdline;
  for (const std::string_view parameter : {"console=ttyS0", "reboot=k", "panic=1"}) {
    if (has_parameter(config.cmdline, parameter.substr(0, parameter.find('=')))) continue;
    if (!line.empty()) line += ' ';
    line += parameter;
  }
  return line;
}

struct Request {
  std::string target;
  json body;
};

// What is to be said before InstanceStart. Memory stays private and unwatched: so a first snapshot of kind Diff is
// complete and sparse (it writes what is resident), and the guest is not slowed by dirty logging.
std::vector<Request> configuration(const VmConfig& config) {
  std::vector<Request> requests;
  requests.push_back({"/machine-config", {{"vcpu_count", config.cpu}, {"mem_size_mib", config.mem_bytes / kMiB}}});
  json boot{{"kernel_image_path", config.kernel}, {"boot_args", command_line(config)}};
  if (!config.initrd.empty()) boot["initrd_path"] = config.initrd;
  requests.push_back({"/boot-source", std::move(boot)});
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const DiskConfig& disk = config.disks[i];
    const std::string id = fmt::format(kDiskLink, i);
    // In order: the guest's vda, vdb, …. None is the root device: that would come before the others, and add "root=" to
    // the command line. Writeback: a guest's flush reaches the host's disk; by default it does nothing.
    requests.push_back({"/drives/" + id,
                        {{"drive_id", id},
                         {"path_on_host", id},
                         {"is_root_device", false},
                         {"is_read_only", disk.readonly},
                         {"cache_type", disk.readonly ? "Unsafe" : "Writeback"}}});
  }
  requests.push_back({"/entropy", json::object()});
  requests.push_back({"/vsock", {{"guest_cid", kGuestCid}, {"uds_path", kVsockSocket}}});
  return requests;
}

system::Fd open_or_throw(const Path& path, int flags) {
  system::Fd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0600));
  if (!fd) throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
  return fd;
}

}  // namespace

void Firecracker::check(const VmConfig& config) const {
  if (!config.machine.empty()) {
    throw InvalidArgument(fmt::format("machine: '{}', allowed for firecracker: none", config.machine));
  }
  if (!config.accelerator.empty()) {
    require_one_of("accelerator", config.accelerator, hypervisor(), kAccelerators);
  }
  const std::size_t devices = std::min(config.disks.size(), kMaxDisks) + kOtherDevices;
  check_config(config, {.hypervisor = hypervisor(),
                        .max_cpus = kMaxCpus,
                        .max_disks = kMaxDisks,
                        .disk_formats = kFormats,
                        .max_cmdline_bytes = kMaxCmdlineBytes - kAddedCmdlineBytes - devices * kCmdlineBytesPerDevice});
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const DiskConfig& disk = config.disks[i];
    if (disk.role != "cow" && !disk.serial.empty()) {
      throw InvalidArgument(fmt::format(
          "disk {} serial: '{}', allowed for firecracker: none, its disks have no serials", i, disk.serial));
    }
  }
  for (const Request& request : configuration(config)) static_cast<void>(to_json_text(request.body));
}

Command Firecracker::command(const VmRecord& vm, const Path& binary) const {
  require_program_name(binary, program());
  if (!is_id(vm.id)) {
    throw InvalidArgument(
        fmt::format("id: '{}', allowed for firecracker: 1 to {} letters, digits or '-'", vm.id, kMaxIdBytes));
  }
  if (vm.config.kernel.empty()) throw InvalidArgument("kernel: it is missing, and firecracker boots nothing else");
  // Its id first: owns() looks there. A log of its own, or it would log into the guest's console.
  Command command{.argv = {binary.string(), "--id", vm.id, "--api-sock", std::string(kApiSocket), "--log-path",
                           log(vm).string(), "--level", "Warning"}};
  // Open for both, so that it never sees an end: whoever types opens the fifo, writes and goes.
  const Path input = console(vm);
  if (::mkfifo(input.c_str(), 0600) != 0) {
    throw StoreError(system_message("make fifo " + input.string(), errno), input.string(), errno);
  }
  command.input = open_or_throw(input, O_RDWR | O_NONBLOCK);
  command.output = open_or_throw(*console_log(vm), O_WRONLY | O_CREAT | O_APPEND);
  for (std::size_t i = 0; i < vm.config.disks.size(); ++i) {
    const Path link = Path(vm.run_dir) / fmt::format(kDiskLink, i);
    if (::symlink(vm.config.disks[i].path.c_str(), link.c_str()) != 0) {
      throw StoreError(system_message("make link " + link.string(), errno), link.string(), errno);
    }
  }
  return command;
}

// It removes none of them itself, and starts with none of them in its way.
std::vector<std::string> Firecracker::runtime_files() const {
  std::vector<std::string> names{std::string(kApiSocket), std::string(kVsockSocket), std::string(kConsoleInput),
                                 kBaseMemory};
  for (std::size_t i = 0; i < kMaxDisks; ++i) names.push_back(fmt::format(kDiskLink, i));
  return names;
}

Path Firecracker::api_socket(const VmRecord& vm) const { return Path(vm.run_dir) / kApiSocket; }

Path Firecracker::console(const VmRecord& vm) const { return Path(vm.run_dir) / kConsoleInput; }

std::optional<Path> Firecracker::console_log(const VmRecord& vm) const { return Path(vm.log_dir) / kConsoleLog; }

std::optional<Path> Firecracker::vsock(const VmRecord& vm) const { return Path(vm.run_dir) / kVsockSocket; }

Path Firecracker::log(const VmRecord& vm) const { return Path(vm.log_dir) / kLog; }

bool Firecracker::owns(const system::ProcessInfo& process, std::string_view vm_id, const Path& run_dir) const {
  const auto& argv = process.argv;
  return argv.size() > 2 && has_program_name(argv[0], program()) && argv[1] == "--id" && argv[2] == vm_id &&
         works_in(process, run_dir);
}

void Firecracker::boot(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("boot", vm, [&] {
    Rest api = connect_firecracker(api_socket(vm), timeout, cancel);
    check_new_firecracker(api, vm, api_socket(vm));
    for (const Request& request : configuration(vm.config)) api.put(request.target, request.body);
    api.put("/actions", {{"action_type", "InstanceStart"}});
  });
}

GuestState Firecracker::guest_state(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  return about("state of", vm,
               [&] { return firecracker_state(connect_firecracker(api_socket(vm), timeout, cancel).get("/")); });
}

void Firecracker::pause(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("pause", vm, [&] { connect_firecracker(api_socket(vm), timeout, cancel).patch("/vm", {{"state", "Paused"}}); });
}

void Firecracker::resume(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("resume", vm,
        [&] { connect_firecracker(api_socket(vm), timeout, cancel).patch("/vm", {{"state", "Resumed"}}); });
}

// Once for each attempt: it keeps the four bytes until the guest reads them, and has room for four times four.
void Firecracker::request_power_off(const VmRecord& vm, milliseconds timeout, Cancel& cancel) const {
  about("power off", vm, [&] {
    Rest api = connect_firecracker(api_socket(vm), timeout, cancel);
    if (is_paused(firecracker_state(api.get("/")), VmmError("no guest runs"))) api.patch("/vm", {{"state", "Resumed"}});
    api.put("/actions", {{"action_type", "SendCtrlAltDel"}});
  });
}

bool Firecracker::quit(const VmRecord&, milliseconds, Cancel&) const { return false; }

}  // namespace cocoon::vmm
