#pragma once
// The lock of one snapshot, a file of its id: exclusive while it is made or removed, shared while it is read.
// It falls when its holder dies, so that a free lock proves an unfinished snapshot to be abandoned.

#include <sys/types.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::snapshot {

class Lock {
 public:
  static std::optional<Lock> try_exclude(const system::Path& path) {
    return held(path, system::FileLock::try_exclude(path));
  }
  static std::optional<Lock> try_share(const system::Path& path) {
    return held(path, system::FileLock::try_share(path));
  }
  // Waits while it is held exclusively.
  static Lock share(const system::Path& path, system::Cancel& cancel) {
    return {path, system::FileLock::share(path, cancel)};
  }

  // A process forked meanwhile has inherited the open file and must not prolong the lock, nor end it.
  ~Lock() {
    if (is_ours()) lock_.unlock();
  }
  Lock(Lock&&) = default;
  Lock& operator=(Lock&&) = delete;
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // Not in a child that was forked meanwhile.
  [[nodiscard]] bool is_ours() const { return owner_ == ::getpid(); }
  [[nodiscard]] int fd() const { return lock_.fd(); }

  // The snapshot is gone: so is its lock's file. Whoever waits for it makes a new one, and finds nothing.
  void retire() const { system::remove_file(path_); }

 private:
  Lock(system::Path path, system::FileLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  static std::optional<Lock> held(const system::Path& path, std::optional<system::FileLock> lock) {
    if (!lock) return std::nullopt;
    return Lock(path, *std::move(lock));
  }

  system::Path path_;
  system::FileLock lock_;
  pid_t owner_ = ::getpid();
};

}  // namespace cocoon::snapshot
