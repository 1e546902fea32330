#include "cocoon/engine/saved_vm.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::engine {
namespace {

using lifecycle::DiskConfig;
using lifecycle::SavedVm;
using lifecycle::VmConfig;
using lifecycle::VmRecord;

constexpr std::size_t kMaxDescription = 1 << 20;

std::string label(const snapshot::SnapshotRecord& record) { return record.name.empty() ? record.id : record.name; }

bool is_inside(const system::Path& path, const system::Path& folder) {
  const auto relative = path.lexically_normal().lexically_relative(folder.lexically_normal());
  return !relative.empty() && *relative.begin() != ".." && relative != ".";
}

// One snapshot's description under suspicion: it may come from an archive of anybody's.
class Inspection {
 public:
  Inspection(const snapshot::Use& use, std::string_view hypervisor) : use_(use), hypervisor_(hypervisor) {}

  vmm::Saved run() {
    const auto& record = use_.record();
    const auto text = system::find_text(use_.dir() / lifecycle::kSavedVmFile, kMaxDescription);
    if (!text)
      throw InvalidArgument(
          fmt::format("snapshot {}: it holds no VM (there is no {} in it), allowed: one that was "
                      "taken of a VM, or imported from such a one's export",
                      label(record), lifecycle::kSavedVmFile));
    try {
      saved_ = lifecycle::saved_vm_from_document(*text);
      check_words();
    } catch (const InvalidArgument& error) {
      refuse(lifecycle::kSavedVmFile, error.what());
    }
    if (saved_.hypervisor != record.hypervisor || saved_.config.cpu != record.cpu ||
        saved_.config.mem_bytes != record.mem_bytes || saved_.config.storage_bytes != record.storage_bytes)
      refuse(lifecycle::kSavedVmFile, "its hypervisor, cpu, memory or storage are not those of the snapshot's record");
    if (saved_.hypervisor != hypervisor_)
      throw InvalidArgument(fmt::format("snapshot {}: it was taken under {}, allowed here: {}", label(record),
                                        saved_.hypervisor, hypervisor_));
    for (const auto& file : saved_.state_files) require_file(file.name, file.size_bytes);
    check_disks();
    return {.dir = use_.dir(), .vm = std::move(saved_)};
  }

 private:
  [[noreturn]] void refuse(const std::string& member, std::string_view why) const {
    throw CorruptSnapshot(fmt::format("snapshot {}: {}: {}", label(use_.record()), member, why), use_.dir().string(),
                          member);
  }

  // As strictly as what a user says of a new VM.
  void check_words() const {
    VmSpec spec;
    spec.name = saved_.config.name;
    spec.cpu = saved_.config.cpu;
    spec.mem_bytes = saved_.config.mem_bytes;
    spec.storage_bytes = saved_.config.storage_bytes;
    spec.kernel = saved_.config.kernel;
    spec.initrd = saved_.config.initrd;
    spec.cmdline = saved_.config.cmdline;
    spec.labels = saved_.config.labels;
    spec.machine = saved_.config.machine;
    spec.network_namespace = saved_.config.network_namespace;
    for (const auto& disk : saved_.config.disks)
      spec.disks.push_back({.path = disk.path,
                            .readonly = disk.readonly,
                            .format = disk.format,
                            .role = disk.role,
                            .serial = disk.serial});
    check(spec);
  }

  void check_disks() {
    const auto& disks = saved_.config.disks;
    if (saved_.disk_files.size() != disks.size())
      refuse(lifecycle::kSavedVmFile, fmt::format("{} disks, and files of {}", disks.size(), saved_.disk_files.size()));
    std::int64_t own_bytes = 0;
    for (std::size_t i = 0; i < disks.size(); ++i) {
      const auto& disk = disks[i];
      const auto& file = saved_.disk_files[i];
      if (disk.role == "cow") own_bytes = disk.size_bytes;
      if (file.empty()) {
        // Two VMs would write to it.
        if (!disk.readonly || disk.role == "cow")
          refuse(lifecycle::kSavedVmFile, fmt::format("disk {} is written to, and not in the snapshot", i));
        continue;
      }
      try {
        require_file(file, disk.format == "raw" ? disk.size_bytes : kAnySize);
        if (disk_size(use_.dir() / file, disk.format) != disk.size_bytes)
          refuse(file, fmt::format("its size is not the {} bytes of disk {}", disk.size_bytes, i));
        // A file of the host's that somebody else has chosen would be shown to the guest.
        if (use_.record().vm_id.empty() && !disk_backing(use_.dir() / file, disk.format).empty())
          refuse(file, "an imported disk has a backing file, which is not allowed");
      } catch (const InvalidArgument& error) {
        refuse(file, error.what());
      }
    }
    if (own_bytes != saved_.config.storage_bytes)
      refuse(lifecycle::kSavedVmFile,
             fmt::format("storage of {} bytes, and an own disk of {}", saved_.config.storage_bytes, own_bytes));
  }

  static constexpr std::int64_t kAnySize = -1;

  void require_file(const std::string& name, std::int64_t size_bytes) {
    const bool is_plain = !name.empty() && name.front() != '.' && name != lifecycle::kSavedVmFile &&
                          name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
    if (!is_plain) refuse(lifecycle::kSavedVmFile, fmt::format("'{}' is not a plain file name", name));
    if (!names_.insert(name).second) refuse(lifecycle::kSavedVmFile, fmt::format("'{}' is named twice", name));
    struct stat status{};
    if (::lstat((use_.dir() / name).c_str(), &status) != 0) refuse(name, system_message("it is not there", errno));
    if (!S_ISREG(status.st_mode)) refuse(name, "it is not a regular file");
    if (size_bytes != kAnySize && status.st_size != size_bytes)
      refuse(name, fmt::format("it has {} bytes, and should have {}", status.st_size, size_bytes));
  }

  const snapshot::Use& use_;
  std::string_view hypervisor_;
  SavedVm saved_;
  std::set<std::string> names_;
};

template <typename Value>
void require_same(std::string_view what, const Value& asked, const Value& of_snapshot, std::string_view unit = "") {
  if (asked != of_snapshot)
    throw InvalidArgument(
        fmt::format("{}: {}{}, allowed for a clone: the snapshot's, {}{}", what, asked, unit, of_snapshot, unit));
}

// A file of the host that the snapshot's VM used: as asked for, else as the snapshot says if that can be trusted.
std::string outside_file(std::string_view what, const std::string& asked, const std::string& of_snapshot,
                         bool imported) {
  if (of_snapshot.empty()) {
    if (!asked.empty())
      throw InvalidArgument(fmt::format("{}: '{}', allowed for a clone: none, the snapshot has none", what, asked));
    return {};
  }
  if (!asked.empty()) return existing_file(what, asked);
  if (imported)
    throw InvalidArgument(
        fmt::format("{}: not given, and the snapshot was imported: where it was taken it was '{}'; "
                    "name the file to be used here",
                    what, of_snapshot));
  return of_snapshot;
}

}  // namespace

std::vector<std::string> plan_disk_files(const VmRecord& vm) {
  std::vector<std::string> files;
  for (std::size_t i = 0; i < vm.config.disks.size(); ++i) {
    const auto& disk = vm.config.disks[i];
    const bool own = is_inside(disk.path, vm.run_dir);
    if (disk.readonly && !own) {
      files.emplace_back();
      continue;
    }
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(disk.path, ignored))
      throw InvalidArgument(
          fmt::format("disk {}: {} is not a regular file, allowed in a snapshot: disks that can be copied, and "
                      "read-only ones",
                      i, disk.path));
    if (const auto backing = disk_backing(disk.path, disk.format); !backing.empty() && backing.front() != '/')
      throw InvalidArgument(
          fmt::format("disk {}: the backing file '{}' of {} is a relative path, which a copy could "
                      "not follow",
                      i, backing, disk.path));
    files.push_back(disk.role == "cow" ? "cow." + disk.format : fmt::format("disk-{}.{}", i, disk.format));
  }
  return files;
}

void save_disks(const VmConfig& config, const std::vector<std::string>& disk_files, const system::Path& dir,
                system::Cancel& cancel) {
  for (std::size_t i = 0; i < disk_files.size(); ++i) {
    if (!disk_files[i].empty())
      system::copy_file(config.disks[i].path, dir / disk_files[i], cancel, system::Sync::kLater);
  }
}

void write_saved_vm(const system::Path& dir, const SavedVm& saved) {
  const auto path = dir / lifecycle::kSavedVmFile;
  const auto text = lifecycle::to_document(saved) + "\n";
  const system::Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw StoreError(system_message("create " + path.string(), errno), path.string(), errno);
  for (std::string_view left = text; !left.empty();) {
    const ssize_t n = ::write(file.get(), left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw StoreError(system_message("write " + path.string(), errno), path.string(), errno);
    left.remove_prefix(static_cast<std::size_t>(n));
  }
}

vmm::Saved read_saved_vm(const snapshot::Use& use, std::string_view hypervisor) {
  return Inspection(use, hypervisor).run();
}

VmConfig clone_config(const VmSpec& spec, const vmm::Saved& saved, bool imported, const system::Path& run_dir) {
  check(spec);
  const VmConfig& source = saved.vm.config;
  if (spec.cpu) require_same("cpu", *spec.cpu, source.cpu);
  if (spec.mem_bytes) require_same("memory", *spec.mem_bytes, source.mem_bytes, " bytes");
  if (spec.storage_bytes) require_same("storage", *spec.storage_bytes, source.storage_bytes, " bytes");
  if (!spec.machine.empty()) require_same("machine", spec.machine, source.machine);
  if (!spec.accelerator.empty()) require_same("accelerator", spec.accelerator, source.accelerator);

  VmConfig config = source;
  config.name = spec.name;
  config.labels = spec.labels;
  config.kernel = outside_file("kernel", spec.kernel, source.kernel, imported);
  config.initrd = outside_file("initrd", spec.initrd, source.initrd, imported);
  if (!spec.cmdline.empty()) config.cmdline = spec.cmdline;
  if (imported) config.network_namespace.clear();
  if (!spec.network_namespace.empty())
    config.network_namespace = std::filesystem::absolute(spec.network_namespace).string();

  std::size_t asked = 0;  // disks of `spec` that were used
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    auto& disk = config.disks[i];
    if (!saved.vm.disk_files[i].empty()) {
      disk.path = (run_dir / saved.vm.disk_files[i]).string();
      continue;
    }
    const auto what = fmt::format("disk {}", i);
    const bool given = asked < spec.disks.size();
    if (given) {
      const auto& wanted = spec.disks[asked];
      require_same(what + " role", wanted.role, disk.role);
      require_same(what + " format", wanted.format, disk.format);
      if (!wanted.serial.empty()) require_same(what + " serial", wanted.serial, disk.serial);
      if (wanted.role == "data" && !wanted.readonly)
        throw InvalidArgument(fmt::format("{}: {} is written to, allowed for a clone: read-only", what, wanted.path));
    }
    disk.path = outside_file(what, given ? spec.disks[asked].path : std::string(), disk.path, imported);
    require_same(what + " size", disk_size(disk.path, disk.format), disk.size_bytes, " bytes");
    ++asked;
  }
  if (asked < spec.disks.size())
    throw InvalidArgument(fmt::format("disks: {}, allowed for a clone: the {} read-only ones of the snapshot's VM",
                                      spec.disks.size(), asked));
  return config;
}

VmConfig restored_config(const VmRecord& vm, const vmm::Saved& saved) {
  const VmConfig& source = saved.vm.config;
  VmConfig config = vm.config;
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument(fmt::format("restore {}: {}", vm.config.name, what));
  };
  if (config.disks.size() != source.disks.size())
    refuse(fmt::format("it has {} disks, the snapshot {}", config.disks.size(), source.disks.size()));
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    auto& disk = config.disks[i];
    const auto& saved_disk = source.disks[i];
    if (disk.role != saved_disk.role || disk.format != saved_disk.format || disk.readonly != saved_disk.readonly)
      refuse(fmt::format("disk {} is {} {}{}, the snapshot's {} {}{}", i, disk.format, disk.role,
                         disk.readonly ? ", read-only" : "", saved_disk.format, saved_disk.role,
                         saved_disk.readonly ? ", read-only" : ""));
    std::error_code ignored;
    if (disk.readonly && disk.size_bytes != saved_disk.size_bytes)
      refuse(fmt::format("disk {} has {} bytes, the snapshot's {}", i, disk.size_bytes, saved_disk.size_bytes));
    if (!disk.readonly && std::filesystem::exists(disk.path, ignored) &&
        !std::filesystem::is_regular_file(disk.path, ignored))
      refuse(fmt::format("disk {}: {} is not a regular file, and cannot be exchanged", i, disk.path));
    disk.size_bytes = saved_disk.size_bytes;
    disk.serial = saved_disk.serial;
  }
  config.cpu = source.cpu;
  config.mem_bytes = source.mem_bytes;
  config.storage_bytes = source.storage_bytes;
  config.machine = source.machine;
  config.accelerator = source.accelerator;
  return config;
}

void load_disks(const vmm::Saved& saved, const VmConfig& config, system::Cancel& cancel) {
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    if (!saved.vm.disk_files[i].empty())
      system::copy_file(saved.dir / saved.vm.disk_files[i], config.disks[i].path, cancel);
  }
}

}  // namespace cocoon::engine
