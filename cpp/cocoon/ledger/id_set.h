#pragma once
// A set of ids that only grows, as 64-bit hashes in one flat table: 8 to 16 bytes per id where a set of strings takes a
// hundred. Of 25 million ids the chance that any two share a hash is 2e-5.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace cocoon::ledger {

class IdSet {
 public:
  void insert(std::string_view id);
  [[nodiscard]] bool contains(std::string_view id) const;

 private:
  [[nodiscard]] std::size_t slot_of(std::uint64_t hash) const;

  std::vector<std::uint64_t> slots_ = std::vector<std::uint64_t>(64);  // 0: empty; a power of two
  std::size_t used_ = 0;
};

}  // namespace cocoon::ledger
