#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>

#include "cocoon/system/file.h"
#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr microseconds kFirstPause{200};
constexpr microseconds kLongestPause{20'000};
// How often and how long a lock is waited for that is probed, not owned. Not only timed: a thread that stood still has
// not looked.
constexpr int kProbes = 500;
constexpr milliseconds kProberLimit{1000};

// `create_flag`: O_CREAT, or 0: empty if there is no such file.
Fd open_lock_file(const Path& path, int create_flag = O_CREAT) {
  Fd fd(::open(path.c_str(), O_RDWR | create_flag | O_CLOEXEC | O_NOCTTY, 0600));
  if (!fd && (create_flag != 0 || errno != ENOENT)) throw_store_error("open lock file", path);
  return fd;
}

// False: somebody holds it in a way that excludes `operation`.
bool lock_file(int fd, int operation, const Path& path) {
  while (::flock(fd, operation) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return false;
    throw_store_error("lock", path);
  }
  return true;
}

// False: the name was removed or replaced since `fd` was opened, so the lock on it excludes nobody.
bool is_file_at(int fd, const Path& path) {
  struct stat ours{};
  struct stat named{};
  if (::fstat(fd, &ours) != 0) throw_store_error("stat lock file", path);
  if (::stat(path.c_str(), &named) != 0) {
    if (errno == ENOENT) return false;
    throw_store_error("stat lock file", path);
  }
  return ours.st_dev == named.st_dev && ours.st_ino == named.st_ino;
}

// True if nobody holds it exclusively. A refused exclusive lock does not say whether it met an owner or is_held() of
// somebody; a shared one meets owners only. Leaves `fd` unlocked.
bool only_probed(int fd, const Path& path) {
  if (!lock_file(fd, LOCK_SH | LOCK_NB, path)) return false;
  lock_file(fd, LOCK_UN, path);
  return true;
}

// The language (and ThreadSanitizer) knows nothing of flock: whoever gets a lock reads what whoever let one go wrote.
std::atomic<unsigned> releases{0};

}  // namespace

FileLock::FileLock(Fd fd) : fd_(std::move(fd)) { static_cast<void>(releases.load(std::memory_order_acquire)); }

void FileLock::release() {
  if (!fd_) return;
  releases.fetch_add(1, std::memory_order_release);
  fd_.reset();
}

void FileLock::unlock() {
  if (!fd_) return;
  ::flock(fd_.get(), LOCK_UN);
  release();
}

FileLock FileLock::acquire(const Path& path) {
  for (;;) {
    Fd fd = open_lock_file(path);
    lock_file(fd.get(), LOCK_EX, path);
    if (is_file_at(fd.get(), path)) return FileLock(std::move(fd));
  }
}

FileLock FileLock::acquire(const Path& path, Cancel& cancel) { return wait_for(path, LOCK_EX, cancel); }

FileLock FileLock::share(const Path& path, Cancel& cancel) { return wait_for(path, LOCK_SH, cancel); }

std::optional<FileLock> FileLock::try_share(const Path& path) { return try_now(path, LOCK_SH); }

std::optional<FileLock> FileLock::try_exclude(const Path& path) { return try_now(path, LOCK_EX); }

std::optional<FileLock> FileLock::try_now(const Path& path, int operation) {
  for (;;) {
    Fd fd = open_lock_file(path);
    const bool locked = lock_file(fd.get(), operation | LOCK_NB, path);
    if (!is_file_at(fd.get(), path)) continue;
    if (!locked) return std::nullopt;
    return FileLock(std::move(fd));
  }
}

FileLock FileLock::wait_for(const Path& path, int operation, Cancel& cancel) {
  Fd fd = open_lock_file(path);
  microseconds pause = kFirstPause;
  for (;;) {
    const bool locked = lock_file(fd.get(), operation | LOCK_NB, path);
    if (!is_file_at(fd.get(), path)) {
      fd = open_lock_file(path);
      cancel.check();
      continue;
    }
    if (locked) return FileLock(std::move(fd));
    cancel.check();
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

std::optional<FileLock> FileLock::try_acquire(const Path& path) { return try_patiently(path, O_CREAT); }

std::optional<FileLock> FileLock::try_acquire_existing(const Path& path) { return try_patiently(path, 0); }

std::optional<FileLock> FileLock::try_patiently(const Path& path, int create_flag) {
  Fd fd = open_lock_file(path, create_flag);
  const auto deadline = steady_clock::now() + kProberLimit;
  for (int probes = 0; fd;) {
    const bool locked = lock_file(fd.get(), LOCK_EX | LOCK_NB, path);
    if (!is_file_at(fd.get(), path)) {
      fd = open_lock_file(path, create_flag);
      continue;
    }
    if (locked) return FileLock(std::move(fd));
    if (!only_probed(fd.get(), path)) return std::nullopt;
    if (++probes > kProbes && steady_clock::now() >= deadline) return std::nullopt;
    std::this_thread::sleep_for(microseconds(20));
  }
  return std::nullopt;
}

FileLock::State FileLock::look(const Path& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!fd) {
    if (errno == ENOENT) return State::kAbsent;
    throw_store_error("open lock file", path);
  }
  // /proc/locks would disturb nobody, but inside a pid namespace it hides locks whose first owner is dead, which is
  // the normal case for a VMM that outlives its engine.
  if (!lock_file(fd.get(), LOCK_SH | LOCK_NB, path)) return State::kHeld;
  // Unlocked by name: closing alone would leave it held by a child that is between fork and exec.
  lock_file(fd.get(), LOCK_UN, path);
  return State::kFree;
}

}  // namespace cocoon::system
