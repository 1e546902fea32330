#include "cocoon/engine/disk_exchange.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include <spdlog/spdlog.h>

#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

system::Path with(const system::Path& disk, const char* ending) {
  auto path = disk;
  path += ending;
  return path;
}

system::Path staged(const system::Path& disk) { return with(disk, ".cocoon-new"); }
system::Path kept(const system::Path& disk) { return with(disk, ".cocoon-old"); }

// False if there is no such file.
bool move(const system::Path& from, const system::Path& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return true;
  if (errno == ENOENT) return false;
  throw StoreError(system_message("rename " + from.string() + " to " + to.string(), errno), from.string(), errno);
}

void sync_folders(const std::vector<system::Path>& disks) {
  std::set<system::Path> folders;
  for (const auto& disk : disks) folders.insert(disk.parent_path());
  for (const auto& folder : folders) system::sync_dir(folder);
}

// A user's own file stays his, and as readable as it was.
void keep_owner(const system::Path& from, const system::Path& to) {
  struct stat status{};
  if (::stat(from.c_str(), &status) != 0) return;  // nothing to be like
  if (::chmod(to.c_str(), status.st_mode & 07777U) != 0 || ::lchown(to.c_str(), status.st_uid, status.st_gid) != 0)
    throw StoreError(system_message("give " + to.string() + " the owner and mode of " + from.string(), errno),
                     to.string(), errno);
}

}  // namespace

DiskExchange::DiskExchange(const vmm::Saved& saved, const lifecycle::VmConfig& config, system::Cancel& cancel) {
  try {
    for (std::size_t i = 0; i < config.disks.size(); ++i) {
      if (config.disks[i].readonly || saved.vm.disk_files[i].empty()) continue;
      const system::Path disk = config.disks[i].path;
      system::remove_file(staged(disk));
      disks_.push_back(disk);
      system::copy_file(saved.dir / saved.vm.disk_files[i], staged(disk), cancel);
      keep_owner(disk, staged(disk));
    }
    sync_folders(disks_);
  } catch (...) {
    for (const auto& disk : disks_) ::unlink(staged(disk).c_str());
    throw;
  }
}

DiskExchange::~DiskExchange() {
  for (const auto& disk : disks_) ::unlink(staged(disk).c_str());
}

void DiskExchange::run() {
  for (const auto& disk : disks_) {
    move(disk, kept(disk));
    move(staged(disk), disk);
  }
  sync_folders(disks_);
}

void DiskExchange::put_back(const lifecycle::VmConfig& config) {
  std::vector<system::Path> disks;
  for (const auto& disk : config.disks)
    if (!disk.readonly && move(kept(disk.path), disk.path)) disks.emplace_back(disk.path);
  sync_folders(disks);
  clean_up(config);
}

void DiskExchange::clean_up(const lifecycle::VmConfig& config) {
  for (const auto& disk : config.disks) {
    if (disk.readonly) continue;  // another VM may write to it, and what is beside it is that VM's
    system::remove_file(staged(disk.path));
    system::remove_file(kept(disk.path));
  }
}

}  // namespace cocoon::engine
