#pragma once
// A set of ids that only grows, as 64-bit hashes (hash_of) in one flat table: 8 to 16 bytes per id where a set of
// strings takes a hundred. Of 25 million ids the chance that any two share a hash is 2e-5.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cocoon::ledger {

class IdSet {
 public:
  void insert(std::uint64_t hash);
  [[nodiscard]] bool contains(std::uint64_t hash) const;

 private:
  [[nodiscard]] std::size_t slot_of(std::uint64_t hash) const;

  std::vector<std::uint64_t> slots_ = std::vector<std::uint64_t>(64);  // 0: empty; a power of two
  std::size_t used_ = 0;
};

}  // namespace cocoon::ledger
