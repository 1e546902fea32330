#pragma once
// The node's allow list of labels that go into the ledger: checked here, kept in `meta`, one per line.

#include <string>
#include <string_view>
#include <vector>

namespace cocoon::store {

// Sorted, without repeats. Errors InvalidArgument: too many, or one that is too long or not printable UTF-8.
[[nodiscard]] std::vector<std::string> checked_labels(std::vector<std::string> labels);

[[nodiscard]] std::string join_labels(const std::vector<std::string>& labels);
[[nodiscard]] std::vector<std::string> split_labels(std::string_view text);

}  // namespace cocoon::store
