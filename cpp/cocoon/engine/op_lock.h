#pragma once
// The lock that sequences on one VM queue on: held by the engine's process alone, so it falls when that process dies.

#include <sys/file.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cocoon/engine/node.h"
#include "cocoon/error.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::engine {

class OpLock {
 public:
  OpLock(const Node& node, std::string_view vm_id, system::Cancel& cancel)
      : path_(node.op_lock_path(vm_id)), lock_(system::FileLock::acquire(path_, cancel)) {}
  // Unlocks by name: a process forked while a sequence ran has inherited the open file, and must not prolong the lock.
  ~OpLock() {
    if (lock_.fd() >= 0 && ::getpid() == owner_) ::flock(lock_.fd(), LOCK_UN);
  }
  OpLock(OpLock&&) = default;
  OpLock& operator=(OpLock&&) = delete;
  OpLock(const OpLock&) = delete;
  OpLock& operator=(const OpLock&) = delete;

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
  pid_t owner_ = ::getpid();
};

// Runs `sequence` under a lock that may have been got. If it finds the VM gone, the lock's file goes too.
template <typename Sequence>
auto with_lock(std::optional<OpLock> lock, Sequence&& sequence) {
  try {
    return sequence();
  } catch (const NotFound&) {
    if (lock) lock->retire();
    throw;
  }
}

template <typename Sequence>
auto with_op_lock(const Node& node, const std::string& vm_id, system::Cancel& cancel, Sequence&& sequence) {
  return with_lock(OpLock(node, vm_id, cancel), std::forward<Sequence>(sequence));
}

}  // namespace cocoon::engine
