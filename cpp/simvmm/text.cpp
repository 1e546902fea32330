#include "simvmm/text.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <fmt/format.h>

namespace cocoon::simvmm {
namespace {

constexpr std::string_view kBlank = " \t\r\n\f\v";

struct Sequence {
  std::size_t length;  // of what belongs together, good or bad
  bool valid;
  bool cut;  // bad only because the text ends
};

Sequence sequence_at(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4) return {1, false, false};
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {i, false, true};
    std::uint8_t low = 0x80;
    std::uint8_t high = 0xbf;
    if (i == 1) {  // overlong forms, surrogates, beyond U+10FFFF
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (byte(i) < low || byte(i) > high) return {i, false, false};
  }
  return {length, true, false};
}

}  // namespace

std::optional<Utf8Error> first_bad_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Sequence sequence = sequence_at(text.substr(at));
    if (sequence.cut) return Utf8Error{fmt::format("incomplete utf-8 byte sequence from index {}", at)};
    if (!sequence.valid) {
      return Utf8Error{fmt::format("invalid utf-8 sequence of {} bytes from index {}", sequence.length, at)};
    }
    at += sequence.length;
  }
  return std::nullopt;
}

std::string_view trim(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

std::string os_error(int code) { return fmt::format("{} (os error {})", std::strerror(code), code); }

}  // namespace cocoon::simvmm
