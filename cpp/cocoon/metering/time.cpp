// RFC 3339 with nanoseconds, both ways, over all of the 64-bit range (1677 to 2262).

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/civil.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/text.h"

namespace cocoon::metering {
namespace {

constexpr std::int64_t kNsPerSecond = 1'000'000'000;
constexpr std::int64_t kSecondsPerDay = 86'400;
constexpr std::size_t kToSecondLength = 19;  // 2026-11-23T09:00:35

void put_digits(char* at, std::int64_t value, std::size_t count) {
  for (std::size_t i = count; i > 0; --i) {
    at[i - 1] = static_cast<char>('0' + value % 10);
    value /= 10;
  }
}

// Many entries of one second follow each other: the text up to the second is kept.
struct SecondText {
  std::int64_t second = std::numeric_limits<std::int64_t>::min();  // no 64-bit ns is that far away
  std::array<char, kToSecondLength> text{};
};

void write_second(std::int64_t second, SecondText& out) {
  const std::int64_t day_number = second >= 0 ? second / kSecondsPerDay : -((-second - 1) / kSecondsPerDay) - 1;
  const std::int64_t of_day = second - day_number * kSecondsPerDay;
  const auto [year, month, day] = civil_from_days(day_number);
  out.second = second;
  std::memcpy(out.text.data(), "0000-00-00T00:00:00", kToSecondLength);
  put_digits(out.text.data(), year, 4);
  put_digits(&out.text[5], month, 2);
  put_digits(&out.text[8], day, 2);
  put_digits(&out.text[11], of_day / 3'600, 2);
  put_digits(&out.text[14], of_day / 60 % 60, 2);
  put_digits(&out.text[17], of_day % 60, 2);
}

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
  throw InvalidArgument(
      fmt::format("time {}: {}; allowed is RFC 3339, as in 2026-11-23T09:00:35.819597778+08:00", quote(text), why));
}

// Reads fixed-width digits and separators from the left.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  [[nodiscard]] bool at_end() const { return at_ == text_.size(); }
  [[nodiscard]] char peek() const { return at_end() ? '\0' : text_[at_]; }

  std::int64_t digits(std::size_t count, std::string_view what) {
    std::int64_t value = 0;
    for (std::size_t i = 0; i < count; ++i, ++at_) {
      if (!is_digit(peek())) {
        refuse(text_, fmt::format("{} has {} digits", what, count));
      }
      value = value * 10 + (text_[at_] - '0');
    }
    return value;
  }

  std::int64_t ranged(std::size_t count, std::int64_t low, std::int64_t high, std::string_view what) {
    const std::int64_t value = digits(count, what);
    if (value < low || value > high) {
      refuse(text_, fmt::format("{} is from {} to {}", what, low, high));
    }
    return value;
  }

  void expect(char lower, char upper, std::string_view what) {
    if (at_end() || (text_[at_] != lower && text_[at_] != upper)) {
      refuse(text_, fmt::format("{} is missing", what));
    }
    ++at_;
  }

  bool take(char c) {
    if (at_end() || text_[at_] != c) {
      return false;
    }
    ++at_;
    return true;
  }

  std::int64_t fraction_ns() {
    std::int64_t value = 0;
    std::size_t count = 0;
    for (; is_digit(peek()); ++at_, ++count) {
      if (count == 9) {
        refuse(text_, "more than nine digits of a second");
      }
      value = value * 10 + (text_[at_] - '0');
    }
    if (count == 0) {
      refuse(text_, "a '.' without digits");
    }
    for (; count < 9; ++count) {
      value *= 10;
    }
    return value;
  }

 private:
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  std::string_view text_;
  std::size_t at_ = 0;
};

// Seconds east of UTC.
std::int64_t scan_offset(Scanner& scan, std::string_view text) {
  if (scan.take('Z') || scan.take('z')) {
    return 0;
  }
  const bool west = scan.peek() == '-';
  if (!scan.take('+') && !scan.take('-')) {
    refuse(text, "the offset (Z or +hh:mm) is missing");
  }
  const std::int64_t hours = scan.ranged(2, 0, 23, "the offset's hour");
  scan.expect(':', ':', "the offset's ':'");
  const std::int64_t minutes = scan.ranged(2, 0, 59, "the offset's minute");
  return (west ? -1 : 1) * (hours * 3'600 + minutes * 60);
}

}  // namespace

void append_time(std::int64_t ns, std::string& out) {
  std::int64_t second = ns / kNsPerSecond;
  std::int64_t fraction = ns % kNsPerSecond;
  if (fraction < 0) {
    --second;
    fraction += kNsPerSecond;
  }
  thread_local SecondText last;
  if (last.second != second) {
    write_second(second, last);
  }
  std::array<char, kToSecondLength + 11> buffer;
  std::memcpy(buffer.data(), last.text.data(), kToSecondLength);
  std::size_t size = kToSecondLength;
  if (fraction != 0) {
    buffer[size] = '.';
    put_digits(&buffer[size + 1], fraction, 9);
    size += 10;
    while (buffer[size - 1] == '0') {
      --size;
    }
  }
  buffer[size++] = 'Z';
  out.append(buffer.data(), size);
}

std::string format_time(std::int64_t ns) {
  std::string out;
  append_time(ns, out);
  return out;
}

std::int64_t parse_time(std::string_view text) {
  Scanner scan(text);
  const std::int64_t year = scan.digits(4, "the year");
  scan.expect('-', '-', "the '-' after the year");
  const std::int64_t month = scan.ranged(2, 1, 12, "the month");
  scan.expect('-', '-', "the '-' after the month");
  const std::int64_t day = scan.ranged(2, 1, days_in_month(year, month), "the day");
  scan.expect('t', 'T', "the 'T' between date and time");
  const std::int64_t hour = scan.ranged(2, 0, 23, "the hour");
  scan.expect(':', ':', "the ':' after the hour");
  const std::int64_t minute = scan.ranged(2, 0, 59, "the minute");
  scan.expect(':', ':', "the ':' after the minute");
  const std::int64_t second = scan.ranged(2, 0, 60, "the second");
  const std::int64_t fraction = scan.take('.') ? scan.fraction_ns() : 0;
  const std::int64_t offset = scan_offset(scan, text);
  if (!scan.at_end()) {
    refuse(text, "something follows the offset");
  }
  const std::int64_t seconds =
      days_from_civil(year, month, day) * kSecondsPerDay + hour * 3'600 + minute * 60 + second - offset;
  if (second == 60) {
    // Already the next second, so a leap second is one that has become the first of a month.
    const std::int64_t day_number = seconds >= 0 ? seconds / kSecondsPerDay : -((-seconds - 1) / kSecondsPerDay) - 1;
    if (seconds != day_number * kSecondsPerDay || civil_from_days(day_number).day != 1) {
      refuse(text, "second 60 is allowed only in the last minute of a month, UTC");
    }
  }
  std::int64_t ns = 0;
  // The first second of the range begins before it: there the fraction is added first.
  const std::int64_t carry = seconds < 0 ? 1 : 0;
  if (__builtin_mul_overflow(seconds + carry, kNsPerSecond, &ns) ||
      __builtin_add_overflow(ns, fraction - carry * kNsPerSecond, &ns)) {
    refuse(text, "before 1677-09-21T00:12:43.145224192Z or after 2262-04-11T23:47:16.854775807Z");
  }
  return ns;
}

}  // namespace cocoon::metering
