#pragma once
// A VM's labels beyond check_labels of record.h: how a relabel merges them, and which of them go into the ledger.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/lifecycle/record.h"

namespace cocoon::lifecycle {

using Labels = std::map<std::string, std::string>;

// The bounds that check_labels holds them to.
inline constexpr std::size_t kMaxLabels = 64;
inline constexpr std::size_t kMaxLabelKeyBytes = 63;
inline constexpr std::size_t kMaxLabelValueBytes = 256;

// `labels` with `changes` merged in; nullopt removes, and removing what is not there is fine.
// Errors   InvalidArgument: a label that is set, or their number afterwards, is out of bounds.
Labels merge_labels(const Labels& labels, const std::map<std::string, std::optional<std::string>>& changes);

// Those of `labels` that the node's allow list names. `allowed` null: none.
Labels metered_labels(const Labels& labels, const std::vector<std::string>* allowed);

}  // namespace cocoon::lifecycle
