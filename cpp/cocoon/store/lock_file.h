#pragma once
// A file whose flock queues threads and processes alike, in the order the kernel gives. Each holder has an open file of
// its own, for an flock belongs to the open file; those not in use are kept open, which halves the system calls of a
// lock against opening it each time.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <vector>

#include "cocoon/system/fd.h"

namespace cocoon::store {

// Which process this is: another value after fork(). Costs no system call.
[[nodiscard]] std::uint64_t process_generation();

class LockFile {
 public:
  explicit LockFile(std::filesystem::path path);
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;

  // The lock, held while it lives. It is given back by name: a child forked meanwhile shares the open file, and if it
  // were only closed the lock would stay with the child. In that child it does nothing.
  class Held {
   public:
    // Makes the file (0600) when absent. Blocks. Errors StoreError.
    explicit Held(LockFile& file);
    // Without a look whether the lock file still has its name: for a glance at something, before ensure_named().
    struct Unchecked {};
    Held(LockFile& file, Unchecked unchecked);
    ~Held();
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

    // If the name was removed or replaced, so that the lock excludes nobody: takes that of the file there is now.
    void ensure_named();

    // Not in a child that was forked meanwhile.
    [[nodiscard]] bool is_ours() const { return owner_ == process_generation(); }

   private:
    void take();

    LockFile& file_;
    system::Fd fd_;
    std::uint64_t owner_;
  };

 private:
  friend void forget_parents_files();
  [[nodiscard]] system::Fd take_or_open();
  [[nodiscard]] bool is_named(int fd) const;

  std::filesystem::path path_;
  std::mutex mutex_;
  std::vector<system::Fd> idle_;
};

}  // namespace cocoon::store
