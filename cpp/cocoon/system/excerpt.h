#pragma once
// What came from outside goes into messages cut, and without control characters.

#include <cstddef>
#include <string>
#include <string_view>

namespace cocoon::system {

inline std::string excerpt(std::string_view text) {
  constexpr std::size_t kMaxBytes = 200;
  std::string shown;
  for (const char c : text.substr(0, kMaxBytes)) shown += c >= ' ' && c < '\x7f' ? c : '?';
  return text.size() > kMaxBytes ? shown + "…" : shown;
}

}  // namespace cocoon::system
