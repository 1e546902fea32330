#include "cocoon/metering/ledger_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/metering/owned_fd.h"

namespace cocoon::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kTailChunk = std::size_t{2} << 10;     // a few of our lines
constexpr std::size_t kLongestChunk = std::size_t{1} << 20;  // when the tail is not ours
// Nothing we append in one write is longer: an unterminated text beyond it is somebody else's, and is only ended.
constexpr std::uint64_t kLongestTorn = std::uint64_t{16} << 20;

// So that a name made in a folder survives a power cut.
void sync_folder(const fs::path& folder) {
  const OwnedFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.value < 0) fail_on("open folder", folder, errno);
  if (::fsync(fd.value) != 0) fail_on("sync folder", folder, errno);
}

fs::path folder_of(const fs::path& path) {
  const auto parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

void make_folders(const fs::path& folder) {
  struct stat status{};
  if (::stat(folder.c_str(), &status) == 0) return;  // what it is, opening the file in it will say
  if (errno != ENOENT) fail_on("stat folder", folder, errno);
  make_folders(folder_of(folder));
  if (::mkdir(folder.c_str(), 0750) != 0 && errno != EEXIST) fail_on("make folder", folder, errno);
  sync_folder(folder_of(folder));
}

// Not stat: since Linux 6.13 a file whose times were asked for gets exact ones at its next write. That changes its
// inode, which then goes with the next sync of any file (measured: a transition took a quarter longer).
std::optional<struct statx> identify(int folder, const char* name, int flags) {
  struct statx status{};
  if (::statx(folder, name, flags, STATX_TYPE | STATX_INO | STATX_SIZE, &status) != 0) return std::nullopt;
  return status;
}

LedgerFile::State state_of(const struct statx& status) {
  return {.device = ::makedev(status.stx_dev_major, status.stx_dev_minor),
          .inode = status.stx_ino,
          .size = status.stx_size};
}

}  // namespace

LedgerFile::LedgerFile(fs::path path) : path_(std::move(path)) {}

LedgerFile::~LedgerFile() { close(); }

void LedgerFile::fail(const char* tried, int code) const { fail_on(tried, path_, code); }

void LedgerFile::open_or_create() {
  constexpr int kFlags = O_RDWR | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  fd_ = ::open(path_.c_str(), kFlags);
  if (fd_ >= 0) return;
  if (errno != ENOENT) fail("open ledger", errno);
  make_folders(folder_of(path_));
  fd_ = ::open(path_.c_str(), kFlags | O_CREAT, 0600);
  if (fd_ < 0) fail("make ledger", errno);
  sync_folder(folder_of(path_));
}

bool LedgerFile::refresh() {
  grew_ = false;
  if (fd_ >= 0) {
    const auto named = identify(AT_FDCWD, path_.c_str(), 0);
    if (!named && errno != ENOENT) fail("stat ledger", errno);
    const auto before = std::exchange(state_, named ? state_of(*named) : State{});
    if (state_ == before) return false;
    if (state_.device == before.device && state_.inode == before.inode) {
      grew_ = state_.size > before.size;
      last_seq_.reset();
      return true;
    }
    close();
  }
  open_or_create();
  const auto opened = identify(fd_, "", AT_EMPTY_PATH);
  if (!opened) {
    const int code = errno;
    close();
    fail("stat ledger", code);
  }
  if (!S_ISREG(opened->stx_mode)) {
    close();
    throw LedgerError("open ledger " + path_.string() + ": not a regular file", path_.string());
  }
  state_ = state_of(*opened);
  last_seq_.reset();
  return true;
}

void LedgerFile::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  state_ = {};
  grew_ = false;
  last_seq_.reset();
}

void LedgerFile::read_at(std::uint64_t offset, char* to, std::size_t size) const {
  while (size > 0) {
    const ssize_t got = ::pread(fd_, to, size, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read ledger", errno);
    if (got == 0) throw LedgerError("read ledger " + path_.string() + ": it became shorter meanwhile", path_.string());
    to += got;
    offset += static_cast<std::uint64_t>(got);
    size -= static_cast<std::size_t>(got);
  }
}

// Complete lines, the last one first.
void LedgerFile::for_each_backwards(const Visit& visit) const {
  std::string text;                  // the bytes from `base` on that are not visited yet
  std::uint64_t base = state_.size;  // where `text` begins
  std::size_t chunk = kTailChunk;
  bool ended = false;  // `text` ends with the '\n' of a line to visit
  for (;;) {
    if (ended) {
      const std::string_view seen(text);
      const auto before = seen.substr(0, seen.size() - 1).rfind('\n');
      if (before != std::string_view::npos || base == 0) {
        const std::size_t start = before == std::string_view::npos ? 0 : before + 1;
        if (!visit(seen.substr(start, seen.size() - 1 - start), base + start)) return;
        text.resize(start);
        ended = start > 0;
        continue;
      }
    } else if (const auto last = text.rfind('\n'); last != std::string::npos) {
      text.resize(last + 1);  // behind it only an unterminated line
      ended = true;
      continue;
    }
    if (base == 0) return;
    const std::size_t more = std::min<std::uint64_t>(chunk, base);
    std::string longer(more + text.size(), '\0');
    read_at(base - more, longer.data(), more);
    std::copy(text.begin(), text.end(), longer.begin() + static_cast<std::ptrdiff_t>(more));
    text = std::move(longer);
    base -= more;
    chunk =
        std::max(std::min(chunk * 2, kLongestChunk), text.size());  // doubling: a very long line is not copied often
  }
}

void LedgerFile::end_last_line(const KeepTorn& keep_torn) {
  if (state_.size == 0) return;
  char last = 0;
  read_at(state_.size - 1, &last, 1);
  if (last == '\n') return;
  std::uint64_t start = state_.size;
  std::string torn;
  std::size_t newline = std::string::npos;
  while (start > 0 && newline == std::string::npos && state_.size - start <= kLongestTorn) {
    const std::size_t more = std::min<std::uint64_t>(std::max<std::size_t>(kTailChunk, torn.size()), start);
    std::string longer(more + torn.size(), '\0');
    read_at(start - more, longer.data(), more);
    std::copy(torn.begin(), torn.end(), longer.begin() + static_cast<std::ptrdiff_t>(more));
    torn = std::move(longer);
    start -= more;
    newline = std::string_view(torn).rfind('\n');
  }
  const bool whole = start == 0 || newline != std::string::npos;
  const std::size_t begin = newline == std::string::npos ? 0 : newline + 1;
  if (!whole || keep_torn(std::string_view(torn).substr(begin)))
    write_end("\n");
  else
    cut(start + begin);
}

std::uint64_t LedgerFile::last_seq(const KeepTorn& keep_torn) {
  if (last_seq_) return *last_seq_;
  end_last_line(keep_torn);
  std::uint64_t found = 0;
  for_each_backwards([&](std::string_view line, std::uint64_t) {
    found = line_seq(line);
    return found == 0;
  });
  last_seq_ = found;
  return found;
}

void LedgerFile::for_each_after(std::uint64_t through, const Visit& visit) {
  std::uint64_t start = 0;
  for_each_backwards([&](std::string_view line, std::uint64_t offset) {
    const auto seq = line_seq(line);
    if (seq == 0 || seq > through + 1) return true;
    start = seq == through + 1 ? offset : offset + line.size() + 1;
    return false;
  });
  for_each_from(start, visit);
}

std::uint64_t LedgerFile::first_seq() const {
  std::uint64_t found = 0;
  for_each_from(0, [&](std::string_view line, std::uint64_t) {
    found = line_seq(line);
    return found == 0;
  });
  return found;
}

void LedgerFile::for_each_from(std::uint64_t start, const Visit& visit) const {
  std::string text;
  std::uint64_t base = start;  // of `text`
  std::uint64_t next = start;  // to read
  while (next < state_.size) {
    const std::size_t kept = text.size();
    const std::size_t more = std::min<std::uint64_t>(std::max(kLongestChunk, kept), state_.size - next);
    text.resize(kept + more);
    read_at(next, text.data() + kept, more);
    next += more;
    std::size_t begin = 0;
    for (auto end = text.find('\n', kept); end != std::string::npos; end = text.find('\n', begin)) {
      if (!visit(std::string_view(text).substr(begin, end - begin), base + begin)) return;
      begin = end + 1;
    }
    text.erase(0, begin);
    base += begin;
  }
}

void LedgerFile::cut(std::uint64_t offset) {
  last_seq_.reset();
  if (::ftruncate(fd_, static_cast<off_t>(offset)) != 0) fail("cut ledger", errno);
  state_.size = offset;
}

void LedgerFile::write_end(std::string_view bytes) {
  std::size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t got = ::write(fd_, bytes.data() + written, bytes.size() - written);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int code = errno;
      // Cut back what stands of it, unless somebody without the lock wrote behind it. Die here: a torn last line.
      const off_t end = ::lseek(fd_, 0, SEEK_CUR);
      struct stat status{};
      if (written > 0 && ::fstat(fd_, &status) == 0 && status.st_size == end)
        static_cast<void>(::ftruncate(fd_, end - static_cast<off_t>(written)) == 0);
      close();
      fail("append to ledger", code);
    }
    written += static_cast<std::size_t>(got);
  }
  // If somebody without the lock wrote in between, the next refresh() finds the file longer than this.
  state_.size += written;
}

void LedgerFile::append(std::string_view lines, std::uint64_t last_seq) {
  last_seq_.reset();
  if (lines.empty()) return;
  write_end(lines);
  if (last_seq != 0) last_seq_ = last_seq;
}

void LedgerFile::sync() {
  if (::fdatasync(fd_) == 0) return;
  const int code = errno;
  close();
  fail("sync ledger", code);
}

std::uint64_t line_seq(std::string_view line) {
  constexpr std::string_view kKey = "\"seq\"";
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!line.empty() && blank(line.back())) line.remove_suffix(1);
  while (!line.empty() && blank(line.front())) line.remove_prefix(1);
  if (line.size() < 2 || line.front() != '{' || line.back() != '}') return 0;
  // Inside a JSON string every quote is escaped, so this is a key, or a whole value and then no ':' follows. A label
  // may be named seq too, but labels are strings.
  for (auto at = line.find(kKey); at != std::string_view::npos; at = line.find(kKey, at + kKey.size())) {
    auto rest = line.substr(at + kKey.size());
    while (!rest.empty() && blank(rest.front())) rest.remove_prefix(1);
    if (rest.empty() || rest.front() != ':') continue;
    rest.remove_prefix(1);
    while (!rest.empty() && blank(rest.front())) rest.remove_prefix(1);
    std::uint64_t seq = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), seq);
    if (error != std::errc{}) continue;
    if (*end == ',' || *end == '}' || blank(*end)) return seq;  // the line ends with '}': `end` is inside
  }
  return 0;
}

}  // namespace cocoon::metering
