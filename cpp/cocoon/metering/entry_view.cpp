// The parser of our own layout. It goes through a line once, key by key in the order in which append_json writes them:
// texts 16 bytes at a time, digits 8 at a time. Anything that could be read in two ways (an escape, a byte past ASCII,
// a number with a leading zero or more than 18 digits, a leap second) is left to from_json.

#include "cocoon/metering/entry_view.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <nlohmann/json.hpp>

#include "cocoon/metering/civil.h"

namespace cocoon::metering {
namespace {

constexpr std::int64_t kNsPerSecond = 1'000'000'000;

std::uint64_t load8(const char* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return word;
}

template <std::size_t Size>
bool starts_with(const char* at, const char (&literal)[Size]) {
  constexpr std::size_t kLength = Size - 1;
  static_assert(kLength <= kReadBehind);
  if constexpr (kLength < 8) {
    return std::memcmp(at, literal, kLength) == 0;
  } else {
    // A word at a time, the last one overlapping: a call of memcmp costs more than the comparison.
    for (std::size_t done = 0; done + 8 < kLength; done += 8) {
      if (load8(at + done) != load8(literal + done)) return false;
    }
    return load8(at + kLength - 8) == load8(literal + kLength - 8);
  }
}

// How many of the word's bytes, from the first on, are digits.
[[gnu::always_inline]] inline unsigned leading_digits(std::uint64_t word) {
  // A digit's high nibble is 3, and adding 6 to its low nibble does not carry.
  const std::uint64_t wrong = ((word & 0xF0F0F0F0F0F0F0F0U) ^ 0x3030303030303030U) |
                              (((word + 0x0606060606060606U) & 0xF0F0F0F0F0F0F0F0U) ^ 0x3030303030303030U);
  return static_cast<unsigned>(std::countr_zero(wrong)) / 8;
}

// Eight digits, the first of them in the lowest byte.
std::uint32_t eight_digits(std::uint64_t word) {
  word -= 0x3030303030303030U;
  word = word * 10 + (word >> 8);
  constexpr std::uint64_t kPairs = 0x000000FF000000FFU;
  const std::uint64_t high = (word & kPairs) * (100 + (1'000'000ULL << 32));
  const std::uint64_t low = ((word >> 16) & kPairs) * (1 + (10'000ULL << 32));
  return static_cast<std::uint32_t>((high + low) >> 32);
}

constexpr std::array<std::uint32_t, 9> kPowers = {1,       10,        100,        1'000,      10'000,
                                                  100'000, 1'000'000, 10'000'000, 100'000'000};

// Up to eight digits, `count` of the word's bytes.
[[gnu::always_inline]] inline std::uint32_t some_digits(std::uint64_t word, unsigned count) {
  if (count == 0) return 0;
  // To the back, zeros before them.
  const unsigned shift = 64 - count * 8;
  const std::uint64_t fill = shift == 0 ? 0 : 0x3030303030303030U >> (count * 8);
  return eight_digits((shift == 0 ? word : word << shift) | fill);
}

// Inline, all of it: a line is some 15 short calls, and what they find stays in registers.
class Parser {
 public:
  Parser(const char* at, const char* end) : at_(at), end_(end) {}

  const char* run(EntryView& out);

 private:
  template <std::size_t Size>
  bool take(const char (&literal)[Size]) {
    if (!starts_with(at_, literal)) return false;
    at_ += Size - 1;
    return true;
  }

  [[gnu::always_inline]] bool text(std::string_view& out);
  [[gnu::always_inline]] bool number(std::int64_t& out);
  [[gnu::always_inline]] bool time(std::int64_t& out);
  bool kind(EntryView& out);
  bool reason(EntryView& out);
  bool shape(Shape& out);
  bool labels(std::string_view& out);
  bool label_text(std::string_view& out);
  template <typename Integer>
  [[gnu::always_inline]] bool maybe_number(std::optional<Integer>& out, std::int64_t least);
  bool maybe_time(std::optional<std::int64_t>& out);

  const char* at_;
  const char* end_;
};

// Up to the closing quote. Reads 16 bytes at a time, and so at most 16 behind the end: what lies there ends in '\n',
// which stops it.
inline bool Parser::text(std::string_view& out) {
  const char* const begin = at_;
#ifdef __SSE2__
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i backslash = _mm_set1_epi8('\\');
  const __m128i blank = _mm_set1_epi8(' ');
  for (const char* at = begin; at < end_; at += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    // Signed: bytes past ASCII are less than a blank too.
    const __m128i stops = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash)),
                                       _mm_cmplt_epi8(bytes, blank));
    const auto mask = static_cast<unsigned>(_mm_movemask_epi8(stops));
    if (mask != 0) {
      const char* const stop = at + std::countr_zero(mask);
      if (*stop != '"') return false;
      out = {begin, static_cast<std::size_t>(stop - begin)};
      at_ = stop + 1;
      return true;
    }
  }
  return false;
#else
  for (const char* at = begin; at < end_; ++at) {
    if (*at == '"') {
      out = {begin, static_cast<std::size_t>(at - begin)};
      at_ = at + 1;
      return true;
    }
    if (*at == '\\' || *at < ' ') return false;
  }
  return false;
#endif
}

inline bool Parser::number(std::int64_t& out) {
  const std::uint64_t word = load8(at_);
  unsigned count = leading_digits(word);
  if (count == 0 || (*at_ == '0' && count > 1)) return false;
  std::uint64_t value = some_digits(word, count);
  at_ += count;
  while (count == 8) {
    const std::uint64_t more = load8(at_);
    count = leading_digits(more);
    if (value > 99'999'999U && count > 2) return false;  // 16 digits so far
    value = value * kPowers[count] + some_digits(more, count);
    at_ += count;
  }
  // What follows decides whether it is an integer at all.
  if (*at_ != ',' && *at_ != '}') return false;
  out = static_cast<std::int64_t>(value);
  return true;
}

// "2026-11-23T09:00:35.819597778Z" or with "+08:00", and the closing quote.
inline bool Parser::time(std::int64_t& out) {
  const auto two = [this](std::size_t offset) {
    return static_cast<unsigned>(at_[offset] - '0') * 10 + static_cast<unsigned>(at_[offset + 1] - '0');
  };
  const std::uint64_t date = load8(at_);              // 2026-11-
  const std::uint64_t day_and_hour = load8(at_ + 8);  // 23T09:00
  constexpr std::uint64_t kDate = 0xFF0000FF00000000U;
  constexpr std::uint64_t kDateMarks = 0x2D00002D00000000U;
  constexpr std::uint64_t kClock = 0x0000FF0000FF0000U;
  constexpr std::uint64_t kClockMarks = 0x00003A0000540000U;
  if ((date & kDate) != kDateMarks || (day_and_hour & kClock) != kClockMarks || at_[16] != ':') return false;
  // The marks replaced by digits: then all of it must be digits.
  if (leading_digits((date & ~kDate) | (0x3030303030303030U & kDate)) != 8 ||
      leading_digits((day_and_hour & ~kClock) | (0x3030303030303030U & kClock)) != 8) {
    return false;
  }
  const std::uint64_t second_digits = load8(at_ + 17);
  if (leading_digits(second_digits) < 2) return false;
  const unsigned year = two(0) * 100 + two(2);
  const unsigned month = two(5);
  const unsigned day = two(8);
  const unsigned hour = two(11);
  const unsigned minute = two(14);
  const unsigned second = two(17);
  // Days 29 to 31 depend on the month, and 1677 and 2262 are not whole.
  if (year < 1678 || year > 2261 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59 ||
      (day > 28 && std::cmp_greater(day, days_in_month(year, month)))) {
    return false;
  }
  std::int64_t fraction = 0;
  const char* at = at_ + 19;
  if (*at == '.') {
    const std::uint64_t word = load8(++at);
    const unsigned count = leading_digits(word);
    if (count == 0) return false;
    fraction = std::int64_t{some_digits(word, count)} * kPowers[8 - count] * 10;
    at += count;
    if (count == 8 && *at >= '0' && *at <= '9') fraction += *at++ - '0';
  }
  std::int64_t offset = 0;
  if (*at == 'Z') {
    ++at;
  } else if (*at == '+' || *at == '-') {
    const bool west = *at == '-';
    const auto digit = [&](std::size_t i) { return static_cast<unsigned>(at[i] - '0'); };
    if (digit(1) > 9 || digit(2) > 9 || at[3] != ':' || digit(4) > 9 || digit(5) > 9) return false;
    const unsigned hours = digit(1) * 10 + digit(2);
    const unsigned minutes = digit(4) * 10 + digit(5);
    if (hours > 23 || minutes > 59) return false;
    offset = std::int64_t{hours} * 3'600 + std::int64_t{minutes} * 60;
    if (west) offset = -offset;
    at += 6;
  } else {
    return false;
  }
  if (*at != '"') return false;
  at_ = at + 1;
  const std::int64_t days = days_from_civil(year, month, day);
  out = (days * 86'400 + std::int64_t{hour} * 3'600 + std::int64_t{minute} * 60 + second - offset) * kNsPerSecond +
        fraction;
  return true;
}

bool Parser::kind(EntryView& out) {
  if (take("vm.")) {
    if (take("compute.")) {
      out.kind = Kind::kVmComputeStart;
    } else if (take("storage.")) {
      out.kind = Kind::kVmStorageStart;
    } else {
      return false;
    }
  } else if (take("snap.storage.")) {
    out.kind = Kind::kSnapStorageStart;
  } else {
    return false;
  }
  if (take("start\"")) return true;
  if (!take("stop\"")) return false;
  out.kind = static_cast<Kind>(static_cast<unsigned>(out.kind) + 1);
  return true;
}

bool Parser::reason(EntryView& out) {
  std::string_view text_of_it;
  if (!text(text_of_it)) return false;
  out.reason = find_reason(text_of_it);
  return out.reason.has_value();
}

bool Parser::shape(Shape& out) {
  if (!take(",\"shape\":{")) return false;
  bool any = false;
  const auto member = [&](const auto& key, std::int64_t& value) {
    const char* const before = at_;
    if ((any && !take(",")) || !take(key)) {
      at_ = before;
      return true;
    }
    any = true;
    return number(value);
  };
  return member("\"cpu\":", out.cpu) && member("\"mem_bytes\":", out.mem_bytes) &&
         member("\"storage_bytes\":", out.storage_bytes) && take("}");
}

// As append_json writes it: no escapes, and none of what it would escape.
bool Parser::label_text(std::string_view& out) {
  if (!take("\"")) return false;
  const char* const begin = at_;
  for (; at_ < end_; ++at_) {
    const char c = *at_;
    if (c == '"') {
      out = {begin, static_cast<std::size_t>(at_++ - begin)};
      return true;
    }
    if (c < ' ' || c == '\\' || c == '<' || c == '>' || c == '&') return false;
  }
  return false;
}

bool Parser::labels(std::string_view& out) {
  const char* const begin = at_;
  if (!take("{")) return false;
  std::string_view before;
  for (bool first = true;; first = false) {
    std::string_view key;
    std::string_view value;
    if (!label_text(key) || !take(":") || !label_text(value)) return false;
    if (!first && key <= before) return false;  // a doubled one is a fault, and the text has to be the sorted one
    before = key;
    if (take("}")) break;
    if (!take(",")) return false;
  }
  out = {begin, static_cast<std::size_t>(at_ - begin)};
  return true;
}

template <typename Integer>
inline bool Parser::maybe_number(std::optional<Integer>& out, std::int64_t least) {
  std::int64_t value = 0;
  if (!number(value) || value < least) return false;
  out = static_cast<Integer>(value);
  return true;
}

bool Parser::maybe_time(std::optional<std::int64_t>& out) {
  std::int64_t value = 0;
  if (!time(value)) return false;
  out = value;
  return true;
}

const char* Parser::run(EntryView& out) {
  // Whatever stands behind the end is no '\n', so a line that runs out is refused at the latest there.
  if (!take(R"({"kind":")") || !kind(out)) return nullptr;
  if (is_vm(out.kind) ? !take(R"(,"vm_id":")") : !take(R"(,"snapshot_id":")")) return nullptr;
  if (!text(out.id) || out.id.empty()) return nullptr;
  if (take(R"(,"source_snapshot_id":")") && !text(out.source_snapshot_id)) return nullptr;
  if (take(R"(,"reason":")") && !reason(out)) return nullptr;
  if (take(R"(,"hypervisor":")") && !text(out.hypervisor)) return nullptr;
  if (!shape(out.shape) || !take(R"(,"emitted_at":")") || !time(out.emitted_at_ns)) return nullptr;
  if (take(R"(,"seq":)") && !maybe_number(out.seq, 1)) return nullptr;
  if (take(R"(,"interval":)") && !maybe_number(out.interval, 1)) return nullptr;
  if (take(R"(,"labels":)") && !labels(out.labels)) return nullptr;
  if (take(R"(,"ended_at":")") && !maybe_time(out.ended_at_ns)) return nullptr;
  if (take(R"(,"ended_uptime_ns":)") && !maybe_number(out.ended_uptime_ns, 0)) return nullptr;
  if (take(R"(,"evidence":")") && !text(out.evidence)) return nullptr;
  if (take(R"(,"alive_until":")") && !maybe_time(out.alive_until_ns)) return nullptr;
  if (take(R"(,"boot_id":")") && !text(out.boot_id)) return nullptr;
  if (take(R"(,"uptime_ns":)") && !maybe_number(out.uptime_ns, 0)) return nullptr;
  if (!take("}\n") || at_ > end_) return nullptr;
  return at_;
}

}  // namespace

const char* parse_own_layout(const char* at, const char* end, EntryView& out) {
  if constexpr (std::endian::native != std::endian::little) return nullptr;
  return Parser(at, end).run(out);
}

EntryView view_of(const Entry& entry, std::string& labels) {
  labels.clear();
  append_labels(entry.labels, labels);
  EntryView view;
  view.kind = entry.kind;
  view.reason = entry.reason;
  view.id = is_vm(entry.kind) ? entry.vm_id : entry.snapshot_id;
  view.source_snapshot_id = entry.source_snapshot_id;
  view.hypervisor = entry.hypervisor;
  view.labels = labels;
  view.evidence = entry.evidence;
  view.boot_id = entry.boot_id;
  view.shape = entry.shape;
  view.emitted_at_ns = entry.emitted_at_ns;
  view.seq = entry.seq;
  view.interval = entry.interval;
  view.ended_at_ns = entry.ended_at_ns;
  view.ended_uptime_ns = entry.ended_uptime_ns;
  view.alive_until_ns = entry.alive_until_ns;
  view.uptime_ns = entry.uptime_ns;
  return view;
}

Entry to_entry(const EntryView& view) {
  Entry entry;
  entry.kind = view.kind;
  (is_vm(view.kind) ? entry.vm_id : entry.snapshot_id) = view.id;
  entry.source_snapshot_id = view.source_snapshot_id;
  entry.reason = view.reason;
  entry.hypervisor = view.hypervisor;
  entry.shape = view.shape;
  entry.emitted_at_ns = view.emitted_at_ns;
  entry.seq = view.seq;
  entry.interval = view.interval;
  if (!view.labels.empty()) entry.labels = parse_labels(view.labels);
  entry.ended_at_ns = view.ended_at_ns;
  entry.ended_uptime_ns = view.ended_uptime_ns;
  entry.evidence = view.evidence;
  entry.alive_until_ns = view.alive_until_ns;
  entry.boot_id = view.boot_id;
  entry.uptime_ns = view.uptime_ns;
  return entry;
}

std::map<std::string, std::string> parse_labels(std::string_view text) {
  return nlohmann::json::parse(text).get<std::map<std::string, std::string>>();
}

}  // namespace cocoon::metering
