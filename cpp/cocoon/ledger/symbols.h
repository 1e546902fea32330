#pragma once
// Texts of which there are few, such as names of hypervisors, as small numbers. 0 is the empty text.

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

namespace cocoon::ledger {

class Symbols {
 public:
  using Id = std::uint32_t;

  Symbols() { id_of(""); }
  Symbols(const Symbols&) = delete;
  Symbols& operator=(const Symbols&) = delete;
  Symbols(Symbols&&) = default;
  Symbols& operator=(Symbols&&) = default;

  Id id_of(std::string_view text) {
    if (last_ < texts_.size() && texts_[last_] == text)
      return last_;  // one says the same as the one before, most often
    const auto found = ids_.find(text);
    if (found != ids_.end()) return last_ = found->second;
    last_ = static_cast<Id>(texts_.size());
    ids_.emplace(texts_.emplace_back(text), last_);
    return last_;
  }
  [[nodiscard]] std::string_view text_of(Id id) const { return texts_[id]; }
  [[nodiscard]] const std::deque<std::string>& texts() const { return texts_; }

 private:
  std::deque<std::string> texts_;
  std::unordered_map<std::string_view, Id> ids_;
  Id last_ = 0;
};

}  // namespace cocoon::ledger
