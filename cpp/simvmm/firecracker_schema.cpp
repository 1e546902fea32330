#include "simvmm/firecracker_schema.h"

#include <array>
#include <string_view>

namespace cocoon::simvmm::firecracker {
namespace {

constexpr std::array<std::string_view, 3> kActions{"FlushMetrics", "InstanceStart", "SendCtrlAltDel"};
constexpr std::array<std::string_view, 2> kBackends{"File", "Uffd"};
constexpr std::array<std::string_view, 2> kCacheTypes{"Unsafe", "Writeback"};
constexpr std::array<std::string_view, 2> kEngines{"Async", "Sync"};
constexpr std::array<std::string_view, 3> kHugePages{"None", "Transparent", "2M"};
constexpr std::array<std::string_view, 4> kLoadHugePages{"Snapshot", "None", "Transparent", "2M"};
constexpr std::array<std::string_view, 2> kMmdsVersions{"V1", "V2"};
constexpr std::array<std::string_view, 2> kSnapshotTypes{"Diff", "Full"};
constexpr std::array<std::string_view, 2> kStates{"Paused", "Resumed"};

constexpr std::array<Field, 3> kTokenBucketFields{{
    {"size", Kind::kU64, true},
    {"one_time_burst", Kind::kU64},
    {"refill_time", Kind::kU64, true},
}};
constexpr Schema kTokenBucket{"TokenBucketConfig", kTokenBucketFields, true};
constexpr std::array<Field, 2> kRateLimiterFields{{
    {.name = "bandwidth", .kind = Kind::kStruct, .schema = &kTokenBucket},
    {.name = "ops", .kind = Kind::kStruct, .schema = &kTokenBucket},
}};
constexpr Schema kRateLimiter{"RateLimiterConfig", kRateLimiterFields, true};

constexpr std::array<Field, 1> kActionFields{{{"action_type", Kind::kEnum, true, kActions}}};

constexpr std::array<Field, 5> kBalloonFields{{
    {"amount_mib", Kind::kU32, true},
    {"deflate_on_oom", Kind::kBool, true},
    {"stats_polling_interval_s", Kind::kU16},
    {"free_page_hinting", Kind::kBool},
    {"free_page_reporting", Kind::kBool},
}};
constexpr std::array<Field, 1> kBalloonStatsUpdateFields{{{"stats_polling_interval_s", Kind::kU16, true}}};
constexpr std::array<Field, 1> kBalloonUpdateFields{{{"amount_mib", Kind::kU32, true}}};

constexpr std::array<Field, 3> kBootSourceFields{{
    {"kernel_image_path", Kind::kString, true},
    {"initrd_path", Kind::kString},
    {"boot_args", Kind::kString},
}};

constexpr std::array<Field, 9> kDriveFields{{
    {"drive_id", Kind::kString, true},
    {"partuuid", Kind::kString},
    {"is_root_device", Kind::kBool, true},
    {"cache_type", Kind::kEnum, false, kCacheTypes},
    {"is_read_only", Kind::kBool},
    {"path_on_host", Kind::kString},
    {.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
    {"io_engine", Kind::kEnum, false, kEngines},
    {"socket", Kind::kString},
}};
constexpr std::array<Field, 3> kDriveUpdateFields{{
    {"drive_id", Kind::kString, true},
    {"path_on_host", Kind::kString},
    {.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
}};

constexpr std::array<Field, 1> kEntropyFields{
    {{.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter}}};

constexpr std::array<Field, 5> kLoggerFields{{
    {"log_path", Kind::kString},
    {"level", Kind::kString},
    {"show_level", Kind::kBool},
    {"show_log_origin", Kind::kBool},
    {"module", Kind::kString},
}};

constexpr std::array<Field, 6> kMachineConfigFields{{
    {"vcpu_count", Kind::kU8, true},
    {"mem_size_mib", Kind::kU64, true},
    {"smt", Kind::kBool},
    {"cpu_template", Kind::kString},
    {"track_dirty_pages", Kind::kBool},
    {"huge_pages", Kind::kEnum, false, kHugePages},
}};
constexpr std::array<Field, 6> kMachineConfigUpdateFields{{
    {"vcpu_count", Kind::kU8},
    {"mem_size_mib", Kind::kU64},
    {"smt", Kind::kBool},
    {"cpu_template", Kind::kString},
    {"track_dirty_pages", Kind::kBool},
    {"huge_pages", Kind::kEnum, false, kHugePages},
}};

constexpr std::array<Field, 3> kMemoryHotplugFields{{
    {"total_size_mib", Kind::kU64, true},
    {"block_size_mib", Kind::kU64},
    {"slot_size_mib", Kind::kU64},
}};
constexpr std::array<Field, 1> kMemoryHotplugUpdateFields{{{"requested_size_mib", Kind::kU64, true}}};

constexpr std::array<Field, 3> kMetricsFields{{
    {"metrics_path", Kind::kString, true},
    {"emit_id", Kind::kBool},
    {"properties", Kind::kAny},
}};

constexpr std::array<Field, 4> kMmdsConfigFields{{
    {"version", Kind::kEnum, false, kMmdsVersions},
    {"network_interfaces", Kind::kStrings, true},
    {"ipv4_address", Kind::kString},
    {"imds_compat", Kind::kBool},
}};

constexpr std::array<Field, 6> kNetworkInterfaceFields{{
    {"iface_id", Kind::kString, true},
    {"host_dev_name", Kind::kString, true},
    {"guest_mac", Kind::kMac},
    {"mtu", Kind::kU16},
    {.name = "rx_rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
    {.name = "tx_rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
}};
constexpr std::array<Field, 3> kNetworkInterfaceUpdateFields{{
    {"iface_id", Kind::kString, true},
    {.name = "rx_rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
    {.name = "tx_rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
}};

constexpr std::array<Field, 5> kPmemFields{{
    {"id", Kind::kString, true},
    {"path_on_host", Kind::kString, true},
    {"root_device", Kind::kBool},
    {"read_only", Kind::kBool},
    {.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
}};
constexpr std::array<Field, 2> kPmemUpdateFields{{
    {"id", Kind::kString, true},
    {.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kRateLimiter},
}};

constexpr std::array<Field, 2> kSerialFields{{
    {"serial_out_path", Kind::kString},
    {.name = "rate_limiter", .kind = Kind::kStruct, .schema = &kTokenBucket},
}};

constexpr std::array<Field, 3> kSnapshotCreateFields{{
    {"snapshot_type", Kind::kEnum, false, kSnapshotTypes},
    {"snapshot_path", Kind::kString, true},
    {"mem_file_path", Kind::kString, true},
}};
constexpr std::array<Field, 2> kMemoryBackendFields{{
    {"backend_path", Kind::kString, true},
    {"backend_type", Kind::kEnum, true, kBackends},
}};
constexpr Schema kMemoryBackend{"MemBackendConfig", kMemoryBackendFields, true};
constexpr std::array<Field, 2> kNetworkOverrideFields{{
    {"iface_id", Kind::kString, true},
    {"host_dev_name", Kind::kString, true},
}};
constexpr Schema kNetworkOverride{"NetworkOverride", kNetworkOverrideFields, true};
constexpr std::array<Field, 1> kVsockOverrideFields{{{"uds_path", Kind::kString, true}}};
constexpr Schema kVsockOverride{"VsockOverride", kVsockOverrideFields, true};
constexpr std::array<Field, 10> kSnapshotLoadFields{{
    {"snapshot_path", Kind::kString, true},
    {"mem_file_path", Kind::kString},
    {.name = "mem_backend", .kind = Kind::kStruct, .schema = &kMemoryBackend},
    {"enable_diff_snapshots", Kind::kBool},
    {"track_dirty_pages", Kind::kBool},
    {"resume_vm", Kind::kBool},
    {.name = "network_overrides", .kind = Kind::kList, .schema = &kNetworkOverride},
    {.name = "vsock_override", .kind = Kind::kStruct, .schema = &kVsockOverride},
    {"clock_realtime", Kind::kBool},
    {"huge_pages", Kind::kEnum, false, kLoadHugePages},
}};

constexpr std::array<Field, 1> kVmFields{{{"state", Kind::kEnum, true, kStates}}};

constexpr std::array<Field, 3> kVsockFields{{
    {"vsock_id", Kind::kString},
    {"guest_cid", Kind::kU32, true},
    {"uds_path", Kind::kString, true},
}};

}  // namespace

const Schema kAction{"ActionBody", kActionFields, true};
const Schema kBalloon{"BalloonDeviceConfig", kBalloonFields, true};
const Schema kBalloonStatsUpdate{"BalloonUpdateStatsConfig", kBalloonStatsUpdateFields, true};
const Schema kBalloonUpdate{"BalloonUpdateConfig", kBalloonUpdateFields, true};
const Schema kBootSource{"BootSourceConfig", kBootSourceFields, true};
const Schema kDrive{"BlockDeviceConfig", kDriveFields, true};
const Schema kDriveUpdate{"BlockDeviceUpdateConfig", kDriveUpdateFields, true};
const Schema kEntropy{"EntropyDeviceConfig", kEntropyFields, true};
const Schema kLogger{"LoggerConfig", kLoggerFields, true};
const Schema kMachineConfig{"MachineConfig", kMachineConfigFields, true};
const Schema kMachineConfigUpdate{"MachineConfigUpdate", kMachineConfigUpdateFields, true};
const Schema kMemoryHotplug{"MemoryHotplugConfig", kMemoryHotplugFields, true};
const Schema kMemoryHotplugUpdate{"MemoryHotplugSizeUpdate", kMemoryHotplugUpdateFields, true};
const Schema kMetrics{"MetricsConfig", kMetricsFields, true};
const Schema kMmdsConfig{"MmdsConfig", kMmdsConfigFields, true};
const Schema kNetworkInterface{"NetworkInterfaceConfig", kNetworkInterfaceFields, true};
const Schema kNetworkInterfaceUpdate{"NetworkInterfaceUpdateConfig", kNetworkInterfaceUpdateFields, true};
const Schema kPmem{"PmemConfig", kPmemFields, true};
const Schema kPmemUpdate{"PmemDeviceUpdateConfig", kPmemUpdateFields, true};
const Schema kSerial{"SerialConfig", kSerialFields, true};
const Schema kSnapshotCreate{"CreateSnapshotParams", kSnapshotCreateFields, true};
const Schema kSnapshotLoad{"LoadSnapshotConfig", kSnapshotLoadFields, true};
const Schema kVm{"Vm", kVmFields, true};
const Schema kVsock{"VsockDeviceConfig", kVsockFields, true};

}  // namespace cocoon::simvmm::firecracker
