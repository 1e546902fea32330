#include "cocoon/store/metered_labels.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::store {
namespace {

constexpr std::size_t kMostLabels = 16;
constexpr std::size_t kLongestLabel = 63;

// The length of the UTF-8 character that `text` begins with if it is valid and no control character, else 0.
std::size_t printable_length(std::string_view text) {
  const auto at = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const auto first = at(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  std::uint32_t code = first & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((at(i) & 0xc0U) != 0x80U) return 0;
    code = code << 6U | (at(i) & 0x3fU);
  }
  if (code < 0xa0) return 0;                                                         // C1 controls
  if (length == 3 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) return 0;  // overlong, surrogates
  if (length == 4 && (code < 0x10000 || code > 0x10ffff)) return 0;
  return length;
}

bool is_printable(std::string_view text) {
  while (!text.empty()) {
    const auto length = printable_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace

std::vector<std::string> checked_labels(std::vector<std::string> labels) {
  for (const auto& label : labels) {
    if (label.empty() || label.size() > kLongestLabel)
      throw InvalidArgument(fmt::format("metered label \"{}\": it has {} bytes, 1 to {} are allowed",
                                        is_printable(label) ? label : "", label.size(), kLongestLabel));
    if (!is_printable(label))
      throw InvalidArgument(fmt::format("metered label of {} bytes: only printable UTF-8 is allowed", label.size()));
  }
  std::sort(labels.begin(), labels.end());
  labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
  if (labels.size() > kMostLabels)
    throw InvalidArgument(fmt::format("metered labels: {} keys, at most {} are allowed", labels.size(), kMostLabels));
  return labels;
}

std::string join_labels(const std::vector<std::string>& labels) {
  std::string text;
  for (const auto& label : labels) (text += label) += '\n';
  return text;
}

std::vector<std::string> split_labels(std::string_view text) {
  std::vector<std::string> labels;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    labels.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return labels;
}

}  // namespace cocoon::store
