// Firecracker's configuration: each call is checked on arrival, and what it names is opened then.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "simvmm/firecracker.h"
#include "simvmm/firecracker_schema.h"
#include "simvmm/kernel.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm::firecracker {
namespace {

constexpr std::size_t kMostCommandLine = 2048;
constexpr std::string_view kDefaultCommandLine =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=off";

std::optional<Level> level_named(std::string_view name) {
  const std::string lowered = lower(name);
  if (lowered == "error" || lowered == "off") return Level::kError;
  if (lowered == "warning" || lowered == "warn") return Level::kWarning;
  if (lowered == "info") return Level::kInfo;
  if (lowered == "debug" || lowered == "trace") return Level::kDebug;
  return std::nullopt;
}

// The one of this id is replaced, in its place.
void put_device(Json& devices, std::string_view key, Json device) {
  const std::string id = string_of(device, key);
  for (Json& known : devices) {
    if (string_of(known, key) == id) {
      known = std::move(device);
      return;
    }
  }
  devices.push_back(std::move(device));
}

}  // namespace

void Firecracker::put_machine_config(const std::string& body) {
  const Json wanted = parse_object(body, kMachineConfig);
  require_not_started();
  set_machine_config({{"vcpu_count", number_of(wanted, "vcpu_count", 1)},
                      {"mem_size_mib", number_of(wanted, "mem_size_mib", 0)},
                      {"smt", bool_of(wanted, "smt", false)},
                      {"track_dirty_pages", bool_of(wanted, "track_dirty_pages", false)},
                      {"huge_pages", string_of(wanted, "huge_pages", "None")}});
}

void Firecracker::patch_machine_config(const std::string& body) {
  const Json changes = parse_object(body, kMachineConfigUpdate);
  if (changes.empty()) throw Fault{"Empty PATCH request."};
  require_not_started();
  Json wanted = machine_config_;
  for (auto& [name, value] : wanted.items()) {
    if (const Json& change = member_of(changes, name); !change.is_null()) value = change;
  }
  set_machine_config(wanted);
}

void Firecracker::set_machine_config(const Json& wanted) {
  const std::uint64_t vcpus = number_of(wanted, "vcpu_count", 0);
  const std::uint64_t memory_mib = number_of(wanted, "mem_size_mib", 0);
  if (vcpus == 0 || vcpus > 32 || (bool_of(wanted, "smt", false) && vcpus > 1 && vcpus % 2 != 0)) {
    throw Fault{
        "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even "
        "number if SMT is enabled."};
  }
  if (memory_mib == 0 || (string_of(wanted, "huge_pages") == "2M" && memory_mib % 2 != 0)) {
    throw Fault{
        "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."};
  }
  if (number_of(balloon_, "amount_mib", 0) > memory_mib) {
    throw Fault{
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."};
  }
  machine_config_ = wanted;
  configured_ = true;
}

void Firecracker::put_boot_source(const std::string& body) {
  const Json wanted = parse_object(body, kBootSource);
  require_not_started();
  try {
    check_readable(string_of(wanted, "kernel_image_path"), false);
  } catch (const SystemError& error) {
    throw Fault{fmt::format("Boot source error: The kernel file cannot be opened: {}", os_error(error.code))};
  }
  try {
    if (const std::string initrd = string_of(wanted, "initrd_path"); !initrd.empty()) check_readable(initrd, false);
  } catch (const SystemError& error) {
    throw Fault{fmt::format(
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {}",
        os_error(error.code))};
  }
  if (string_of(wanted, "boot_args").size() >= kMostCommandLine) {
    throw Fault{"Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided."};
  }
  boot_source_ = {{"kernel_image_path", member_of(wanted, "kernel_image_path")},
                  {"initrd_path", member_of(wanted, "initrd_path")},
                  {"boot_args", member_of(wanted, "boot_args")}};
  configured_ = true;
}

void Firecracker::put_drive(const std::string& body, const std::string& id) {
  const Json wanted = parse_object(body, kDrive);
  if (string_of(wanted, "drive_id") != id) throw Fault{"The id from the path does not match the id from the body!"};
  require_hot_pluggable();
  const bool root = bool_of(wanted, "is_root_device", false);
  const bool read_only = bool_of(wanted, "is_read_only", false);
  const std::string path = string_of(wanted, "path_on_host");
  if (root && std::any_of(drives_.begin(), drives_.end(), [&](const Json& known) {
        return bool_of(known, "is_root_device", false) && string_of(known, "drive_id") != id;
      })) {
    throw Fault{"Drive config error: A root block device already exists!"};
  }
  constexpr std::string_view kCannot = "Drive config error: Unable to create the virtio block device: ";
  // A block device of its own, or another process's.
  if (member_of(wanted, "path_on_host").is_null() == member_of(wanted, "socket").is_null()) {
    throw Fault{fmt::format("{}Invalid block config.", kCannot)};
  }
  if (!path.empty()) {
    try {
      check_readable(path, !read_only);
    } catch (const SystemError& error) {
      throw Fault{fmt::format("{}Virtio backend error: Error manipulating the backing file: {} {}", kCannot,
                              os_error(error.code), path)};
    }
  }
  put_device(drives_, "drive_id",
             {{"drive_id", id},
              {"partuuid", member_of(wanted, "partuuid")},
              {"is_root_device", root},
              {"cache_type", string_of(wanted, "cache_type", "Unsafe")},
              {"is_read_only", read_only},
              {"path_on_host", member_of(wanted, "path_on_host")},
              {"rate_limiter", member_of(wanted, "rate_limiter")},
              {"io_engine", string_of(wanted, "io_engine", "Sync")},
              {"socket", member_of(wanted, "socket")}});
  configured_ = true;
}

void Firecracker::patch_drive(const std::string& body, const std::string& id) {
  const Json changes = parse_object(body, kDriveUpdate);
  if (string_of(changes, "drive_id") != id) throw Fault{"The id from the path does not match the id from the body!"};
  require_started();
  const auto drive = std::find_if(drives_.begin(), drives_.end(),
                                  [&](const Json& known) { return string_of(known, "drive_id") == id; });
  constexpr std::string_view kCannot = "Drive config error: Unable to patch the block device: ";
  if (drive == drives_.end()) {
    throw Fault{fmt::format("{}Failed perform action on device: Device not found Please verify the request arguments.",
                            kCannot)};
  }
  if (const std::string path = string_of(changes, "path_on_host"); !path.empty()) {
    try {
      check_readable(path, !bool_of(*drive, "is_read_only", false));
    } catch (const SystemError& error) {
      throw Fault{fmt::format(
          "{}Virtio backend error: Error manipulating the backing file: {} {} Please verify the request arguments.",
          kCannot, os_error(error.code), path)};
    }
    (*drive)["path_on_host"] = path;
  }
}

void Firecracker::put_network_interface(const std::string& body, const std::string& id) {
  const Json wanted = parse_object(body, kNetworkInterface);
  const std::string in_body = string_of(wanted, "iface_id");
  if (in_body != id) {
    throw Fault{fmt::format("The id from the path [{}] does not match the id from the body [{}]!", id, in_body)};
  }
  require_hot_pluggable();
  const std::string mac = string_of(wanted, "guest_mac");
  if (!mac.empty() && std::any_of(interfaces_.begin(), interfaces_.end(), [&](const Json& known) {
        return string_of(known, "guest_mac") == mac && string_of(known, "iface_id") != id;
      })) {
    throw Fault{fmt::format("Network config error: The MAC address is already in use: {}", mac)};
  }
  put_device(interfaces_, "iface_id",
             {{"iface_id", id},
              {"host_dev_name", member_of(wanted, "host_dev_name")},
              {"guest_mac", member_of(wanted, "guest_mac")},
              {"mtu", member_of(wanted, "mtu")},
              {"rx_rate_limiter", member_of(wanted, "rx_rate_limiter")},
              {"tx_rate_limiter", member_of(wanted, "tx_rate_limiter")}});
  configured_ = true;
}

void Firecracker::put_pmem(const std::string& body, const std::string& id) {
  const Json wanted = parse_object(body, kPmem);
  if (string_of(wanted, "id") != id) throw Fault{"The id from the path does not match the id from the body!"};
  require_hot_pluggable();
  put_device(pmem_, "id",
             {{"id", id},
              {"path_on_host", member_of(wanted, "path_on_host")},
              {"root_device", bool_of(wanted, "root_device", false)},
              {"read_only", bool_of(wanted, "read_only", false)},
              {"rate_limiter", member_of(wanted, "rate_limiter")}});
  configured_ = true;
}

void Firecracker::put_balloon(const std::string& body) {
  const Json wanted = parse_object(body, kBalloon);
  require_not_started();
  if (number_of(wanted, "amount_mib", 0) > number_of(machine_config_, "mem_size_mib", 0)) {
    throw Fault{"Balloon config error: Amount of pages requested is too large."};
  }
  balloon_ = {{"amount_mib", member_of(wanted, "amount_mib")},
              {"deflate_on_oom", member_of(wanted, "deflate_on_oom")},
              {"stats_polling_interval_s", number_of(wanted, "stats_polling_interval_s", 0)},
              {"free_page_hinting", bool_of(wanted, "free_page_hinting", false)},
              {"free_page_reporting", bool_of(wanted, "free_page_reporting", false)}};
  configured_ = true;
}

std::string Firecracker::balloon_statistics() const {
  require_started();
  if (number_of(balloon_, "stats_polling_interval_s", 0) == 0) {
    throw Fault{"Internal VMM error: Balloon: Received stats query when stats are disabled."};
  }
  const std::uint64_t mib = number_of(balloon_, "amount_mib", 0);
  return dump(Json{{"target_pages", mib * 256}, {"actual_pages", 0}, {"target_mib", mib}, {"actual_mib", 0}});
}

void Firecracker::put_vsock(const std::string& body) {
  const Json wanted = parse_object(body, kVsock);
  require_not_started();
  const std::string path = string_of(wanted, "uds_path");
  if (vsock_listener_) {
    vsock_listener_.reset();
    ::unlink(string_of(vsock_, "uds_path").c_str());
    vsock_ = nullptr;
  }
  try {
    vsock_listener_ = listen_at(path);
  } catch (const SystemError& error) {
    throw Fault{fmt::format(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: {}",
        os_error(error.code))};
  }
  vsock_ = {{"guest_cid", member_of(wanted, "guest_cid")}, {"uds_path", path}};
  configured_ = true;
}

void Firecracker::put_logger(const std::string& body) {
  const Json wanted = parse_object(body, kLogger);
  if (const std::string level = string_of(wanted, "level"); !level.empty()) {
    const std::optional<Level> known = level_named(level);
    if (!known) throw JsonError{fmt::format("Failed to parse string to level filter: {}", level)};
    require_not_started();
    log().set_level(*known);
  }
  require_not_started();
  try {
    if (const std::string path = string_of(wanted, "log_path"); !path.empty()) log().append_to(path);
  } catch (const SystemError& error) {
    throw Fault{fmt::format("Logger error: Failed to open target file: {}", os_error(error.code))};
  }
}

void Firecracker::put_serial(const std::string& body) {
  const Json wanted = parse_object(body, kSerial);
  require_not_started();
  const std::string path = string_of(wanted, "serial_out_path");
  if (path.empty()) return;
  // A file that is not there is silently ignored.
  system::Fd out(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (out) console_.redirect_output(std::move(out));
}

void Firecracker::put_mmds_config(const std::string& body) {
  const Json wanted = parse_object(body, kMmdsConfig);
  require_not_started();
  if (member_of(wanted, "network_interfaces").empty()) {
    throw Fault{"MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty."};
  }
  mmds_config_ = {{"version", string_of(wanted, "version", "V1")},
                  {"network_interfaces", member_of(wanted, "network_interfaces")},
                  {"ipv4_address", string_of(wanted, "ipv4_address", "169.254.169.254")},
                  {"imds_compat", bool_of(wanted, "imds_compat", false)}};
  mmds_ready_ = true;
  configured_ = true;
}

void Firecracker::put_mmds(const std::string& body) {
  const Json wanted = parse_json(body);
  if (state_ != State::kNotStarted && !mmds_ready_) throw Fault{"MMDS error: The MMDS data store is not initialized."};
  mmds_ = wanted;
  mmds_ready_ = true;
}

std::string Firecracker::command_line() const {
  const Json& wanted = member_of(boot_source_, "boot_args");
  if (wanted.is_null() && drives_.empty() && interfaces_.empty()) return std::string(kDefaultCommandLine);
  std::string text =
      wanted.is_null() ? std::string(kDefaultCommandLine) : fmt::format("{} pci=off", wanted.get<std::string>());
  const std::size_t devices = drives_.size() + interfaces_.size() + pmem_.size() + (balloon_.is_null() ? 0 : 1) +
                              (vsock_.is_null() ? 0 : 1) + (entropy_.is_null() ? 0 : 1);
  for (std::size_t i = 0; i < devices; ++i) {
    text += fmt::format(" virtio_mmio.device=4K@{:#x}:{}", 0xc0001000U + (i << 12U), i + 5);
  }
  return text;
}

void Firecracker::start() {
  if (boot_source_.is_null()) {
    throw Fault{"Start microvm error: Cannot start microvm without kernel configuration."};
  }
  if (!is_kernel(string_of(boot_source_, "kernel_image_path"))) {
    throw Fault{
        "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or "
        "invalid kernel image: Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage"};
  }
  guest_.boot(number_of(machine_config_, "mem_size_mib", 0), command_line(), options_.guest_ignores_requests);
  state_ = State::kRunning;
}

void Firecracker::apply_config(const Json& config) {
  if (!config.is_object()) throw JsonError{"invalid type, expected struct VmmConfig"};
  const auto each = [](const Json& devices, std::string_view key,
                       const std::function<void(std::string, std::string)>& put) {
    for (const Json& device : devices) put(dump(device), string_of(device, key));
  };
  // The structures first, whatever the order of the file, as they depend on each other.
  if (const Json& value = member_of(config, "machine-config"); !value.is_null()) put_machine_config(dump(value));
  if (const Json& value = member_of(config, "boot-source"); !value.is_null()) put_boot_source(dump(value));
  each(member_of(config, "drives"), "drive_id", [this](const auto& body, const auto& id) { put_drive(body, id); });
  each(member_of(config, "network-interfaces"), "iface_id",
       [this](const auto& body, const auto& id) { put_network_interface(body, id); });
  if (const Json& value = member_of(config, "balloon"); !value.is_null()) put_balloon(dump(value));
  if (const Json& value = member_of(config, "vsock"); !value.is_null()) put_vsock(dump(value));
  start();
}

}  // namespace cocoon::simvmm::firecracker
