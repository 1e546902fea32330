#include "cocoon/system/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

Path folder_of(const Path& path) { return path.has_parent_path() ? path.parent_path() : Path("."); }

Path temp_name(const Path& path) {
  static std::atomic<unsigned> counter{0};
  return folder_of(path) / fmt::format(".cocoon-{}-{}.part", ::getpid(), counter.fetch_add(1));
}

}  // namespace

AtomicFile::AtomicFile(Path path) : path_(std::move(path)) {
  const auto folder = folder_of(path_);
  fd_ = Fd(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  while (!fd_) {
    // EISDIR is how a kernel that does not know O_TMPFILE says so.
    if (temp_.empty() && errno != EOPNOTSUPP && errno != EISDIR) throw_store_error("create a file in", folder);
    if (!temp_.empty() && errno != EEXIST) throw_store_error("create", temp_, errno);
    temp_ = temp_name(path_);
    fd_ = Fd(::open(temp_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ && !temp_.empty()) ::unlink(temp_.c_str());
}

void AtomicFile::publish() {
  // 1. The bytes are on the disk before any name leads to them. Die here: nothing (or a hidden file) is left.
  if (::fdatasync(fd_.get()) != 0) throw_store_error("sync", path_);
  // 2. link() does not replace, so it gets another name first. Die here: that hidden name is left.
  while (temp_.empty()) {
    const auto name = temp_name(path_);
    if (::linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd_.get()).c_str(), AT_FDCWD, name.c_str(),
                 AT_SYMLINK_FOLLOW) == 0)
      temp_ = name;
    else if (errno != EEXIST)
      throw_store_error("name", path_);
  }
  // 3. The switch.
  if (::rename(temp_.c_str(), path_.c_str()) != 0) throw_store_error("replace", path_);
  fd_.reset();
  sync_dir(folder_of(path_));
}

}  // namespace cocoon::system
