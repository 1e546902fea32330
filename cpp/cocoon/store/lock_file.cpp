#include "cocoon/store/lock_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <string>
#include <utility>

#include "cocoon/error.h"

namespace cocoon::store {
namespace {

constexpr std::size_t kMostIdle = 8;

std::atomic<std::uint64_t> generation{1};

// Every lock file of this process. Never destroyed, for threads that outlive main().
struct LockFiles {
  std::mutex mutex;
  std::vector<LockFile*> all;
};

LockFiles& lock_files() {
  static auto* files = new LockFiles;
  return *files;
}

[[noreturn]] void fail(const char* tried, const std::filesystem::path& path, int code) {
  throw StoreError(system_message(std::string(tried) + " " + path.string(), code), path.string(), code);
}

}  // namespace

// In a forked child. Were they left open, a lock that the parent takes with one of them and dies in would stay with the
// child. A mutex that cannot be had belongs to a thread that is not in this process.
void forget_parents_files() {
  auto& files = lock_files();
  if (!files.mutex.try_lock()) return;
  for (auto* file : files.all) {
    if (!file->mutex_.try_lock()) continue;
    file->idle_.clear();
    file->mutex_.unlock();
  }
  files.mutex.unlock();
}

std::uint64_t process_generation() {
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] {
    generation.fetch_add(1, std::memory_order_relaxed);
    forget_parents_files();
  });
  static_cast<void>(registered);
  return generation.load(std::memory_order_relaxed);
}

LockFile::LockFile(std::filesystem::path path) : path_(std::move(path)) {
  static_cast<void>(process_generation());
  idle_.reserve(kMostIdle);
  auto& files = lock_files();
  const std::lock_guard lock(files.mutex);
  files.all.push_back(this);
}

LockFile::~LockFile() {
  auto& files = lock_files();
  const std::lock_guard lock(files.mutex);
  std::erase(files.all, this);
}

LockFile::Open LockFile::take_or_open() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto open = std::move(idle_.back());
      idle_.pop_back();
      return open;
    }
  }
  Open open;
  open.fd.reset(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0600));
  if (!open.fd) fail("open lock file", path_, errno);
  struct stat status{};
  if (::fstat(open.fd.get(), &status) != 0) fail("stat lock file", path_, errno);
  open.device = status.st_dev;
  open.inode = status.st_ino;
  return open;
}

// False: the name was removed or replaced since, so that the lock excludes nobody.
bool LockFile::is_named(const Open& open) const {
  struct statx status{};
  if (::statx(AT_FDCWD, path_.c_str(), AT_SYMLINK_NOFOLLOW, STATX_INO, &status) != 0) {
    if (errno == ENOENT) return false;
    fail("stat lock file", path_, errno);
  }
  return status.stx_ino == open.inode && ::makedev(status.stx_dev_major, status.stx_dev_minor) == open.device;
}

LockFile::Held::Held(LockFile& file, Unchecked /*unchecked*/) : file_(file), owner_(process_generation()) { take(); }

LockFile::Held::Held(LockFile& file) : Held(file, Unchecked{}) { ensure_named(); }

void LockFile::Held::take() {
  open_ = file_.take_or_open();
  while (::flock(open_.fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) fail("lock", file_.path_, errno);
  }
}

void LockFile::Held::ensure_named() {
  while (!file_.is_named(open_)) {
    open_ = {};
    take();
  }
}

LockFile::Held::~Held() {
  if (!is_ours()) return;
  ::flock(open_.fd.get(), LOCK_UN);
  const std::lock_guard lock(file_.mutex_);
  if (file_.idle_.size() < kMostIdle) file_.idle_.push_back(std::move(open_));
}

}  // namespace cocoon::store
