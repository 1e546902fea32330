#include "cocoon/ledger/id_set.h"

#include <utility>

namespace cocoon::ledger {
std::size_t IdSet::slot_of(std::uint64_t hash) const {
  std::size_t slot = hash & (slots_.size() - 1);
  while (slots_[slot] != 0 && slots_[slot] != hash) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void IdSet::insert(std::uint64_t hash) {
  hash = hash == 0 ? 1 : hash;
  std::uint64_t& slot = slots_[slot_of(hash)];
  if (slot == hash) {
    return;
  }
  slot = hash;
  if (++used_ * 4 <= slots_.size() * 3) {
    return;
  }
  const std::vector<std::uint64_t> old = std::exchange(slots_, std::vector<std::uint64_t>(slots_.size() * 2));
  for (const std::uint64_t value : old) {
    if (value != 0) {
      slots_[slot_of(value)] = value;
    }
  }
}

bool IdSet::contains(std::uint64_t hash) const { return slots_[slot_of(hash == 0 ? 1 : hash)] != 0; }

}  // namespace cocoon::ledger
