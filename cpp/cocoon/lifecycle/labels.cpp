#include "cocoon/lifecycle/labels.h"

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/text.h"

namespace cocoon::lifecycle {
namespace {

using metering::is_utf8;
using metering::quote;

// C0, DEL and C1: none has a place in a report or on a terminal. Requires valid UTF-8.
bool has_control_character(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x20 || byte == 0x7f) return true;
    if (byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) return true;
  }
  return false;
}

bool is_clean(std::string_view text) { return is_utf8(text) && !has_control_character(text); }

void check_label(const std::string& key, const std::string& value) {
  if (key.empty() || key.size() > kMaxLabelKeyBytes || !is_clean(key)) {
    throw InvalidArgument(fmt::format("label key {}: allowed are 1 to {} bytes of UTF-8 without control characters",
                                      quote(key), kMaxLabelKeyBytes));
  }
  if (value.size() > kMaxLabelValueBytes || !is_clean(value)) {
    throw InvalidArgument(
        fmt::format("label {}: value {}: allowed are up to {} bytes of UTF-8 without control characters", quote(key),
                    quote(value), kMaxLabelValueBytes));
  }
}

void check_count(const Labels& labels) {
  if (labels.size() > kMaxLabels) {
    throw InvalidArgument(fmt::format("{} labels: allowed are up to {}", labels.size(), kMaxLabels));
  }
}

}  // namespace

void check_labels(const Labels& labels) {
  check_count(labels);
  for (const auto& [key, value] : labels) check_label(key, value);
}

Labels merge_labels(const Labels& labels, const std::map<std::string, std::optional<std::string>>& changes) {
  Labels merged = labels;
  for (const auto& [key, value] : changes) {
    if (!value) {
      merged.erase(key);
      continue;
    }
    check_label(key, *value);
    merged[key] = *value;
  }
  // Taking labels away is always allowed, so that a record over the limit can be brought back under it.
  if (merged.size() > labels.size()) check_count(merged);
  return merged;
}

Labels metered_labels(const Labels& labels, const std::vector<std::string>* allowed) {
  Labels metered;
  if (allowed == nullptr) return metered;
  for (const std::string& key : *allowed) {
    if (const auto found = labels.find(key); found != labels.end()) metered.insert(*found);
  }
  return metered;
}

}  // namespace cocoon::lifecycle
