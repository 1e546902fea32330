#include "cocoon/ledger/follow.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "cocoon/ledger/reader.h"
#include "cocoon/metering/ledger_file.h"

namespace cocoon::ledger {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::size_t kLongestLine = std::size_t{16} << 20;
constexpr std::uint64_t kTail = std::uint64_t{64} << 10;

[[noreturn]] void fail_on(const std::filesystem::path& path, int code) {
  throw LedgerError(system_message("follow ledger " + path.string(), code), path.string(), code);
}

bool same_time(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

struct Follower::File {
  ~File() {
    if (fd >= 0) ::close(fd);
  }

  // Up to `size` bytes from `offset` on; fewer at the end.
  std::string read_at(std::uint64_t offset, std::size_t size) const {
    std::string text(size, '\0');
    std::size_t have = 0;
    while (have < size) {
      const ssize_t got = ::pread(fd, text.data() + have, size - have, static_cast<off_t>(offset + have));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_on(path, errno);
      if (got == 0) break;
      have += static_cast<std::size_t>(got);
    }
    text.resize(have);
    return text;
  }

  std::filesystem::path path;
  int fd = -1;
  dev_t device = 0;
  ino_t inode = 0;
  std::uint64_t consumed = 0;  // whole lines up to here; what follows is read again at each change
  struct stat seen{};          // when it was read last
  bool again = false;          // lines of it may have been delivered before
  bool listed = true;          // some path still names it
};

Follower::Follower(std::vector<std::string> patterns, bool from_start) : patterns_(std::move(patterns)) {
  look_for_files(!from_start);
}

Follower::~Follower() = default;

void Follower::look_for_files(bool at_end) {
  for (const auto& file : files_) {
    file->listed = false;
  }
  for (const std::string& pattern : patterns_) {
    Files paths;
    try {
      paths = find_files({&pattern, 1});
    } catch (const LedgerError& error) {
      if (error.code != ENOENT) throw;
    }
    for (const std::filesystem::path& path : paths) {
      auto file = std::make_unique<File>();
      file->path = path;
      struct stat status{};
      if (::stat(path.c_str(), &status) != 0) {
        if (errno == ENOENT) continue;  // renamed meanwhile
        fail_on(path, errno);
      }
      const auto known = std::find_if(files_.begin(), files_.end(), [&](const auto& other) {
        return other->device == status.st_dev && other->inode == status.st_ino;
      });
      if (known != files_.end()) {
        (*known)->listed = true;
        (*known)->path = path;
        continue;
      }
      file->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
      if (file->fd < 0 && errno == ENOENT) continue;
      if (file->fd < 0 || ::fstat(file->fd, &status) != 0) fail_on(path, errno);
      if (!S_ISREG(status.st_mode)) {
        throw LedgerError(fmt::format("follow ledger {}: not a regular file", path.string()), path.string());
      }
      file->device = status.st_dev;
      file->inode = status.st_ino;
      if (at_end) {
        // From behind the last whole line: what has no '\n' yet is new once it has.
        const auto size = static_cast<std::uint64_t>(status.st_size);
        const std::uint64_t begin = size - std::min(size, kTail);
        const std::string tail = file->read_at(begin, static_cast<std::size_t>(size - begin));
        const std::size_t last = tail.rfind('\n');
        file->consumed = last == std::string::npos ? size : begin + last + 1;
        for (std::size_t end = last; end != std::string::npos && end > 0;) {
          const std::size_t before = tail.rfind('\n', end - 1);
          const std::size_t start = before == std::string::npos ? 0 : before + 1;
          if (const std::uint64_t seq = metering::line_seq(std::string_view(tail).substr(start, end - start));
              seq != 0) {
            std::uint64_t& known_seq = last_seq_[path.parent_path().string()];
            known_seq = std::max(known_seq, seq);
            break;
          }
          end = before;
        }
      } else {
        file->again = !last_seq_.empty();
      }
      files_.push_back(std::move(file));
    }
  }
}

void Follower::take_line(File& file, std::string_view line, std::uint64_t offset) {
  try {
    metering::Entry entry = metering::from_json(line);
    if (entry.seq) {
      std::uint64_t& last = last_seq_[file.path.parent_path().string()];
      if (file.again && *entry.seq <= last) {
        return;
      }
      last = std::max(last, *entry.seq);
    }
    found_.emplace_back(std::move(entry));
  } catch (const metering::BadEntry& error) {
    found_.emplace_back(LedgerError(
        fmt::format("follow ledger {}, byte {}: {}", file.path.string(), offset, error.what()), file.path.string()));
  }
}

// True if there may be more: one block at a time, so that a long ledger does not fill the memory.
bool Follower::read_some(File& file) {
  struct stat status{};
  if (::fstat(file.fd, &status) != 0) fail_on(file.path, errno);
  if (status.st_size == file.seen.st_size && same_time(status.st_mtim, file.seen.st_mtim)) {
    return false;
  }
  if (std::cmp_less(status.st_size, file.consumed)) {
    file.consumed = 0;
    file.again = true;
  }
  std::size_t size = kBlock;
  std::string text = file.read_at(file.consumed, size);
  while (text.size() == size && text.find('\n') == std::string::npos && size < kLongestLine) {
    size *= 2;
    text = file.read_at(file.consumed, size);
  }
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    take_line(file, std::string_view(text).substr(begin, end - begin), file.consumed + begin);
    begin = end + 1;
  }
  if (begin == 0 && text.size() >= kLongestLine) {
    found_.emplace_back(LedgerError(
        fmt::format("follow ledger {}, byte {}: the line is longer than 16 MiB", file.path.string(), file.consumed),
        file.path.string()));
    begin = text.size();
  }
  file.consumed += begin;
  if (text.size() == size) {
    return true;
  }
  file.seen = status;
  return false;
}

std::optional<metering::Entry> Follower::poll() {
  for (bool more = true; more && found_.empty();) {
    look_for_files(false);
    more = false;
    for (const auto& file : files_) {
      more |= read_some(*file);
      if (!found_.empty()) break;
    }
    if (!more && found_.empty()) {
      std::erase_if(files_, [](const auto& file) { return !file->listed; });
    }
  }
  if (found_.empty()) {
    return std::nullopt;
  }
  auto next = std::move(found_.front());
  found_.pop_front();
  if (auto* error = std::get_if<LedgerError>(&next)) {
    throw *error;  // NOLINT(bugprone-exception-copy-constructor-throws,cert-err60-cpp): it is only short of memory
  }
  return std::get<metering::Entry>(std::move(next));
}

}  // namespace cocoon::ledger
