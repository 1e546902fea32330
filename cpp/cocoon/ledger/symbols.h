#pragma once
// Texts of which there are few, such as names of hypervisors, as small numbers. 0 is the empty text.

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

#include "cocoon/ledger/same_text.h"

namespace cocoon::ledger {

class Symbols {
 public:
  using Id = std::uint32_t;

  Symbols() { id_of(""); }
  Symbols(const Symbols&) = delete;
  Symbols& operator=(const Symbols&) = delete;
  Symbols(Symbols&&) noexcept = default;
  Symbols& operator=(Symbols&&) noexcept = default;

  Id id_of(std::string_view text) {
    // A few of them are said again and again: those are found without a hash of the whole text.
    Id& near = near_[text.empty() ? 0 : place_of(text)];
    if (near < texts_.size() && same_text(texts_[near], text)) return near;
    const auto found = ids_.find(text);
    if (found != ids_.end()) return near = found->second;
    near = static_cast<Id>(texts_.size());
    ids_.emplace(texts_.emplace_back(text), near);
    return near;
  }
  [[nodiscard]] std::string_view text_of(Id id) const { return texts_[id]; }
  [[nodiscard]] const std::deque<std::string>& texts() const { return texts_; }

 private:
  static std::size_t place_of(std::string_view text) {
    const auto of = [](char c) { return static_cast<std::size_t>(static_cast<unsigned char>(c)); };
    return (text.size() * 5 + of(text.front()) * 3 + of(text.back())) % kNear;
  }

  static constexpr std::size_t kNear = 64;
  std::array<Id, kNear> near_{};
  std::deque<std::string> texts_;
  std::unordered_map<std::string_view, Id> ids_;
};

}  // namespace cocoon::ledger
