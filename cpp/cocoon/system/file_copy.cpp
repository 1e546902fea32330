#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "cocoon/system/file.h"
#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

constexpr off_t kPiece = 4 << 20;  // a slow disk writes it within a slice of Cancel
constexpr std::size_t kBuffer = 256 << 10;

// A file that did not exist before; gone again unless kept.
class NewFile {
 public:
  explicit NewFile(const Path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)) {
    if (!fd_) throw_store_error("create", path);
  }
  ~NewFile() {
    if (!kept_) ::unlink(path_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  void keep(Sync sync = Sync::kNow) {
    if (sync == Sync::kNow && ::fsync(fd_.get()) != 0) throw_store_error("sync", path_);
    kept_ = true;
  }

 private:
  Path path_;
  Fd fd_;
  bool kept_ = false;
};

struct Ends {
  const Path& from;
  const Path& to;
  int in;
  int out;
};

// One piece by read and write, for file systems that copy_file_range does not join.
off_t copy_through_memory(const Ends& ends, off_t offset, off_t length) {
  const auto buffer = std::make_unique<char[]>(kBuffer);
  off_t done = 0;
  while (done < length) {
    const auto want = std::min<std::size_t>(kBuffer, static_cast<std::size_t>(length - done));
    const ssize_t got = ::pread(ends.in, buffer.get(), want, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_store_error("read", ends.from);
    if (got == 0) break;
    for (ssize_t written = 0; written < got;) {
      const ssize_t n =
          ::pwrite(ends.out, buffer.get() + written, static_cast<std::size_t>(got - written), offset + done + written);
      if (n >= 0) {
        written += n;
      } else if (errno != EINTR) {
        throw_store_error("write", ends.to);
      }
    }
    done += got;
  }
  return done;
}

class Copier {
 public:
  explicit Copier(const Ends& ends) : ends_(ends) {}

  void copy_data(off_t begin, off_t end, Cancel& cancel) {
    while (begin < end) {
      cancel.check();
      const off_t done = copy_piece(begin, std::min(kPiece, end - begin));
      if (done == 0) {
        throw StoreError("copy " + ends_.from.string() + ": it became shorter meanwhile", ends_.from.string());
      }
      begin += done;
    }
  }

 private:
  off_t copy_piece(off_t offset, off_t length) {
    while (in_kernel_) {
      off_t in = offset;
      off_t out = offset;
      const ssize_t n = ::copy_file_range(ends_.in, &in, ends_.out, &out, static_cast<std::size_t>(length), 0);
      if (n > 0) return n;
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) {
        throw_store_error("write", ends_.to);
      }
      in_kernel_ = false;  // EXDEV, ENOSYS, EOPNOTSUPP …; some file systems say 0 instead
    }
    return copy_through_memory(ends_, offset, length);
  }

  Ends ends_;
  bool in_kernel_ = true;
};

void copy_sparse(const Ends& ends, off_t size, Cancel& cancel) {
  // The size first: what no data is written to stays a hole, the end included.
  if (::ftruncate(ends.out, size) != 0) throw_store_error("set the size of", ends.to);
  Copier copier(ends);
  off_t end = 0;
  while (end < size) {
    cancel.check();
    const off_t begin = ::lseek(ends.in, end, SEEK_DATA);
    if (begin < 0 && errno == ENXIO) return;                      // nothing but a hole from here
    if (begin < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {  // no holes on this file system
      copier.copy_data(end, size, cancel);
      return;
    }
    if (begin < 0) throw_store_error("find the data of", ends.from);
    if (begin >= size) return;  // grown since
    end = ::lseek(ends.in, begin, SEEK_HOLE);
    if (end < 0) throw_store_error("find the holes of", ends.from);
    end = std::min(end, size);
    copier.copy_data(begin, end, cancel);
  }
}

}  // namespace

void make_sparse_file(const Path& path, std::int64_t size_bytes) {
  NewFile file(path);
  if (::ftruncate(file.fd(), size_bytes) != 0) {
    throw_store_error("set the size (" + std::to_string(size_bytes) + " bytes) of", path);
  }
  file.keep();
}

void copy_file(const Path& from, const Path& to, Cancel& cancel, Sync sync) {
  const Fd in(::open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!in) throw_store_error("open", from);
  struct stat status{};
  if (::fstat(in.get(), &status) != 0) throw_store_error("stat", from);
  if (!S_ISREG(status.st_mode)) {
    throw StoreError("copy " + from.string() + ": not a regular file", from.string(), EINVAL);
  }
  cancel.check();
  NewFile out(to);
  if (::ioctl(out.fd(), FICLONE, in.get()) != 0) copy_sparse({from, to, in.get(), out.fd()}, status.st_size, cancel);
  out.keep(sync);
}

}  // namespace cocoon::system
