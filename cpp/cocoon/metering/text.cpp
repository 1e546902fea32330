#include "cocoon/metering/text.h"

#include <cstddef>
#include <cstdint>
#include <iterator>

#include <fmt/format.h>

namespace cocoon::metering {
namespace {

constexpr std::size_t kShownBytes = 80;

// Length of the well-formed sequence that starts at `at`, 0 if there is none.
std::size_t sequence_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[at + i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) {
    return 1;
  }
  std::size_t length = 0;
  // The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and what is past U+10FFFF (F4).
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    low = lead == 0xE0 ? 0xA0 : low;
    high = lead == 0xED ? 0x9F : high;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    low = lead == 0xF0 ? 0x90 : low;
    high = lead == 0xF4 ? 0x8F : high;
  } else {
    return 0;
  }
  if (text.size() - at < length || byte(1) < low || byte(1) > high) {
    return 0;
  }
  for (std::size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) {
      return 0;
    }
  }
  return length;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = sequence_length(text, at);
    if (length == 0) {
      return false;
    }
    at += length;
  }
  return true;
}

std::string quote(std::string_view text) {
  std::string_view shown = text;
  if (shown.size() > kShownBytes) {
    std::size_t end = kShownBytes;
    while (end > kShownBytes - 4 && (static_cast<std::uint8_t>(shown[end]) & 0xC0) == 0x80) {
      --end;  // not in the middle of a character
    }
    shown = shown.substr(0, end);
  }
  const bool utf8 = is_utf8(shown);
  std::string out = "\"";
  for (const char c : shown) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !utf8)) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  out += '"';
  if (shown.size() < text.size()) {
    fmt::format_to(std::back_inserter(out), "… ({} bytes)", text.size());
  }
  return out;
}

}  // namespace cocoon::metering
