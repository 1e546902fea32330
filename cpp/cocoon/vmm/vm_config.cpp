#include "cocoon/vmm/vm_config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <vector>

#include "cocoon/system/fd.h"

namespace cocoon::vmm {
namespace {

using lifecycle::DiskConfig;
using lifecycle::VmConfig;

constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kMinMemory = 32 * kMiB;  // below it not even a small Linux finds its initramfs
constexpr std::size_t kMaxSerialBytes = 20;     // virtio's VIRTIO_BLK_ID_BYTES; VMMs cut longer ones silently

void refuse_nul(std::string_view what, const std::string& value) {
  if (value.find('\0') != std::string::npos) throw InvalidArgument(fmt::format("{}: holds a NUL byte", what));
}

void require_absolute(std::string_view what, const std::string& path) {
  refuse_nul(what, path);
  if (!system::Path(path).is_absolute()) {
    throw InvalidArgument(fmt::format("{}: '{}' is not an absolute path", what, path));
  }
}

// `writable`: the VMM will write to it. Block devices are as good as files for a disk.
void require_file(std::string_view what, const std::string& path, bool writable = false, bool device = false) {
  require_absolute(what, path);
  // O_NONBLOCK: opening a fifo would wait for its other end.
  const system::Fd fd(::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) throw InvalidArgument(system_message(fmt::format("{}: '{}'", what, path), errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) {
    throw InvalidArgument(system_message(fmt::format("{}: '{}'", what, path), errno));
  }
  if (!S_ISREG(status.st_mode) && (!device || !S_ISBLK(status.st_mode))) {
    throw InvalidArgument(
        fmt::format("{}: '{}' is not a regular file{}", what, path, device ? " or block device" : ""));
  }
}

void check_kernel(const VmConfig& config, std::size_t max_cmdline_bytes) {
  refuse_nul("cmdline", config.cmdline);
  if (config.kernel.empty()) {
    if (!config.initrd.empty()) throw InvalidArgument(fmt::format("initrd: '{}' without a kernel", config.initrd));
    if (!config.cmdline.empty()) throw InvalidArgument(fmt::format("cmdline: '{}' without a kernel", config.cmdline));
    return;
  }
  require_file("kernel", config.kernel);
  if (!config.initrd.empty()) require_file("initrd", config.initrd);
  if (config.cmdline.size() > max_cmdline_bytes) {
    throw InvalidArgument(
        fmt::format("cmdline: {} bytes, at most {} are allowed", config.cmdline.size(), max_cmdline_bytes));
  }
}

void check_disks(const std::vector<DiskConfig>& disks, const ConfigLimits& limits) {
  if (disks.size() > limits.max_disks) {
    throw InvalidArgument(
        fmt::format("disks: {}, at most {} are allowed for {}", disks.size(), limits.max_disks, limits.hypervisor));
  }
  std::set<std::string> paths;
  std::set<std::string> serials;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    const DiskConfig& disk = disks[i];
    const std::string what = fmt::format("disk {}", i);
    require_one_of(what + " format", disk.format, limits.hypervisor, limits.disk_formats);
    refuse_nul(what + " serial", disk.serial);
    if (disk.serial.size() > kMaxSerialBytes) {
      throw InvalidArgument(fmt::format("{} serial: '{}' has {} bytes, at most {} are allowed", what, disk.serial,
                                        disk.serial.size(), kMaxSerialBytes));
    }
    if (!disk.serial.empty() && !serials.insert(disk.serial).second) {
      throw InvalidArgument(fmt::format("{} serial: '{}' is another disk's too", what, disk.serial));
    }
    // The VM's own disks are made after this check.
    if (disk.role == "cow" || disk.role == "cidata") {
      require_absolute(what, disk.path);
    } else {
      require_file(what, disk.path, !disk.readonly, true);
    }
    if (!paths.insert(system::Path(disk.path).lexically_normal().string()).second) {
      throw InvalidArgument(fmt::format("{}: '{}' is another disk's too", what, disk.path));
    }
  }
}

}  // namespace

void check_config(const VmConfig& config, const ConfigLimits& limits) {
  if (config.cpu < 1 || config.cpu > limits.max_cpus) {
    throw InvalidArgument(
        fmt::format("cpu: {}, allowed for {}: 1 to {}", config.cpu, limits.hypervisor, limits.max_cpus));
  }
  if (config.mem_bytes < kMinMemory || config.mem_bytes % kMiB != 0) {
    throw InvalidArgument(fmt::format("memory: {} bytes, allowed for {}: whole MiB, at least {}", config.mem_bytes,
                                      limits.hypervisor, kMinMemory / kMiB));
  }
  check_kernel(config, limits.max_cmdline_bytes);
  check_disks(config.disks, limits);
}

bool has_program_name(const system::Path& binary, std::string_view prefix) {
  return binary.filename().string().starts_with(prefix);
}

void require_program_name(const system::Path& binary, std::string_view prefix) {
  if (has_program_name(binary, prefix)) return;
  throw InvalidArgument(
      fmt::format("binary: '{}', the program's name must begin with \"{}\": its processes are known again by it",
                  binary.string(), prefix));
}

std::string path_for_vmm(const std::string& path, const system::Path& run_dir) {
  const system::Path relative = system::Path(path).lexically_normal().lexically_relative(run_dir.lexically_normal());
  const bool inside = !relative.empty() && *relative.begin() != ".." && relative != ".";
  return inside ? relative.string() : path;
}

bool has_parameter(std::string_view cmdline, std::string_view name) {
  for (std::size_t at = 0; at < cmdline.size();) {
    const std::size_t end = std::min(cmdline.find(' ', at), cmdline.size());
    const std::string_view word = cmdline.substr(at, end - at);
    if (word == name || (word.starts_with(name) && word[name.size()] == '=')) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace cocoon::vmm
