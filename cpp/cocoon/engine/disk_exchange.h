#pragma once
// Puts a snapshot's disks in the place of a VM's, so that it can be undone, by whoever comes next as well: it takes no
// more than names.
//
//   <disk>              what the VM has
//   <disk>.cocoon-new   staged: a copy of the snapshot's
//   <disk>.cocoon-old   the one before, while it is not certain that the new one stays
//
// Each disk is exchanged by two renames, so that whichever names are there, <disk>.cocoon-old if it exists, else
// <disk>, is the old one. Read-only disks are left alone.

#include <filesystem>
#include <utility>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"

namespace cocoon::engine {

class DiskExchange {
 public:
  // Copies the snapshot's disks beside the VM's, on the disk. `config.disks` are the VM's paths.
  // Blocks   for the copies. Errors StoreError, Cancelled; then nothing is left.
  DiskExchange(const vmm::Saved& saved, const lifecycle::VmConfig& config, system::Cancel& cancel);
  // What is staged goes; what was exchanged stays.
  ~DiskExchange();
  DiskExchange(const DiskExchange&) = delete;
  DiskExchange& operator=(const DiskExchange&) = delete;

  // Requires no VMM has them open. Die in the middle: put_back().
  void run();

  // The old ones where they are kept. Idempotent. Errors StoreError: some are not back.
  static void put_back(const lifecycle::VmConfig& config);
  // What an exchange that is over, or never began, left. Errors StoreError.
  static void clean_up(const lifecycle::VmConfig& config);

 private:
  std::vector<system::Path> disks_;
};

}  // namespace cocoon::engine
