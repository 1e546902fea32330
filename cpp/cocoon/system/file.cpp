#include "cocoon/system/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

// Both repeat after EINTR, and after short counts.
void write_all(int fd, std::string_view bytes, const Path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno != EINTR) {
      throw_store_error("write", path);
    }
  }
}

std::string read_up_to(int fd, std::size_t max_bytes, const Path& path) {
  std::string text;
  std::size_t used = 0;
  for (;;) {
    if (used == max_bytes) break;
    text.resize(std::min(max_bytes, std::max<std::size_t>(used * 2, 4096)));
    const ssize_t n = ::read(fd, text.data() + used, text.size() - used);
    if (n > 0) {
      used += static_cast<std::size_t>(n);
    } else if (n == 0) {
      break;
    } else if (errno != EINTR) {
      throw_store_error("read", path);
    }
  }
  text.resize(used);
  return text;
}

// Opened so that neither a fifo nor a terminal can hold us up.
std::optional<Fd> find_readable(const Path& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (fd) return fd;
  if (errno == ENOENT) return std::nullopt;
  throw_store_error("open", path);
}

Path folder_of(const Path& path) { return path.has_parent_path() ? path.parent_path() : Path("."); }

// Unlinks on destruction unless kept.
class TempName {
 public:
  explicit TempName(Path path) : path_(std::move(path)) {}
  ~TempName() {
    if (!kept_) ::unlink(path_.c_str());
  }
  TempName(const TempName&) = delete;
  TempName& operator=(const TempName&) = delete;
  void keep() { kept_ = true; }
  [[nodiscard]] const Path& path() const { return path_; }

 private:
  Path path_;
  bool kept_ = false;
};

}  // namespace

std::optional<std::string> find_text(const Path& path, std::size_t max_bytes) {
  const std::optional<Fd> fd = find_readable(path);
  if (!fd) return std::nullopt;
  std::string text = read_up_to(fd->get(), max_bytes + 1, path);
  if (text.size() > max_bytes) {
    throw StoreError(fmt::format("read {}: longer than {} bytes", path.string(), max_bytes), path.string());
  }
  return text;
}

std::string tail_text(const Path& path, std::size_t max_lines, std::size_t max_bytes) {
  const std::optional<Fd> fd = find_readable(path);
  if (!fd || max_lines == 0 || max_bytes == 0) return "";
  struct stat status{};
  if (::fstat(fd->get(), &status) != 0) throw_store_error("stat", path);
  if (!S_ISREG(status.st_mode)) throw_store_error("read log", path, S_ISDIR(status.st_mode) ? EISDIR : EINVAL);

  // One byte more than asked tells whether the tail begins with a whole line.
  const off_t start = std::max<off_t>(status.st_size - static_cast<off_t>(max_bytes) - 1, 0);
  if (::lseek(fd->get(), start, SEEK_SET) < 0) throw_store_error("seek", path);
  std::string text = read_up_to(fd->get(), static_cast<std::size_t>(status.st_size - start), path);
  if (!text.empty() && text.back() == '\n') text.pop_back();
  if (std::cmp_greater(status.st_size, max_bytes)) {
    const std::size_t first_end = text.find('\n');
    text.erase(0, first_end == std::string::npos ? 1 : first_end + 1);
  }
  std::size_t cut = text.size();
  for (std::size_t lines = 0; lines < max_lines && cut != std::string::npos; ++lines) {
    cut = cut == 0 ? std::string::npos : text.rfind('\n', cut - 1);
  }
  if (cut != std::string::npos) text.erase(0, cut + 1);
  return text;
}

void write_text_atomic(const Path& path, std::string_view text, unsigned mode) {
  static std::atomic<unsigned> counter{0};
  const Path folder = folder_of(path);
  for (;;) {
    TempName temp(folder / fmt::format(".cocoon-{}-{}.tmp", ::getpid(), counter.fetch_add(1)));
    // 1. A name of its own. Die before step 3: the old text stands, and a hidden temp file that nobody reads is left.
    Fd fd(::open(temp.path().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
    if (!fd) {
      const int code = errno;
      temp.keep();                   // not ours
      if (code == EEXIST) continue;  // left by a dead process with our pid
      throw_store_error("create a temporary file for", path, code);
    }
    if (::fchmod(fd.get(), mode) != 0) throw_store_error("set the mode of", temp.path());  // whatever our umask is
    // 2. The text is on the disk before any name leads to it.
    write_all(fd.get(), text, temp.path());
    if (::fdatasync(fd.get()) != 0) throw_store_error("sync", temp.path());
    // 3. The switch.
    if (::rename(temp.path().c_str(), path.c_str()) != 0) throw_store_error("replace", path);
    temp.keep();
    break;
  }
  // 4. The switch is on the disk. Die or fail before: old or new text, whole.
  sync_dir(folder);
}

void sync_file(const Path& path, Cancel& cancel) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK));
  if (!fd) throw_store_error("open", path);
  sync_file(fd.get(), path, cancel);
}

void sync_file(int fd, const Path& shown, Cancel& cancel) {
  constexpr off_t kPiece = 8 << 20;  // a slow disk writes it within a slice of Cancel
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw_store_error("stat", shown);
  for (off_t at = 0; at < status.st_size;) {
    cancel.check();
    // Holes have nothing to be written.
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data > at) at = data;
    // Failing is no error here: fsync reports what could not be written, and some file systems have only that.
    ::sync_file_range(fd, at, kPiece, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    at += kPiece;
  }
  if (::fsync(fd) != 0) throw_store_error("sync", shown);
}

void Writeback::wrote(std::int64_t offset, std::int64_t length) {
  constexpr std::int64_t kPiece = 8 << 20;
  if (offset != end_) {
    if (end_ > begin_) ::sync_file_range(fd_, begin_, end_ - begin_, SYNC_FILE_RANGE_WRITE);
    begin_ = offset;
  }
  end_ = offset + length;
  if (end_ - begin_ < kPiece) return;
  ::sync_file_range(fd_, begin_, end_ - begin_, SYNC_FILE_RANGE_WRITE);
  begin_ = end_;
}

void sync_dir(const Path& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) throw_store_error("open folder", path);
  if (::fsync(fd.get()) != 0) throw_store_error("sync folder", path);
}

void make_private_dirs(const Path& path) {
  // "a/b/" has "a/b" as its parent. (A slash at the end would follow a link.)
  if (!path.has_filename() && path.has_parent_path() && path.parent_path() != path)
    return make_private_dirs(path.parent_path());
  for (;;) {
    if (::mkdir(path.c_str(), 0700) == 0) return;
    int code = errno;
    if (code == ENOENT && path.has_parent_path() && path.parent_path() != path) {
      make_private_dirs(path.parent_path());
      if (::mkdir(path.c_str(), 0700) == 0) return;
      code = errno;
    }
    // Where a parent may not be written to, the folder may be there all the same.
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0) {
      if (!S_ISDIR(status.st_mode)) throw_store_error("make folder", path, ENOTDIR);
      return;
    }
    // Was it there, and somebody has removed it since? (What is there, but leads nowhere, is a link.)
    if (code != EEXIST || errno != ENOENT || ::lstat(path.c_str(), &status) == 0)
      throw_store_error("make folder", path, code);
  }
}

void remove_file(const Path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_store_error("remove", path);
}

}  // namespace cocoon::system
