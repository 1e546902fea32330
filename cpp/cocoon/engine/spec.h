#pragma once
// What a caller asks for when making a VM, checked before anything is made.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::engine {

inline constexpr std::int64_t kDefaultCpu = 1;
inline constexpr std::int64_t kDefaultMemBytes = std::int64_t{512} << 20;
inline constexpr std::int64_t kDefaultStorageBytes = std::int64_t{10} << 30;

// One disk as asked for. Roles: `cow` is copied into the run dir and belongs to the VM; `data` is used where it lies;
// `layer` and `cidata` are used where they lie, read-only.
struct DiskSpec {
  std::string path;
  bool readonly = false;
  std::string format = "raw";
  std::string role = "data";
  std::string serial;
};

struct VmSpec {
  std::string name;
  std::optional<std::int64_t> cpu;
  std::optional<std::int64_t> mem_bytes;
  std::optional<std::int64_t> storage_bytes;  // of the VM's own disk; 0: it has none
  std::string kernel;
  std::string initrd;
  std::string cmdline;
  std::vector<DiskSpec> disks;
  std::map<std::string, std::string> labels;
  std::string machine;
  std::string accelerator;
  std::string network_namespace;
};

// Errors   InvalidArgument naming the argument, its value and what is allowed. Looks at no file.
void check(const DiskSpec& disk);
void check(const VmSpec& spec);

// The configuration of a new VM: defaults filled in, paths absolute, files looked at, the own disk planned in
// `run_dir`. Errors   InvalidArgument: a file is missing, unreadable or not of its format; storage smaller than the
// disk's content.
lifecycle::VmConfig resolve(const VmSpec& spec, const system::Path& run_dir);

// Makes the VM's own disk as planned. `spec` is what `config` was resolved from.
// Blocks   while a base is copied. Errors StoreError, Cancelled.
void make_own_disk(const VmSpec& spec, const lifecycle::VmConfig& config, system::Cancel& cancel);

// An existing regular file or block device that may be read, by its absolute path. Errors InvalidArgument.
std::string existing_file(std::string_view what, const std::string& path);

// The backing file that a qcow2 image names; "" if it names none, or is raw. Errors InvalidArgument.
std::string disk_backing(const system::Path& path, const std::string& format);

// Logical size of a disk image. Errors InvalidArgument: not of that format.
std::int64_t disk_size(const system::Path& path, const std::string& format);

}  // namespace cocoon::engine
