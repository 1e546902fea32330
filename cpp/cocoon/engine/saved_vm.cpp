#include "cocoon/engine/saved_vm.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/snapshot/metadata.h"

namespace cocoon::engine {
namespace {

using lifecycle::DiskConfig;
using lifecycle::SavedVm;
using lifecycle::VmConfig;
using lifecycle::VmRecord;

std::string label(const snapshot::SnapshotRecord& record) { return record.name.empty() ? record.id : record.name; }

bool is_inside(const system::Path& path, const system::Path& folder) {
  const auto relative = path.lexically_normal().lexically_relative(folder.lexically_normal());
  return !relative.empty() && *relative.begin() != ".." && relative != ".";
}

// One snapshot's description under suspicion: it may come from an archive of anybody's. The paths that it names outside
// of its folder were checked when it was imported.
class Inspection {
 public:
  Inspection(const snapshot::Use& use, std::string_view hypervisor) : use_(use), hypervisor_(hypervisor) {}

  vmm::Saved run() {
    const auto& record = use_.record();
    const auto found = snapshot::find_metadata(use_.dir());
    if (!found)
      throw InvalidArgument(
          fmt::format("snapshot {}: it holds no VM (there is no {} in it), allowed: one that was "
                      "taken of a VM, or imported from such a one's export",
                      label(record), snapshot::kMetadataFile));
    const auto& from = *found;
    const auto& hypervisor = from.hypervisor.empty() ? record.hypervisor : from.hypervisor;
    if (hypervisor != hypervisor_)
      throw InvalidArgument(fmt::format("snapshot {}: it was taken under '{}', allowed here: {}", label(record),
                                        hypervisor, hypervisor_));
    if (from.vmm_version.empty() || from.state_files.empty())
      throw InvalidArgument(
          fmt::format("snapshot {}: {} does not say which VMM wrote which files, as another engine's "
                      "does not, allowed: one that was taken by this engine",
                      label(record), snapshot::kMetadataFile));
    if (hypervisor != record.hypervisor || from.cpu != record.cpu || from.mem_bytes != record.mem_bytes ||
        from.storage_bytes != record.storage_bytes)
      refuse(snapshot::kMetadataFile, "its hypervisor, cpu, memory or storage are not those of the snapshot's record");
    take(from);
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
  void take(const snapshot::Metadata& from) {
    VmSpec spec;
    spec.name = label(use_.record());
    spec.cpu = from.cpu;
    spec.mem_bytes = from.mem_bytes;
    spec.storage_bytes = from.storage_bytes;
    spec.kernel = from.kernel;
    spec.initrd = from.initrd;
    spec.cmdline = from.cmdline;
    spec.machine = from.machine;
    auto& config = saved_.config;
    for (const auto& disk : from.disks) {
      const auto& path = disk.file.empty() ? disk.path : disk.file;
      spec.disks.push_back(
          {.path = path, .readonly = disk.readonly, .format = disk.format, .role = disk.role, .serial = disk.serial});
      config.disks.push_back({.path = path,
                              .readonly = disk.readonly,
                              .format = disk.format,
                              .role = disk.role,
                              .serial = disk.serial,
                              .size_bytes = disk.size_bytes});
      saved_.disk_files.push_back(disk.file);
    }
    try {
      check(spec);
    } catch (const InvalidArgument& error) {
      refuse(snapshot::kMetadataFile, error.what());
    }
    config.name = spec.name;
    config.cpu = from.cpu;
    config.mem_bytes = from.mem_bytes;
    config.storage_bytes = from.storage_bytes;
    config.kernel = from.kernel;
    config.initrd = from.initrd;
    config.cmdline = from.cmdline;
    config.machine = from.machine;
    config.accelerator = from.accelerator;
    saved_.hypervisor = std::string(hypervisor_);
    saved_.vmm_version = from.vmm_version;
    saved_.state_files = from.state_files;
    saved_.facts = from.facts;
  }

  void check_disks() {
    const auto& disks = saved_.config.disks;
    std::int64_t own_bytes = 0;
    for (std::size_t i = 0; i < disks.size(); ++i) {
      const auto& disk = disks[i];
      const auto& file = saved_.disk_files[i];
      if (disk.role == "cow") own_bytes = disk.size_bytes;
      if (file.empty()) {
        // Two VMs would write to it.
        if (!disk.readonly)
          refuse(snapshot::kMetadataFile, fmt::format("disk {} is written to, and not in the snapshot", i));
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
      refuse(snapshot::kMetadataFile,
             fmt::format("storage of {} bytes, and an own disk of {}", saved_.config.storage_bytes, own_bytes));
  }

  static constexpr std::int64_t kAnySize = -1;

  void require_file(const std::string& name, std::int64_t size_bytes) {
    if (name == snapshot::kMetadataFile || !names_.insert(name).second)
      refuse(snapshot::kMetadataFile, fmt::format("'{}' is named twice", name));
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

// A file of the host that the snapshot's VM used: another one may take its place.
std::string outside_file(std::string_view what, const std::string& asked, const std::string& of_snapshot) {
  if (asked.empty()) return of_snapshot;
  if (of_snapshot.empty())
    throw InvalidArgument(fmt::format("{}: '{}', allowed for a clone: none, the snapshot has none", what, asked));
  return existing_file(what, asked);
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
  const auto& config = saved.config;
  snapshot::Metadata metadata;
  metadata.hypervisor = saved.hypervisor;
  metadata.vmm_version = saved.vmm_version;
  metadata.cpu = config.cpu;
  metadata.mem_bytes = config.mem_bytes;
  metadata.storage_bytes = config.storage_bytes;
  metadata.machine = config.machine;
  metadata.accelerator = config.accelerator;
  metadata.kernel = config.kernel;
  metadata.initrd = config.initrd;
  metadata.cmdline = config.cmdline;
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const auto& disk = config.disks[i];
    const auto& file = saved.disk_files[i];
    metadata.disks.push_back({.file = file,
                              .path = file.empty() ? disk.path : std::string(),
                              .role = disk.role,
                              .format = disk.format,
                              .serial = disk.serial,
                              .readonly = disk.readonly,
                              .size_bytes = disk.size_bytes});
  }
  metadata.state_files = saved.state_files;
  metadata.facts = saved.facts;
  snapshot::write_metadata(dir, metadata);
}

vmm::Saved read_saved_vm(const snapshot::Use& use, std::string_view hypervisor) {
  return Inspection(use, hypervisor).run();
}

VmConfig clone_config(const VmSpec& spec, const vmm::Saved& saved, const system::Path& run_dir) {
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
  config.kernel = outside_file("kernel", spec.kernel, source.kernel);
  config.initrd = outside_file("initrd", spec.initrd, source.initrd);
  if (!spec.cmdline.empty()) config.cmdline = spec.cmdline;
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
    disk.path = outside_file(what, given ? spec.disks[asked].path : std::string(), disk.path);
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
