#include "simvmm/cloud_hypervisor_config.h"

#include <algorithm>
#include <array>
#include <set>

#include <fmt/format.h>

namespace cocoon::simvmm::cloud_hypervisor {
namespace {

using namespace std::string_view_literals;

constexpr std::array kConsoleModes{"Off"sv, "Pty"sv, "Tty"sv, "File"sv, "Socket"sv, "Null"sv};
constexpr std::array kHotplugMethods{"Acpi"sv, "VirtioMem"sv};
constexpr std::array kImageTypes{"FixedVhd"sv, "Qcow2"sv, "Raw"sv, "Vhdx"sv, "Unknown"sv};
constexpr std::array kRestoreModes{"Copy"sv, "OnDemand"sv};
constexpr std::array kCoreScheduling{"Vm"sv, "Vcpu"sv, "Off"sv};

constexpr std::array<Field, 10> kCpuFields{{
    {"boot_vcpus", Kind::kU32, true},
    {"max_vcpus", Kind::kU32, true},
    {"topology"},
    {"kvm_hyperv", Kind::kBool},
    {"max_phys_bits", Kind::kU8},
    {"affinity"},
    {"features"},
    {"nested", Kind::kBool},
    {"core_scheduling", Kind::kEnum, false, kCoreScheduling},
    {"profile", Kind::kString},
}};
constexpr Schema kCpus{"CpusConfig", kCpuFields};

constexpr std::array<Field, 12> kZoneFields{{
    {"id", Kind::kString, true},
    {"size", Kind::kU64, true},
    {"file", Kind::kString},
    {"shared", Kind::kBool},
    {"hugepages", Kind::kBool},
    {"hugepage_size", Kind::kU64},
    {"host_numa_node", Kind::kU32},
    {"hotplug_size", Kind::kU64},
    {"hotplugged_size", Kind::kU64},
    {"prefault", Kind::kBool},
    {"reserve", Kind::kBool},
    {"mergeable", Kind::kBool},
}};
constexpr Schema kZone{"MemoryZoneConfig", kZoneFields};

constexpr std::array<Field, 12> kMemoryFields{{
    {"size", Kind::kU64, true},
    {"mergeable", Kind::kBool},
    {"hotplug_method", Kind::kEnum, false, kHotplugMethods},
    {"hotplug_size", Kind::kU64},
    {"hotplugged_size", Kind::kU64},
    {"shared", Kind::kBool},
    {"hugepages", Kind::kBool},
    {"hugepage_size", Kind::kU64},
    {"prefault", Kind::kBool},
    {"reserve", Kind::kBool},
    {.name = "zones", .kind = Kind::kList, .schema = &kZone},
    {"thp", Kind::kBool},
}};
constexpr Schema kMemory{"MemoryConfig", kMemoryFields};

constexpr std::array<Field, 4> kPayloadFields{{
    {"firmware", Kind::kString},
    {"kernel", Kind::kString},
    {"cmdline", Kind::kString},
    {"initramfs", Kind::kString},
}};
constexpr Schema kPayload{"PayloadConfig", kPayloadFields};

constexpr std::array<Field, 21> kDiskFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},
    {"iommu", Kind::kBool},
    {"path", Kind::kString},
    {"readonly", Kind::kBool},
    {"direct", Kind::kBool},
    {"num_queues", Kind::kU64},
    {"queue_size", Kind::kU16},
    {"vhost_user", Kind::kBool},
    {"vhost_socket", Kind::kString},
    {"rate_limit_group", Kind::kString},
    {"rate_limiter_config"},
    {"disable_io_uring", Kind::kBool},
    {"disable_aio", Kind::kBool},
    {"serial", Kind::kString},
    {"queue_affinity"},
    {"backing_files", Kind::kBool},
    {"sparse", Kind::kBool},
    {"image_type", Kind::kEnum, false, kImageTypes},
    {"lock_granularity", Kind::kString},
}};
constexpr Schema kDisk{"DiskConfig", kDiskFields};

constexpr std::array<Field, 20> kNetFields{{
    {"id", Kind::kString},         {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},  {"iommu", Kind::kBool},
    {"tap", Kind::kString},        {"ip", Kind::kString},
    {"mask", Kind::kString},       {"mac", Kind::kMac},
    {"host_mac", Kind::kMac},      {"mtu", Kind::kU16},
    {"num_queues", Kind::kU64},    {"queue_size", Kind::kU16},
    {"vhost_user", Kind::kBool},   {"vhost_socket", Kind::kString},
    {"vhost_mode", Kind::kString}, {"fds"},
    {"rate_limiter_config"},       {"offload_tso", Kind::kBool},
    {"offload_ufo", Kind::kBool},  {"offload_csum", Kind::kBool},
}};
constexpr Schema kNet{"NetConfig", kNetFields};

constexpr std::array<Field, 7> kFsFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},
    {"tag", Kind::kString, true},
    {"socket", Kind::kString, true},
    {"num_queues", Kind::kU64},
    {"queue_size", Kind::kU16},
}};
constexpr Schema kFs{"FsConfig", kFsFields};

constexpr std::array<Field, 7> kPmemFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},
    {"iommu", Kind::kBool},
    {"file", Kind::kString, true},
    {"size", Kind::kU64},
    {"discard_writes", Kind::kBool},
}};
constexpr Schema kPmem{"PmemConfig", kPmemFields};

constexpr std::array<Field, 6> kVsockFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},
    {"iommu", Kind::kBool},
    {"cid", Kind::kU32, true},
    {"socket", Kind::kString, true},
}};
constexpr Schema kVsock{"VsockConfig", kVsockFields};

constexpr std::array<Field, 4> kRngFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"iommu", Kind::kBool},
    {"src", Kind::kString, true},
}};
constexpr Schema kRng{"RngConfig", kRngFields};

constexpr std::array<Field, 7> kBalloonFields{{
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"pci_device_id", Kind::kU8},
    {"iommu", Kind::kBool},
    {"size", Kind::kU64, true},
    {"deflate_on_oom", Kind::kBool},
    {"free_page_reporting", Kind::kBool},
}};
constexpr Schema kBalloon{"BalloonConfig", kBalloonFields};

constexpr std::array<Field, 3> kSerialFields{{
    {"file", Kind::kString},
    {"mode", Kind::kEnum, true, kConsoleModes},
    {"socket", Kind::kString},
}};
constexpr Schema kSerial{"SerialConfig", kSerialFields};
constexpr std::array<Field, 6> kConsoleFields{{
    {"file", Kind::kString},
    {"mode", Kind::kEnum, true, kConsoleModes},
    {"socket", Kind::kString},
    {"id", Kind::kString},
    {"pci_segment", Kind::kU16},
    {"iommu", Kind::kBool},
}};
constexpr Schema kConsole{"ConsoleConfig", kConsoleFields};
constexpr std::array<Field, 3> kDebugConsoleFields{{
    {"file", Kind::kString},
    {"mode", Kind::kEnum, true, kConsoleModes},
    {"iobase", Kind::kU16},
}};
constexpr Schema kDebugConsole{"DebugConsoleConfig", kDebugConsoleFields};

constexpr std::array<Field, 24> kVmFields{{
    {.name = "cpus", .kind = Kind::kStruct, .schema = &kCpus},
    {.name = "memory", .kind = Kind::kStruct, .schema = &kMemory},
    {.name = "payload", .kind = Kind::kStruct, .schema = &kPayload},
    {"rate_limit_groups"},
    {.name = "disks", .kind = Kind::kList, .schema = &kDisk},
    {.name = "net", .kind = Kind::kList, .schema = &kNet},
    {.name = "rng", .kind = Kind::kStruct, .schema = &kRng},
    {.name = "balloon", .kind = Kind::kStruct, .schema = &kBalloon},
    {.name = "fs", .kind = Kind::kList, .schema = &kFs},
    {.name = "pmem", .kind = Kind::kList, .schema = &kPmem},
    {.name = "serial", .kind = Kind::kStruct, .schema = &kSerial},
    {.name = "console", .kind = Kind::kStruct, .schema = &kConsole},
    {.name = "debug_console", .kind = Kind::kStruct, .schema = &kDebugConsole},
    {"devices"},
    {.name = "vsock", .kind = Kind::kStruct, .schema = &kVsock},
    {"pvpanic", Kind::kBool},
    {"iommu", Kind::kBool},
    {"numa"},
    {"watchdog", Kind::kBool},
    {"pci_segments"},
    {"platform"},
    {"tpm"},
    {"landlock_enable", Kind::kBool},
    {"landlock_rules"},
}};

constexpr std::array<Field, 1> kRemoveDeviceFields{{{"id", Kind::kString, true}}};
constexpr std::array<Field, 3> kResizeFields{{
    {"desired_vcpus", Kind::kU32},
    {"desired_ram", Kind::kU64},
    {"desired_balloon", Kind::kU64},
}};
constexpr std::array<Field, 6> kRestoreFields{{
    {"source_url", Kind::kString, true},
    {"prefault", Kind::kBool},
    {"memory_restore_mode", Kind::kEnum, false, kRestoreModes},
    {"net_fds"},
    {"resume", Kind::kBool},
    {"zone_updates"},
}};
constexpr std::array<Field, 1> kSnapshotFields{{{"destination_url", Kind::kString, true}}};

constexpr std::array<DeviceKind, 5> kDeviceKinds{{
    {"disks", "disk", "_disk", &kDisk},
    {"net", "network device", "_net", &kNet},
    {"fs", "fs", "_fs", &kFs},
    {"pmem", "pmem device", "_pmem", &kPmem},
    {"vsock", "vsock device", "_vsock", &kVsock},
}};

// The defaults of each structure, by its name in VmConfig.
const Json& defaults_of(std::string_view name) {
  static const Json kDefaults = Json::parse(R"({
    "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
             "nested": true, "core_scheduling": "Vm", "profile": "Host"},
    "memory": {"size": 536870912, "mergeable": false, "hotplug_method": "Acpi", "shared": false, "hugepages": false,
               "prefault": false, "reserve": false, "thp": true},
    "zones": {"shared": false, "hugepages": false, "prefault": false, "reserve": false, "mergeable": false},
    "disks": {"pci_segment": 0, "readonly": false, "direct": false, "num_queues": 1, "queue_size": 128,
              "vhost_user": false, "disable_io_uring": false, "disable_aio": false, "backing_files": false,
              "sparse": true, "image_type": "Unknown", "lock_granularity": "ByteRange"},
    "net": {"pci_segment": 0, "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client",
            "offload_tso": true, "offload_ufo": true, "offload_csum": true},
    "fs": {"pci_segment": 0, "num_queues": 1, "queue_size": 1024},
    "pmem": {"pci_segment": 0, "discard_writes": false},
    "vsock": {"pci_segment": 0},
    "rng": {"pci_segment": 0, "src": "/dev/urandom"},
    "balloon": {"pci_segment": 0, "deflate_on_oom": false, "free_page_reporting": false},
    "serial": {"mode": "Null"},
    "console": {"mode": "Tty", "pci_segment": 0},
    "debug_console": {"mode": "Off", "iobase": 233}
  })");
  return member_of(kDefaults, name);
}

Json complete_struct(const Json& given, const Schema& schema, const Json& defaults) {
  Json result = Json::object();
  for (const Field& field : schema.fields) {
    const Json& value = member_of(given, field.name);
    const Json& otherwise = member_of(defaults, field.name);
    if (value.is_null() && otherwise.is_null()) continue;
    if (field.kind == Kind::kList && value.is_array()) {
      Json list = Json::array();
      for (const Json& element : value)
        list.push_back(complete_struct(element, *field.schema, defaults_of(field.name)));
      result[std::string(field.name)] = std::move(list);
    } else {
      result[std::string(field.name)] = value.is_null() ? otherwise : value;
    }
  }
  return result;
}

[[noreturn]] void invalid(int status, std::string text) {
  throw Failure{status, {"Failed to validate config", std::move(text)}};
}

[[noreturn]] void not_bootable(std::string text) {
  throw Failure{400, {"Failed to validate config", "Payload configuration is not bootable", std::move(text)}};
}

void check_queues(const Json& device, std::uint64_t vcpus) {
  const std::uint64_t size = number_of(device, "queue_size", 0);
  if (size == 0 || size > 32768 || (size & (size - 1)) != 0) {
    invalid(400, fmt::format("Queue size must be a power of 2 no greater than 32768: {}", size));
  }
  const std::uint64_t count = number_of(device, "num_queues", 1);
  if (count > vcpus) invalid(400, fmt::format("Queue count ({}) must not exceed boot vCPUs ({})", count, vcpus));
}

}  // namespace

const Schema kVmConfig{"VmConfig", kVmFields};
const Schema kRemoveDevice{"VmRemoveDeviceData", kRemoveDeviceFields};
const Schema kResize{"VmResizeData", kResizeFields};
const Schema kRestore{"RestoreConfig", kRestoreFields};
const Schema kSnapshot{"VmSnapshotConfig", kSnapshotFields};

const DeviceKind* device_kind(std::string_view call) {
  constexpr std::array kCalls{"vm.add-disk"sv, "vm.add-net"sv, "vm.add-fs"sv, "vm.add-pmem"sv, "vm.add-vsock"sv};
  const auto* const found = std::find(kCalls.begin(), kCalls.end(), call);
  return found == kCalls.end() ? nullptr : &kDeviceKinds.at(static_cast<std::size_t>(found - kCalls.begin()));
}

Json complete(const Json& config) {
  Json result = Json::object();
  for (const Field& field : kVmFields) {
    const std::string name(field.name);
    const Json& given = member_of(config, name);
    const Json& defaults = defaults_of(name);
    // Devices that a VM has only if they are asked for; the others it has in any case.
    const bool optional = name == "vsock" || name == "balloon";
    if (field.kind == Kind::kStruct && (!given.is_null() || (!defaults.is_null() && !optional))) {
      result[name] = complete_struct(given, *field.schema, defaults);
    } else if (field.kind == Kind::kList && given.is_array()) {
      Json list = Json::array();
      for (const Json& device : given) list.push_back(complete_struct(device, *field.schema, defaults));
      result[name] = std::move(list);
    } else if (field.kind == Kind::kBool) {
      result[name] = bool_of(config, name, false);
    } else if (!given.is_null()) {
      result[name] = given;
    }
  }
  return result;
}

Json complete_device(const DeviceKind& kind, const Json& device) {
  return complete_struct(device, *kind.schema, defaults_of(kind.list));
}

void name_devices(Json& config, unsigned& counter) {
  for (const DeviceKind& kind : kDeviceKinds) {
    const auto found = config.find(kind.list);
    if (found == config.end() || found->is_null()) continue;
    const auto name = [&](Json& device) {
      if (!member_of(device, "id").is_null()) return;
      Json named{{"id", fmt::format("{}{}", kind.prefix, counter++)}};
      named.update(device);
      device = std::move(named);
    };
    if (found->is_array()) {
      for (Json& device : *found) name(device);
    } else {
      name(*found);
    }
  }
}

void validate(const Json& config) {
  const Json& payload = member_of(config, "payload");
  const bool firmware = !member_of(payload, "firmware").is_null();
  const bool kernel = !member_of(payload, "kernel").is_null();
  if (!firmware && !kernel) not_bootable("No bootitem provided: neither firmware nor kernel");
  if (firmware && kernel) not_bootable("Specifying a kernel is not supported when a firmware is provided");

  const std::uint64_t vcpus = number_of(member_of(config, "cpus"), "boot_vcpus", 1);
  const std::uint64_t most_vcpus = number_of(member_of(config, "cpus"), "max_vcpus", 1);
  if (most_vcpus < vcpus) invalid(400, fmt::format("Max CPUs ({}) lower than boot CPUs ({})", most_vcpus, vcpus));

  std::set<std::string> ids;
  const auto check_id = [&](const Json& device) {
    const std::string id = string_of(device, "id");
    if (!id.empty() && !ids.insert(id).second) invalid(409, fmt::format("Identifier {} is not unique", id));
  };
  for (const Json& disk : member_of(config, "disks")) {
    check_queues(disk, vcpus);
    const std::size_t length = string_of(disk, "serial").size();
    if (length > 20) {
      invalid(400, fmt::format("Block device serial length ({}) exceeds maximum allowed length (20)", length));
    }
    check_id(disk);
  }
  for (const std::string_view list : {"net", "fs", "pmem"}) {
    for (const Json& device : member_of(config, list)) check_id(device);
  }
  if (const Json& balloon = member_of(config, "balloon"); !balloon.is_null()) {
    const std::uint64_t size = number_of(balloon, "size", 0);
    const std::uint64_t ram = memory_bytes(config);
    if (size > ram) invalid(400, fmt::format("Balloon size ({}) greater than RAM ({})", size, ram));
  }
  if (const Json& vsock = member_of(config, "vsock"); !vsock.is_null()) {
    const std::uint64_t cid = number_of(vsock, "cid", 0);
    if (cid < 3 || cid == 0xffffffff) invalid(400, fmt::format("{} is a special VSOCK CID", cid));
    check_id(vsock);
  }
}

std::uint64_t memory_bytes(const Json& config) {
  const Json& memory = member_of(config, "memory");
  std::uint64_t bytes = number_of(memory, "size", 0);
  for (const Json& zone : member_of(memory, "zones")) bytes += number_of(zone, "size", 0);
  return bytes;
}

}  // namespace cocoon::simvmm::cloud_hypervisor
