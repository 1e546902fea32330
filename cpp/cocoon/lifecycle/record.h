#pragma once
// What is kept of one VM and of one snapshot: plain values and their JSON documents.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/metering/entry.h"

namespace cocoon::lifecycle {

enum class VmState : std::uint8_t { kCreating, kCreated, kRunning, kStopped, kHibernated, kError };

std::string_view to_string(VmState state);
VmState parse_state(std::string_view text);  // Errors InvalidArgument.

// One instant on both clocks. `boot_id` says to which boot `uptime_ns` belongs (8 hex digits).
struct Instant {
  std::int64_t wall_ns = 0;    // since the epoch
  std::int64_t uptime_ns = 0;  // CLOCK_BOOTTIME
  std::string boot_id;
  bool operator==(const Instant&) const = default;
};

struct DiskConfig {
  std::string path;  // absolute; inside the run dir for the VM's own disks
  bool readonly = false;
  std::string format = "raw";  // raw, qcow2
  std::string role = "data";   // layer, cow, cidata, data
  std::string serial;
  std::int64_t size_bytes = 0;  // logical
  bool operator==(const DiskConfig&) const = default;
};

struct VmConfig {
  std::string name;
  std::int64_t cpu = 1;
  std::int64_t mem_bytes = 0;
  std::int64_t storage_bytes = 0;  // of the VM's own writable disk; 0: it has none
  std::string kernel;
  std::string initrd;
  std::string cmdline;
  std::vector<DiskConfig> disks;
  std::map<std::string, std::string> labels;
  std::string machine;            // "": the hypervisor's default (qemu: microvm)
  std::string accelerator;        // "": whatever runs guests here; "kvm", "tcg"
  std::string network_namespace;  // path; "": the engine's own
  bool operator==(const VmConfig&) const = default;
};

// Which process is this VM's VMM: a pid alone is reused, with its start time and boot it never is.
struct ProcessIdentity {
  std::int64_t pid = 0;
  std::uint64_t start_ticks = 0;  // field 22 of /proc/PID/stat
  std::string boot_id;
  bool operator==(const ProcessIdentity&) const = default;
};

struct VmRecord {
  std::string id;
  std::string hypervisor;
  VmState state = VmState::kCreating;
  VmConfig config;
  metering::Shape shape;        // what is billed: config.cpu, config.mem_bytes, own disk + writable data disks
  std::int64_t generation = 0;  // raised by each commit
  bool first_booted = false;
  bool dirty = false;  // a restore failed half way: start refuses it
  std::int64_t created_at_ns = 0;
  std::int64_t updated_at_ns = 0;
  std::optional<Instant> started;  // compute is open iff started is set and stopped_at_ns is not
  std::optional<std::int64_t> stopped_at_ns;
  std::optional<Instant> compute_since;  // a relabel has reopened the compute interval then; else it began at `started`
  std::optional<Instant> last_alive;     // when the VMM was last proven alive within the open compute interval
  std::uint64_t compute_interval = 0;    // seq of the start of the open interval, 0 when closed
  std::uint64_t storage_interval = 0;
  std::optional<ProcessIdentity> process;  // of the VMM that `started` speaks of
  std::vector<std::string> snapshot_ids;   // taken of it; some may be removed since
  std::string kept_snapshot_id;            // holds a hibernated VM's memory
  std::string run_dir;
  std::string log_dir;
  bool operator==(const VmRecord&) const = default;

  [[nodiscard]] bool compute_open() const { return started.has_value() && !stopped_at_ns.has_value(); }
  [[nodiscard]] bool storage_open() const { return storage_interval != 0; }
};

struct SnapshotRecord {
  std::string id;
  std::string name;
  std::string description;
  std::string hypervisor;
  std::string vm_id;
  std::int64_t cpu = 0;
  std::int64_t mem_bytes = 0;
  std::int64_t storage_bytes = 0;
  std::int64_t size_bytes = 0;  // logical bytes of its data files
  bool pending = true;
  bool kept = false;  // holds a hibernated VM's memory
  std::int64_t generation = 0;
  std::int64_t created_at_ns = 0;
  std::uint64_t storage_interval = 0;
  std::string data_dir;
  bool operator==(const SnapshotRecord&) const = default;
};

struct SavedFile {
  std::string name;  // in the snapshot's folder
  std::int64_t size_bytes = 0;
  bool operator==(const SavedFile&) const = default;
};

// What a snapshot of a VM says of it, in the file kSavedVmFile of its folder: all that it takes to make that VM, or
// another one like it, go on.
struct SavedVm {
  std::string hypervisor;
  std::string vmm_version;
  VmConfig config;                      // as the VM had it, with paths of its own run dir
  std::vector<std::string> disk_files;  // for each disk of `config`: its copy in the folder; "": used where it lies
  std::vector<SavedFile> state_files;   // devices and memory
  std::map<std::string, std::string> facts;  // the driver's own
  bool operator==(const SavedVm&) const = default;
};

inline constexpr const char* kSavedVmFile = "vm.json";

// What a VM of this configuration is billed for: its own disk and its writable data disks, logical bytes.
// Errors   InvalidArgument: a negative number, or a sum beyond 2^63 - 1.
metering::Shape shape_of(const VmConfig& config);

// The rule for names of VMs and snapshots: ^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$. Errors InvalidArgument.
void check_name(std::string_view name);

// Errors   InvalidArgument: more than 64 labels, a key not of 1 to 63 bytes, a value over 256 bytes, text that is not
//          UTF-8 or has control characters.
void check_labels(const std::map<std::string, std::string>& labels);

// The JSON documents of the store and of snapshots. Reading is strict: a missing or mistyped field is an
// InvalidArgument that names it; unknown and repeated fields are refused too (a newer schema has a newer database
// version). The order of fields is free. Empty and default values are left out. Writing text that is not UTF-8 is an
// InvalidArgument as well.
std::string to_document(const VmRecord& record);
std::string to_document(const SnapshotRecord& record);
std::string to_document(const SavedVm& saved);
VmRecord vm_from_document(std::string_view document);
SnapshotRecord snapshot_from_document(std::string_view document);
SavedVm saved_vm_from_document(std::string_view document);

}  // namespace cocoon::lifecycle
