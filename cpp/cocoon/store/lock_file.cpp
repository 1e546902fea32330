#include "cocoon/store/lock_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>

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

system::Fd LockFile::take_or_open() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto fd = std::move(idle_.back());
      idle_.pop_back();
      return fd;
    }
  }
  system::Fd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0600));
  if (!fd) fail("open lock file", path_, errno);
  return fd;
}

// False: the file was removed or replaced since, so that the lock excludes nobody. Asked of the open file, for that
// spares the way along its path.
bool LockFile::is_named(int fd) const {
  struct statx status{};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_NLINK, &status) != 0) fail("stat lock file", path_, errno);
  return status.stx_nlink != 0;
}

LockFile::Held::Held(LockFile& file, Unchecked /*unchecked*/) : file_(file), owner_(process_generation()) { take(); }

LockFile::Held::Held(LockFile& file) : Held(file, Unchecked{}) { ensure_named(); }

void LockFile::Held::take() {
  fd_ = file_.take_or_open();
  while (::flock(fd_.get(), LOCK_EX) != 0) {
    if (errno != EINTR) fail("lock", file_.path_, errno);
  }
}

void LockFile::Held::ensure_named() {
  while (!file_.is_named(fd_.get())) {
    fd_.reset();
    take();
  }
}

LockFile::Held::~Held() {
  if (!is_ours()) return;
  ::flock(fd_.get(), LOCK_UN);
  const std::lock_guard lock(file_.mutex_);
  if (file_.idle_.size() < kMostIdle) file_.idle_.push_back(std::move(fd_));
}

}  // namespace cocoon::store
