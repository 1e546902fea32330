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
#include "cocoon/metering/ledger_parts.h"

namespace cocoon::ledger {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
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
  bool compressed = false;
  std::unique_ptr<EntryReader> packed;  // what is left to read of one that is compressed
};

Follower::Follower(Selection selection, bool from_start) : selection_(std::move(selection)) {
  look_for_files(!from_start);
}

Follower::~Follower() = default;

void Follower::look_for_files(bool at_end) {
  for (const auto& file : files_) {
    file->listed = false;
  }
  for (const std::string& pattern : selection_.patterns) {
    Files paths;
    try {
      paths = find_files(Selection{{pattern}, selection_.with_parts});
    } catch (const LedgerError& error) {
      if (error.code != ENOENT) throw;
    }
    for (const std::filesystem::path& path : paths) {
      add_file(path, at_end);
    }
  }
}

void Follower::add_file(const std::filesystem::path& path, bool at_end) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return;  // renamed meanwhile
    fail_on(path, errno);
  }
  const auto known = std::find_if(files_.begin(), files_.end(), [&](const auto& other) {
    return other->device == status.st_dev && other->inode == status.st_ino;
  });
  if (known != files_.end()) {
    (*known)->listed = true;
    (*known)->path = path;
    return;
  }
  auto file = std::make_unique<File>();
  file->path = path;
  file->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (file->fd < 0 && errno == ENOENT) return;
  if (file->fd < 0 || ::fstat(file->fd, &status) != 0) fail_on(path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw LedgerError(fmt::format("follow ledger {}: not a regular file", path.string()), path.string());
  }
  file->device = status.st_dev;
  file->inode = status.st_ino;
  const std::string name = path.filename().string();
  if (name.ends_with(".zst") || name.ends_with(".gz")) {
    // Nothing is ever appended to it. What it repeats is known by its name.
    const auto part = metering::parse_part_name(name);
    std::uint64_t& last = last_seq_[stream_of(path)];
    if (at_end && part) last = std::max(last, part->last);
    const bool read = !at_end && (!part || part->last > last);
    if (read) file->packed = std::make_unique<EntryReader>(std::make_shared<const Files>(Files{path}));
    file->again = file->compressed = true;
  } else if (at_end) {
    begin_at_end(*file);
  } else {
    file->again = !last_seq_.empty();
  }
  files_.push_back(std::move(file));
}

// From behind the last whole line: what has no '\n' yet is new once it has.
void Follower::begin_at_end(File& file) {
  struct stat status{};
  if (::fstat(file.fd, &status) != 0) fail_on(file.path, errno);
  const auto size = static_cast<std::uint64_t>(status.st_size);
  const std::uint64_t begin = size - std::min(size, kTail);
  const std::string tail = file.read_at(begin, static_cast<std::size_t>(size - begin));
  const std::size_t last = tail.rfind('\n');
  file.consumed = last == std::string::npos ? size : begin + last + 1;
  for (std::size_t end = last; end != std::string::npos && end > 0;) {
    const std::size_t before = tail.rfind('\n', end - 1);
    const std::size_t start = before == std::string::npos ? 0 : before + 1;
    if (const std::uint64_t seq = metering::line_seq(std::string_view(tail).substr(start, end - start)); seq != 0) {
      std::uint64_t& known_seq = last_seq_[stream_of(file.path)];
      known_seq = std::max(known_seq, seq);
      return;
    }
    end = before;
  }
}

void Follower::take_entry(File& file, metering::Entry&& entry) {
  if (entry.seq) {
    std::uint64_t& last = last_seq_[stream_of(file.path)];
    if (file.again && *entry.seq <= last) {
      return;
    }
    last = std::max(last, *entry.seq);
  }
  found_.emplace_back(std::move(entry));
}

// True if there may be more.
bool Follower::read_packed(File& file) {
  constexpr std::size_t kMost = 1024;
  try {
    PlacedEntry placed;
    for (std::size_t i = 0; i < kMost; ++i) {
      if (!file.packed->next(placed)) {
        file.packed.reset();
        return false;
      }
      take_entry(file, std::move(placed.entry));
    }
  } catch (const LedgerError& error) {
    found_.emplace_back(error);
  }
  return true;
}

void Follower::take_line(File& file, std::string_view line, std::uint64_t offset) {
  try {
    take_entry(file, metering::from_json(line));
  } catch (const metering::BadEntry& error) {
    found_.emplace_back(LedgerError(
        fmt::format("follow ledger {}, byte {}: {}", file.path.string(), offset, error.what()), file.path.string()));
  }
}

// True if there may be more: one block at a time, so that a long ledger does not fill the memory.
bool Follower::read_some(File& file) {
  if (file.packed) return read_packed(file);
  if (file.compressed) return false;
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
