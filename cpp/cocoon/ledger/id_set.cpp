#include "cocoon/ledger/id_set.h"

#include <functional>
#include <utility>

namespace cocoon::ledger {
namespace {

std::uint64_t hash_of(std::string_view id) {
  const std::uint64_t hash = std::hash<std::string_view>{}(id);
  return hash == 0 ? 1 : hash;
}

}  // namespace

std::size_t IdSet::slot_of(std::uint64_t hash) const {
  std::size_t slot = hash & (slots_.size() - 1);
  while (slots_[slot] != 0 && slots_[slot] != hash) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void IdSet::insert(std::string_view id) {
  const std::uint64_t hash = hash_of(id);
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

bool IdSet::contains(std::string_view id) const { return slots_[slot_of(hash_of(id))] != 0; }

}  // namespace cocoon::ledger
