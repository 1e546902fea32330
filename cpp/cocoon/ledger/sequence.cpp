#include "cocoon/ledger/sequence.h"

#include <algorithm>
#include <iterator>

namespace cocoon::ledger {

Sequence::Verdict Sequence::see(std::uint64_t seq, const Position& at) {
  if (seq > last_) {
    if (seq > last_ + 1) {
      gaps_[last_ + 1] = {seq - 1, at};
    }
    last_ = seq;
    return Verdict::kNext;
  }
  auto gap = gaps_.upper_bound(seq);
  if (gap == gaps_.begin() || std::prev(gap)->second.last < seq) {
    return Verdict::kRepeat;
  }
  --gap;
  const std::uint64_t first = gap->first;
  const Gap old = gap->second;
  gaps_.erase(gap);
  if (first < seq) {
    gaps_[first] = {seq - 1, old.before};
  }
  if (seq < old.last) {
    gaps_[seq + 1] = old;
  }
  return Verdict::kLate;
}

void Sequence::see_bad(std::uint64_t seq) {
  if (seq == last_ + 1) {
    last_ = seq;
    bad_.push_back(seq);
  }
}

bool Sequence::lost_within(std::uint64_t first, std::uint64_t last) const {
  const auto bad = std::lower_bound(bad_.begin(), bad_.end(), first);
  if (bad != bad_.end() && *bad <= last) {
    return true;
  }
  const auto gap = gaps_.upper_bound(last);
  return gap != gaps_.begin() && std::prev(gap)->second.last >= first;
}

}  // namespace cocoon::ledger
