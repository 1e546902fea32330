#pragma once
// The lock that sequences on one VM queue on: held by the engine's process alone, so it falls when that process dies.

#include <filesystem>
#include <optional>
#include <string_view>

#include "cocoon/engine/node.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::engine {

class OpLock {
 public:
  OpLock(const Node& node, std::string_view vm_id, system::Cancel& cancel)
      : path_(node.op_lock_path(vm_id)), lock_(system::FileLock::acquire(path_, cancel)) {}

  static std::optional<OpLock> try_acquire(const Node& node, std::string_view vm_id) {
    auto path = node.op_lock_path(vm_id);
    auto lock = system::FileLock::try_acquire(path);
    if (!lock) return std::nullopt;
    return OpLock(std::move(path), *std::move(lock));
  }

  // The VM is gone: so is its lock file. Whoever waits for it finds that out and makes a new one, in vain.
  void retire() { system::remove_file(path_); }

 private:
  OpLock(system::Path path, system::FileLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  system::Path path_;
  system::FileLock lock_;
};

}  // namespace cocoon::engine
