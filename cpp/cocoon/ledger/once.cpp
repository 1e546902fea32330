#include "cocoon/ledger/once.h"

#include <iterator>

#include "cocoon/ledger/bytes.h"
#include "cocoon/ledger/log.h"

namespace cocoon::ledger {

void Once::set_files(const Files& files) {
  by_file_.clear();
  by_file_.reserve(files.size());
  for (const auto& file : files) by_file_.push_back(&nodes_[stream_of(file)]);
}

bool Once::fills_gap(Node& node, std::uint64_t seq) {
  if (seq > node.last) {
    node.gaps.emplace_hint(node.gaps.end(), node.last + 1, seq - 1);
    if (node.gaps.size() > kMostGaps) node.gaps.erase(node.gaps.begin());
    node.last = seq;
    return true;
  }
  auto gap = node.gaps.upper_bound(seq);
  if (gap == node.gaps.begin() || std::prev(gap)->second < seq) {
    if (++repeats_ == 1) first_repeat_ = seq;
    return false;
  }
  --gap;
  const auto [first, last] = *gap;
  gap = node.gaps.erase(gap);
  if (seq < last) gap = node.gaps.emplace_hint(gap, seq + 1, last);
  if (first < seq) node.gaps.emplace_hint(gap, first, seq - 1);
  return true;
}

void Once::say() const {
  if (repeats_ > 0) {
    logger()->warn("passed over {} lines of the ledger that repeat a seq, the first: {}", repeats_, first_repeat_);
  }
}

void Once::save(std::string& out) const {
  put(out, static_cast<std::uint64_t>(nodes_.size()));
  for (const auto& [stream, node] : nodes_) {
    put(out, std::string_view(stream));
    put(out, node.last);
    put(out, static_cast<std::uint64_t>(node.gaps.size()));
    for (const auto& [first, last] : node.gaps) {
      put(out, first);
      put(out, last);
    }
  }
}

void Once::load(std::string_view& in) {
  for (auto count = take<std::uint64_t>(in); count > 0; --count) {
    Node& node = nodes_[std::string(take_text(in))];
    node.last = take<std::uint64_t>(in);
    for (auto gaps = take<std::uint64_t>(in); gaps > 0; --gaps) {
      const auto first = take<std::uint64_t>(in);
      node.gaps.emplace(first, take<std::uint64_t>(in));
    }
  }
}

}  // namespace cocoon::ledger
