#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "cocoon/system/process.h"

namespace cocoon::system {
namespace {

constexpr std::size_t kMaxBytes = 256;
constexpr std::size_t kBootIdDigits = 8;
constexpr int kLastSignal = 64;
constexpr int kLastStatus = 255;

// Takes the decimal number and the one space after it off `text`.
template <typename Number>
bool take_number(std::string_view& text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end == text.data() + text.size() || *end != ' ' || text.front() == '-') return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
  return true;
}

bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

// "pid start_ticks uptime_ns wall_ns code status boot_id\n"
std::optional<ExitRecord> parse_line(std::string_view text) {
  ExitRecord record;
  int code = 0;
  if (!take_number(text, record.identity.pid) || !take_number(text, record.identity.start_ticks) ||
      !take_number(text, record.uptime_ns) || !take_number(text, record.wall_ns) || !take_number(text, code) ||
      !take_number(text, record.status)) {
    return std::nullopt;
  }
  if (text.size() != kBootIdDigits + 1 || text.back() != '\n') return std::nullopt;
  text.remove_suffix(1);
  if (!std::all_of(text.begin(), text.end(), is_hex)) return std::nullopt;
  record.identity.boot_id = text;
  record.signalled = code == CLD_KILLED || code == CLD_DUMPED;
  if (!record.signalled && code != CLD_EXITED) return std::nullopt;
  if (record.identity.pid <= 0 || record.identity.start_ticks == 0) return std::nullopt;
  if (record.signalled ? record.status < 1 || record.status > kLastSignal : record.status > kLastStatus) {
    return std::nullopt;
  }
  return record;
}

}  // namespace

std::string ExitRecord::describe() const {
  if (!signalled) return fmt::format("status {}", status);
  const char* words = ::sigdescr_np(status);  // strsignal() is not for threads
  return words != nullptr ? fmt::format("signal {} ({})", status, words) : fmt::format("signal {}", status);
}

std::optional<ExitRecord> find_exit_record(const Path& exit_file) {
  const Fd fd(::open(exit_file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!fd) return std::nullopt;
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != ::geteuid()) return std::nullopt;
  std::array<char, kMaxBytes + 1> text;
  ssize_t size = 0;
  do {
    size = ::read(fd.get(), text.data(), text.size());
  } while (size < 0 && errno == EINTR);
  if (size <= 0 || std::cmp_greater(size, kMaxBytes)) return std::nullopt;
  return parse_line({text.data(), static_cast<std::size_t>(size)});
}

}  // namespace cocoon::system
