#include "cocoon/engine/spec.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::engine {
namespace {

constexpr std::array<std::string_view, 4> kRoles{"layer", "cow", "cidata", "data"};
constexpr std::array<std::string_view, 2> kFormats{"raw", "qcow2"};
constexpr std::size_t kMaxSerial = 20;  // virtio-blk's limit, see the VIRTIO specification, 5.2.6.1
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 60;
constexpr std::int64_t kMaxCpu = 1024;

template <std::size_t N>
bool is_one_of(std::string_view value, const std::array<std::string_view, N>& allowed) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

void check_plain(std::string_view what, std::string_view value) {
  if (std::any_of(value.begin(), value.end(), [](char c) { return c == '\0' || c == '\n'; }))
    throw InvalidArgument(fmt::format("{}: it contains a NUL or a line break, which is not allowed", what));
}

void check_range(std::string_view what, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most)
    throw InvalidArgument(fmt::format("{}: {} is out of range, allowed: {} to {}", what, value, least, most));
}

struct QcowHeader {
  std::int64_t size = 0;
  std::string backing;
};

// Source   QEMU's docs/interop/qcow2.txt: big endian, magic "QFI\xfb", version, backing_file_offset, backing_file_size,
//          cluster_bits, size; from byte 72 on, in version 3, incompatible features, bit 2: an external data file.
QcowHeader read_qcow2(const system::Path& path) {
  const system::Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw InvalidArgument(system_message("disk " + path.string(), errno));
  std::array<unsigned char, 80> bytes{};
  constexpr ssize_t kLeast = 32;
  if (::pread(file.get(), bytes.data(), bytes.size(), 0) < kLeast || bytes[0] != 'Q' || bytes[1] != 'F' ||
      bytes[2] != 'I' || bytes[3] != 0xfb)
    throw InvalidArgument(fmt::format("disk {}: it is not a qcow2 image", path.string()));
  const auto number = [&](std::size_t at, std::size_t width) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) value = value << 8U | bytes[at + i];
    return value;
  };
  constexpr std::uint64_t kExternalData = 4;
  if (number(4, 4) >= 3 && (number(72, 8) & kExternalData) != 0)
    throw InvalidArgument(fmt::format("disk {}: its data is in another file, which is not supported", path.string()));
  QcowHeader header;
  header.size = static_cast<std::int64_t>(std::min<std::uint64_t>(number(24, 8), kMaxBytes + 1));
  const auto offset = number(8, 8);
  const auto length = number(16, 4);
  if (offset != 0 && length <= 1023) {
    header.backing.resize(length);
    if (::pread(file.get(), header.backing.data(), length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length))
      throw InvalidArgument(fmt::format("disk {}: its backing file name lies outside of it", path.string()));
  }
  return header;
}

}  // namespace

std::string existing_file(std::string_view what, const std::string& path) {
  const auto absolute = std::filesystem::absolute(path);
  struct stat status{};
  if (::stat(absolute.c_str(), &status) != 0)
    throw InvalidArgument(system_message(fmt::format("{}: {}", what, absolute.string()), errno));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    throw InvalidArgument(fmt::format("{}: {} is not a file or block device", what, absolute.string()));
  if (::access(absolute.c_str(), R_OK) != 0)
    throw InvalidArgument(system_message(fmt::format("{}: {}", what, absolute.string()), errno));
  return absolute.string();
}

std::string disk_backing(const system::Path& path, const std::string& format) {
  return format == "qcow2" ? read_qcow2(path).backing : std::string();
}

void check(const DiskSpec& disk) {
  if (disk.path.empty()) throw InvalidArgument("disk path: it is empty");
  check_plain("disk path", disk.path);
  if (!is_one_of(disk.format, kFormats))
    throw InvalidArgument(fmt::format("disk format: '{}', allowed: {}", disk.format, fmt::join(kFormats, ", ")));
  if (!is_one_of(disk.role, kRoles))
    throw InvalidArgument(fmt::format("disk role: '{}', allowed: {}", disk.role, fmt::join(kRoles, ", ")));
  if (disk.role == "cow" && disk.readonly)
    throw InvalidArgument(fmt::format("disk {}: role cow is the VM's own disk and cannot be read-only", disk.path));
  if (disk.serial.size() > kMaxSerial)
    throw InvalidArgument(fmt::format("disk serial: '{}' has {} bytes, allowed: at most {}", disk.serial,
                                      disk.serial.size(), kMaxSerial));
  if (!std::all_of(disk.serial.begin(), disk.serial.end(), [](char c) { return c > ' ' && c < 0x7f; }))
    throw InvalidArgument(fmt::format("disk serial: '{}', allowed: printable ASCII without spaces", disk.serial));
}

void check(const VmSpec& spec) {
  lifecycle::check_name(spec.name);
  if (spec.cpu) check_range("cpu", *spec.cpu, 1, kMaxCpu);
  if (spec.mem_bytes) check_range("memory", *spec.mem_bytes, 1 << 20, kMaxBytes);
  if (spec.storage_bytes) check_range("storage", *spec.storage_bytes, 0, kMaxBytes);
  check_plain("kernel", spec.kernel);
  check_plain("initrd", spec.initrd);
  check_plain("cmdline", spec.cmdline);
  check_plain("machine", spec.machine);
  check_plain("network namespace", spec.network_namespace);
  constexpr std::size_t kMaxDisks = 64;
  if (spec.disks.size() > kMaxDisks)
    throw InvalidArgument(fmt::format("disks: {} of them, allowed: at most {}", spec.disks.size(), kMaxDisks));
  for (const auto& disk : spec.disks) check(disk);
  if (std::count_if(spec.disks.begin(), spec.disks.end(), [](const DiskSpec& d) { return d.role == "cow"; }) > 1)
    throw InvalidArgument("disks: more than one of role cow, allowed: one");
  lifecycle::check_labels(spec.labels);
}

std::int64_t disk_size(const system::Path& path, const std::string& format) {
  if (format == "qcow2") return read_qcow2(path).size;
  const system::Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw InvalidArgument(system_message("disk " + path.string(), errno));
  const off_t size = ::lseek(file.get(), 0, SEEK_END);
  if (size < 0) throw InvalidArgument(system_message("size of disk " + path.string(), errno));
  return size;
}

lifecycle::VmConfig resolve(const VmSpec& spec, const system::Path& run_dir) {
  check(spec);
  lifecycle::VmConfig config;
  config.name = spec.name;
  config.cpu = spec.cpu.value_or(kDefaultCpu);
  config.mem_bytes = spec.mem_bytes.value_or(kDefaultMemBytes);
  config.storage_bytes = spec.storage_bytes.value_or(kDefaultStorageBytes);
  if (!spec.kernel.empty()) config.kernel = existing_file("kernel", spec.kernel);
  if (!spec.initrd.empty()) config.initrd = existing_file("initrd", spec.initrd);
  config.cmdline = spec.cmdline;
  config.labels = spec.labels;
  config.machine = spec.machine;
  config.accelerator = spec.accelerator;
  if (!spec.network_namespace.empty())
    config.network_namespace = std::filesystem::absolute(spec.network_namespace).string();

  const auto own = [&](const std::string& format, std::int64_t size, const std::string& serial) {
    return lifecycle::DiskConfig{.path = (run_dir / ("cow." + format)).string(),
                                 .readonly = false,
                                 .format = format,
                                 .role = "cow",
                                 .serial = serial.empty() ? "cocoon-cow" : serial,
                                 .size_bytes = size};
  };
  bool has_own = false;
  for (const auto& disk : spec.disks) {
    const auto path = existing_file("disk", disk.path);
    const auto size = disk_size(path, disk.format);
    if (disk.role != "cow") {
      config.disks.push_back({.path = path,
                              .readonly = disk.readonly || disk.role != "data",
                              .format = disk.format,
                              .role = disk.role,
                              .serial = disk.serial,
                              .size_bytes = size});
      continue;
    }
    has_own = true;
    if (disk.format == "qcow2") {
      const auto backing = read_qcow2(path).backing;
      if (!backing.empty() && backing.front() != '/')
        throw InvalidArgument(
            fmt::format("disk {}: its backing file '{}' is a relative path, which a copy could not follow, allowed: an "
                        "absolute one",
                        path, backing));
    }
    config.storage_bytes = spec.storage_bytes.value_or(size);
    const bool may_grow = disk.format == "raw";
    if (config.storage_bytes < size || (config.storage_bytes > size && !may_grow))
      throw InvalidArgument(fmt::format("storage: {} bytes, allowed for a copy of {}: {}{}", config.storage_bytes, path,
                                        size, may_grow ? " or more" : ""));
    config.disks.push_back(own(disk.format, config.storage_bytes, disk.serial));
  }
  if (!has_own && config.storage_bytes > 0) {
    // Behind the layers, before everything else: the order in which guests expect them.
    const auto after_layers = std::find_if(config.disks.begin(), config.disks.end(),
                                           [](const lifecycle::DiskConfig& d) { return d.role != "layer"; });
    config.disks.insert(after_layers, own("raw", config.storage_bytes, ""));
  }
  return config;
}

void make_own_disk(const VmSpec& spec, const lifecycle::VmConfig& config, system::Cancel& cancel) {
  const auto own = std::find_if(config.disks.begin(), config.disks.end(),
                                [](const lifecycle::DiskConfig& d) { return d.role == "cow"; });
  if (own == config.disks.end()) return;
  const auto base =
      std::find_if(spec.disks.begin(), spec.disks.end(), [](const DiskSpec& d) { return d.role == "cow"; });
  if (base == spec.disks.end()) {
    system::make_sparse_file(own->path, own->size_bytes);
  } else {
    system::copy_file(std::filesystem::absolute(base->path), own->path, cancel);
    if (own->format == "raw" && ::truncate(own->path.c_str(), own->size_bytes) != 0)
      throw StoreError(system_message("grow disk " + own->path, errno), own->path, errno);
  }
  const system::Fd file(::open(own->path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file || ::fsync(file.get()) != 0)
    throw StoreError(system_message("sync disk " + own->path, errno), own->path, errno);
}

}  // namespace cocoon::engine
