#pragma once
// A flat hash table by id, for what is open: entries come and go, the memory of those that went is used again, and
// what a value has allocated stays with its place.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cocoon/ledger/same_text.h"

namespace cocoon::ledger {

// Of an id; the same in every process and for ever. 64 bits, well mixed.
inline std::uint64_t hash_of(std::string_view id) {
  constexpr std::uint64_t kFirst = 0x9E37'79B9'7F4A'7C15U;
  constexpr std::uint64_t kSecond = 0xFF51'AFD7'ED55'8CCDU;
  const char* at = id.data();
  std::size_t size = id.size();
  std::uint64_t hash = size * kFirst;
  const auto mix = [&](std::uint64_t word) {
    hash = (hash ^ word) * kSecond;
    hash ^= hash >> 32;
  };
  for (; size >= 8; at += 8, size -= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, 8);
    mix(word);
  }
  std::uint64_t word = 0;
  if (size > 0) std::memcpy(&word, at, size);
  mix(word);
  mix(hash * kFirst);
  return hash;
}

template <typename Value>
class IdTable {
 public:
  struct Node {
    [[nodiscard]] std::string_view id() const {
      return size_ <= kInline ? std::string_view(text_.data(), size_) : std::string_view(long_text_);
    }

    [[nodiscard]] std::uint8_t key_tag() const { return tag_; }

    Value value{};

   private:
    friend class IdTable;
    static constexpr std::size_t kInline = 31;
    std::uint64_t hash_ = 0;
    std::string long_text_;  // an id that does not fit in `text_`
    std::array<char, kInline> text_{};
    std::uint8_t tag_ = 0;
    std::size_t size_ = 0;
    bool used_ = false;
  };

  // `tag` is part of the key: the same id may be there once with each.
  Node* find(std::uint64_t hash, std::uint8_t tag, std::string_view id) {
    const std::uint32_t mark = mark_of(hash, tag);
    for (std::size_t at = home_of(mark);; at = next(at)) {
      const Slot slot = slots_[at];
      if (slot.node == 0) return nullptr;
      if (slot.mark != mark) continue;
      Node& node = nodes_[slot.node - 1];
      if (node.tag_ == tag && same_text(node.id(), id)) return &node;
    }
  }

  // What find() of it will touch is brought near: first the slot, later the node.
  void prefetch_slot(std::uint64_t hash, std::uint8_t tag) const {
    __builtin_prefetch(&slots_[home_of(mark_of(hash, tag))]);
  }
  void prefetch_node(std::uint64_t hash, std::uint8_t tag) const {
    const Slot slot = slots_[home_of(mark_of(hash, tag))];
    if (slot.node == 0) return;
    const char* const node = reinterpret_cast<const char*>(&nodes_[slot.node - 1]);
    for (std::size_t at = 0; at < sizeof(Node); at += 64) __builtin_prefetch(node + at);
  }

  // Requires that it is not there. References to other nodes stay valid.
  Node& insert(std::uint64_t hash, std::uint8_t tag, std::string_view id) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    std::uint32_t index = 0;
    if (free_.empty()) {
      index = static_cast<std::uint32_t>(nodes_.size());
      nodes_.emplace_back();
    } else {
      index = free_.back();
      free_.pop_back();
    }
    Node& node = nodes_[index];
    node.hash_ = hash;
    node.tag_ = tag;
    node.size_ = id.size();
    if (id.size() <= Node::kInline) {
      std::memcpy(node.text_.data(), id.data(), id.size());
    } else {
      node.long_text_ = id;
    }
    node.used_ = true;
    place({mark_of(hash, tag), index + 1});
    ++size_;
    return node;
  }

  void erase(Node& node) {
    std::size_t hole = home_of(mark_of(node.hash_, node.tag_));
    while (slots_[hole].node == 0 || &nodes_[slots_[hole].node - 1] != &node) hole = next(hole);
    free_.push_back(slots_[hole].node - 1);
    // Those behind it move up, as far as they may: then nobody has to look past holes.
    for (std::size_t at = next(hole); slots_[at].node != 0; at = next(at)) {
      const std::size_t home = home_of(slots_[at].mark);
      if (((at - home) & mask()) >= ((at - hole) & mask())) {
        slots_[hole] = slots_[at];
        hole = at;
      }
    }
    slots_[hole] = {};
    node.used_ = false;
    --size_;
  }

  [[nodiscard]] std::size_t size() const { return size_; }

  template <typename Visit>
  void for_each(Visit&& visit) {
    for (Node& node : nodes_) {
      if (node.used_) visit(node);
    }
  }

  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (const Node& node : nodes_) {
      if (node.used_) visit(node);
    }
  }

  void clear() { *this = IdTable(); }

 private:
  struct Slot {
    std::uint32_t mark = 0;  // of the key: says its home, and without a look at the node that another key is another
    std::uint32_t node = 0;  // its index + 1; 0: empty
  };

  static std::uint32_t mark_of(std::uint64_t hash, std::uint8_t tag) { return static_cast<std::uint32_t>(hash + tag); }
  [[nodiscard]] std::size_t mask() const { return slots_.size() - 1; }
  [[nodiscard]] std::size_t home_of(std::uint32_t mark) const { return mark & mask(); }
  [[nodiscard]] std::size_t next(std::size_t at) const { return (at + 1) & mask(); }

  void place(Slot slot) {
    std::size_t at = home_of(slot.mark);
    while (slots_[at].node != 0) at = next(at);
    slots_[at] = slot;
  }

  void grow() {
    const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2));
    for (const Slot slot : old) {
      if (slot.node != 0) place(slot);
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(64);  // a power of two, at most half of it used
  std::deque<Node> nodes_;
  std::vector<std::uint32_t> free_;
  std::size_t size_ = 0;
};

}  // namespace cocoon::ledger
