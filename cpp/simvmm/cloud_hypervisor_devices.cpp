// What a VM of Cloud Hypervisor opens: consoles when it is created, the rest when it boots.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "simvmm/cloud_hypervisor.h"
#include "simvmm/kernel.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm::cloud_hypervisor {
namespace {

constexpr std::uint64_t kPageBytes = 4096;

// "/dev/pts/3" goes into the config, where vm.info shows it.
Console open_console(Json& config) {
  const std::string mode = string_of(config, "mode");
  if (mode == "Pty") {
    Console console = Console::pty();
    config["file"] = console.path();
    return console;
  }
  if (mode == "Socket") return Console::socket(string_of(config, "socket"));
  if (mode == "File") return Console::file(string_of(config, "file"));
  return mode == "Tty" ? Console::stdio() : Console();
}

bool is_used(const Json& config) {
  const std::string mode = string_of(config, "mode");
  return mode != "Off" && mode != "Null";
}

// An OFD lock on all of it, as long as the descriptor lives. False if another VMM has it.
bool lock(int fd, bool exclusive) {
  struct flock range{};
  range.l_type = static_cast<short>(exclusive ? F_WRLCK : F_RDLCK);
  range.l_whence = SEEK_SET;
  return ::fcntl(fd, F_OFD_SETLK, &range) == 0;
}

}  // namespace

void CloudHypervisor::open_consoles() {
  Json& serial = config_["serial"];
  Json& console = config_["console"];
  const bool serial_file = string_of(serial, "mode") == "File" && member_of(serial, "file").is_null();
  const bool serial_socket = string_of(serial, "mode") == "Socket" && member_of(serial, "socket").is_null();
  if (serial_file || serial_socket) {
    // The real one unwraps what is not there: its VMM thread panics.
    fatal_ = true;
    throw Failure{500, {"Error from API", "API response receive error", "receiving on a closed channel"}};
  }
  if (string_of(console, "mode") == "Socket") {
    throw Failure{500, {"Error creating console devices", "No socket option support for console device"}};
  }
  try {
    // A guest prints on its serial line if it has one, else on the other.
    Console first = open_console(serial);
    Console second = open_console(console);
    const bool on_serial = is_used(serial);
    console_ = on_serial ? std::move(first) : std::move(second);
    unused_console_ = on_serial ? std::move(second) : std::move(first);
  } catch (const SystemError& error) {
    throw Failure{500, {"Error creating console devices", "Error creating console device", os_error(error.code)}};
  }
  has_consoles_ = true;
}

void CloudHypervisor::check_memory() const {
  const Json& memory = member_of(config_, "memory");
  if (memory_bytes(config_) % kPageBytes != 0 || memory_bytes(config_) == 0) {
    throw Failure{500,
                  {"Memory manager error", "Memory size is misaligned with default page size or its hugepage size"}};
  }
  if (bool_of(memory, "hugepages", false)) {
    throw Failure{500, {"Memory manager error", "Failed to stat filesystem", os_error(ENOENT)}};
  }
}

void CloudHypervisor::check_payload() const {
  const Json& payload = member_of(config_, "payload");
  const auto check = [&](std::string_view name, std::string_view text) {
    const std::string path = string_of(payload, name);
    if (path.empty()) return;
    try {
      check_readable(path, false);
    } catch (const SystemError& error) {
      throw Failure{500, {std::string(text), os_error(error.code)}};
    }
  };
  check("firmware", "Error manipulating firmware file");
  check("kernel", "Cannot open kernel file");
  check("initramfs", "Cannot open initramfs file");
  if (const std::string kernel = string_of(payload, "kernel"); !kernel.empty() && !is_kernel(kernel)) {
    throw Failure{500,
                  {"Cannot load the kernel into memory",
                   "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
                   "Kernel Loader: Invalid bzImage"}};
  }
}

void CloudHypervisor::open_devices() {
  disks_.clear();
  for (const Json& disk : member_of(config_, "disks")) open_disk(disk);
  if (const Json& vsock = member_of(config_, "vsock"); !vsock.is_null()) open_vsock(vsock);
  lock_disks();
}

void CloudHypervisor::open_disk(const Json& disk) {
  const std::string path = string_of(disk, "path");
  const bool read_only = bool_of(disk, "readonly", false);
  if (path.empty()) {
    throw Failure{500, {"Error from device manager", "No disk path was specified when one was expected"}};
  }
  system::Fd fd(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC));
  if (!fd) {
    throw Failure{500,
                  {"Error from device manager", "Cannot open disk path",
                   fmt::format("I/O error (path={} op=open)", path), os_error(errno)}};
  }
  const std::string type = lower(string_of(disk, "image_type"));
  std::string magic(4, '\0');
  const bool qcow2 = ::pread(fd.get(), magic.data(), magic.size(), 0) == 4 && magic == "QFI\xfb";
  const std::string_view detected = qcow2 ? "qcow2" : "raw";
  if (type != "unknown" && (type == "qcow2") != qcow2) {
    throw Failure{
        500,
        {"Error from device manager",
         fmt::format("Disk image type does not match expected type: specified = {}, detected = {}", type, detected)}};
  }
  disks_.push_back({string_of(disk, "id"), std::move(fd)});
}

void CloudHypervisor::lock_disks() {
  for (const Json& config : member_of(config_, "disks")) {
    const bool read_only = bool_of(config, "readonly", false);
    const std::string id = string_of(config, "id");
    for (const Disk& disk : disks_) {
      if (disk.id != id || lock(disk.lock.get(), !read_only)) continue;
      throw Failure{
          500,
          {"Error locking disk images: Another instance likely holds a lock", "Cannot lock images of all block devices",
           fmt::format("Failed to get {} lock for disk image: {}", read_only ? "Read" : "Write",
                       string_of(config, "path")),
           "The file is already locked"}};
    }
  }
}

void CloudHypervisor::open_vsock(const Json& vsock) {
  try {
    vsock_listener_ = listen_at(string_of(vsock, "socket"));
    vsock_path_ = string_of(vsock, "socket");
  } catch (const SystemError& error) {
    throw Failure{500,
                  {"Error from device manager", "Cannot create virtio-vsock backend",
                   "Error binding to the host-side Unix socket", os_error(error.code)}};
  }
}

void CloudHypervisor::end_guest() {
  guest_.pause();
  for (Console* console : {&console_, &unused_console_}) {
    console->write(guest_.take_output());
    if (had_vm_) console->unlink_socket();
    *console = Console();
  }
  has_consoles_ = false;
  had_vm_ = false;
  disks_.clear();
  ejecting_.clear();
  if (vsock_listener_) {
    vsock_listener_.reset();
    ::unlink(vsock_path_.c_str());
  }
}

std::vector<std::string> CloudHypervisor::device_ids() const {
  std::vector<std::string> ids;
  for (const std::string_view list : {"disks", "net", "fs", "pmem"}) {
    for (const Json& device : member_of(config_, list)) ids.push_back(string_of(device, "id"));
  }
  ids.emplace_back("__rng");
  if (!member_of(config_, "balloon").is_null()) ids.emplace_back("__balloon");
  if (const Json& vsock = member_of(config_, "vsock"); !vsock.is_null()) ids.push_back(string_of(vsock, "id"));
  ids.insert(ids.end(), ejecting_.begin(), ejecting_.end());
  return ids;
}

std::string CloudHypervisor::bdf_of(std::size_t slot) const { return fmt::format("0000:00:{:02x}.0", slot); }

Json CloudHypervisor::device_tree() const {
  Json tree = Json::object();
  for (const std::string_view id : {"__ioapic", "__serial"}) {
    tree[std::string(id)] = {{"id", id}, {"resources", Json::array()}, {"children", Json::array()}};
  }
  std::size_t slot = 0;
  for (const std::string& id : device_ids()) {
    const std::string bus = fmt::format("_virtio-pci-{}", id);
    tree[id] = {{"id", id}, {"resources", Json::array()}, {"parent", bus}, {"children", Json::array()}};
    tree[bus] = {
        {"id", bus}, {"resources", Json::array()}, {"children", Json::array({id})}, {"pci_bdf", bdf_of(++slot)}};
  }
  return tree;
}

std::string CloudHypervisor::add_device(const DeviceKind& kind, const std::string& body) {
  const std::string what = fmt::format("The {} could not be added to the VM", kind.what);
  const Json device = complete_device(kind, parse_object(body, *kind.schema));
  const auto fail_with = [&](Failure failure) {
    failure.chain.insert(failure.chain.begin(), {"Error from API", what});
    throw failure;
  };
  if (state_ == State::kNone) fail_with({404, {"VM is not created"}});

  const std::string list(kind.list);
  Json config = config_;
  unsigned counter = device_counter_;
  if (list == "vsock") {
    config[list] = device;
  } else {
    if (member_of(config, list).is_null()) config[list] = Json::array();
    config[list].push_back(device);
  }
  try {
    validate(config);
    name_devices(config, counter);
    const Json& added = list == "vsock" ? config[list] : config[list].back();
    if (is_booted() && list == "disks") open_disk(added);
    if (is_booted() && list == "vsock") open_vsock(added);
  } catch (const Failure& failure) {
    fail_with(failure);
  }
  config_ = std::move(config);
  device_counter_ = counter;
  if (!is_booted()) return {};
  const Json& added = list == "vsock" ? config_[list] : config_[list].back();
  return dump(Json{{"id", string_of(added, "id")}, {"bdf", bdf_of(device_ids().size())}});
}

void CloudHypervisor::remove_device(const std::string& body) {
  const std::string id = string_of(parse_object(body, kRemoveDevice), "id");
  constexpr std::string_view kWhat = "The device could not be removed from the VM";
  if (state_ == State::kNone) throw Failure{404, {"Error from API", std::string(kWhat), "VM is not created"}};
  // The guest has not let it go yet: asking again changes nothing.
  if (std::find(ejecting_.begin(), ejecting_.end(), id) != ejecting_.end()) return;
  bool found = false;
  for (const std::string_view list : {"disks", "net", "fs", "pmem"}) {
    const auto devices = config_.find(list);
    if (devices == config_.end() || !devices->is_array()) continue;
    for (auto device = devices->begin(); device != devices->end(); ++device) {
      if (string_of(*device, "id") != id) continue;
      devices->erase(device);
      found = true;
      break;
    }
  }
  if (string_of(member_of(config_, "vsock"), "id") == id && !id.empty()) {
    config_.erase("vsock");
    found = true;
  }
  if (!found && !is_booted()) {
    throw Failure{
        404, {"Error from API", std::string(kWhat), fmt::format("No device with id {} to remove", dump(Json(id)))}};
  }
  if (!found) {
    throw Failure{404,
                  {"Error from API", std::string(kWhat), "Error from device manager",
                   fmt::format("Failed to find device corresponding to the given identifier: {}", id)}};
  }
  if (is_booted()) ejecting_.push_back(id);
}

void CloudHypervisor::resize(const std::string& body) {
  const Json wanted = parse_object(body, kResize);
  const auto fail_with = [](int status, std::vector<std::string> chain) {
    chain.insert(chain.begin(), {"Error from API", "The VM could not be resized"});
    throw Failure{status, std::move(chain)};
  };
  if (state_ == State::kNone) fail_with(404, {"VM is not created"});
  Json& cpus = config_["cpus"];
  if (const Json& vcpus = member_of(wanted, "desired_vcpus"); !vcpus.is_null()) {
    if (is_booted() && vcpus == 0) fail_with(500, {"Error from CPU manager", "Requested zero vCPUs"});
    if (is_booted() && vcpus > number_of(cpus, "max_vcpus", 1)) {
      fail_with(500, {"Error from CPU manager", "Requested vCPUs exceed maximum"});
    }
    cpus["boot_vcpus"] = vcpus;
  }
  Json& memory = config_["memory"];
  if (const Json& ram = member_of(wanted, "desired_ram"); !ram.is_null()) {
    if (is_booted() && ram > number_of(memory, "size", 0) + number_of(memory, "hotplug_size", 0)) {
      fail_with(500, {"Memory manager error", "Not enough space in the hotplug RAM region"});
    }
    // Not taken from the running guest; the next boot has it.
    memory["size"] = ram;
  }
  if (const Json& balloon = member_of(wanted, "desired_balloon"); !balloon.is_null()) {
    if (member_of(config_, "balloon").is_null()) {
      fail_with(500, {"Error from device manager", "Missing virtio-balloon, can't proceed as expected"});
    }
    config_["balloon"]["size"] = balloon;
  }
}

}  // namespace cocoon::simvmm::cloud_hypervisor
