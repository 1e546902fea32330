#pragma once
// Equality of short texts, inline: ids and names are compared several times per entry, and a call of memcmp would be
// most of the cost.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace cocoon::ledger {

inline bool same_text(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  const auto same_word = [&](std::size_t at) {
    std::uint64_t left = 0;
    std::uint64_t right = 0;
    std::memcpy(&left, a.data() + at, sizeof left);
    std::memcpy(&right, b.data() + at, sizeof right);
    return left == right;
  };
  constexpr std::size_t kWord = sizeof(std::uint64_t);
  if (a.size() >= kWord) {
    for (std::size_t at = 0; at + kWord < a.size(); at += kWord) {
      if (!same_word(at)) return false;
    }
    return same_word(a.size() - kWord);  // overlaps the one before
  }
  for (std::size_t at = 0; at < a.size(); ++at) {
    if (a[at] != b[at]) return false;
  }
  return true;
}

}  // namespace cocoon::ledger
