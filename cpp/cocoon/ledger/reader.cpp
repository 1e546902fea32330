#include "cocoon/ledger/reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/log.h"

namespace cocoon::ledger {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
// Nothing of ours is a thousandth of it. A file without line ends must not fill the memory.
constexpr std::size_t kLongestLine = std::size_t{16} << 20;

[[noreturn]] void fail_on(const std::filesystem::path& path, std::string_view why, int code = 0) {
  throw LedgerError(fmt::format("read ledger {}: {}", path.string(), why), path.string(), code);
}

}  // namespace

LineReader::LineReader(std::shared_ptr<const Files> files, Check check)
    : files_(std::move(files)), check_(std::move(check)), block_(kBlock) {}

LineReader::~LineReader() { close(); }

void LineReader::close() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
  fd_ = -1;
}

bool LineReader::open_next() {
  if (next_file_ == files_->size()) {
    return false;
  }
  const std::filesystem::path& path = (*files_)[next_file_++];
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  struct stat status{};
  if (fd_ < 0 || ::fstat(fd_, &status) != 0) {
    const int code = errno;
    close();
    fail_on(path, std::strerror(code), code);
  }
  if (!S_ISREG(status.st_mode)) {
    close();
    fail_on(path, "not a regular file");
  }
  at_ = {&path, 1, 0};
  begin_ = end_ = scanned_ = 0;
  return true;
}

// More of the open file behind what is there. False at its end.
bool LineReader::fill() {
  if (check_) {
    check_();
  }
  if (begin_ > 0) {
    std::memmove(block_.data(), block_.data() + begin_, end_ - begin_);
    scanned_ -= begin_;
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ == block_.size()) {
    block_.resize(block_.size() * 2);
  }
  for (;;) {
    const ssize_t got = ::read(fd_, block_.data() + end_, block_.size() - end_);
    if (got >= 0) {
      end_ += static_cast<std::size_t>(got);
      break;
    }
    if (errno != EINTR) {
      fail_on(*at_.file, std::strerror(errno), errno);
    }
  }
  const std::string_view start(block_.data(), std::min<std::size_t>(end_, 4));
  if (at_.offset == 0 && (start.starts_with("\x1F\x8B") || start.starts_with("\x28\xB5\x2F\xFD"))) {
    fail_on(*at_.file, "it is compressed, which cannot be read yet");
  }
  return end_ > scanned_;
}

bool LineReader::next(Line& line) {
  line = {};
  for (;;) {
    if (fd_ < 0 && !open_next()) {
      return false;
    }
    const char* newline = nullptr;
    if (end_ > scanned_) {
      newline = static_cast<const char*>(std::memchr(block_.data() + scanned_, '\n', end_ - scanned_));
    }
    if (newline == nullptr) {
      scanned_ = end_;
      if (end_ - begin_ > kLongestLine && !line.overlong) {
        line.overlong = true;
        line.at = at_;
      }
      if (line.overlong) {
        at_.offset += end_ - begin_;
        begin_ = end_ = scanned_ = 0;
      }
      if (fill()) {
        continue;
      }
      close();
      if (end_ == begin_ && !line.overlong) {
        continue;  // the end of a file that ends as it should
      }
      line.torn = true;
    }
    const std::size_t stop = newline == nullptr ? end_ : static_cast<std::size_t>(newline - block_.data());
    if (!line.overlong) {
      line.at = at_;
      line.overlong = stop - begin_ > kLongestLine;
    }
    if (!line.overlong) {
      line.text = {block_.data() + begin_, stop - begin_};
    }
    const std::size_t behind = newline == nullptr ? stop : stop + 1;
    at_.offset += behind - begin_;
    ++at_.line;
    begin_ = scanned_ = behind;
    return true;
  }
}

std::string describe(const Position& at) {
  return fmt::format("{}, line {}, byte {}", at.file->string(), at.line, at.offset);
}

std::string describe(const BadLine& bad) {
  std::string why;
  if (bad.error) {
    why = bad.error->what();
  } else if (bad.line.overlong) {
    why = "the line is longer than 16 MiB";
  } else {
    why = "the last line has no '\\n': it is torn";
  }
  return fmt::format("{}: {}", describe(bad.line.at), why);
}

EntryReader::EntryReader(std::shared_ptr<const Files> files, OnBad on_bad, Check check)
    : lines_(std::move(files), std::move(check)), on_bad_(std::move(on_bad)) {}

bool EntryReader::next(PlacedEntry& placed) {
  Line line;
  while (lines_.next(line)) {
    BadLine bad{line, std::nullopt};
    if (!line.torn && !line.overlong) {
      try {
        placed.entry = metering::from_json(line.text);
        placed.at = line.at;
        return true;
      } catch (const metering::BadEntry& error) {
        bad.error = error;
      }
    }
    if (!on_bad_) {
      throw LedgerError("read ledger " + describe(bad), line.at.file->string());
    }
    on_bad_(bad);
  }
  return false;
}

void for_each_entry(const Files& files, const std::function<void(PlacedEntry&& placed)>& visit, const Check& check) {
  std::uint64_t bad_lines = 0;
  std::string first;
  const auto count = [&](const BadLine& bad) {
    if (++bad_lines == 1) {
      first = describe(bad);
    }
  };
  EntryReader reader(std::make_shared<const Files>(files), count, check);
  PlacedEntry placed;
  while (reader.next(placed)) {
    visit(std::move(placed));
  }
  if (bad_lines > 0) {
    logger()->warn("passed over {} bad lines of the ledger, the first: {}", bad_lines, first);
  }
}

}  // namespace cocoon::ledger
