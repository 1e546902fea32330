#pragma once
// Which sequence numbers of one node's ledger were read, and which are missing.

#include <cstdint>
#include <map>
#include <vector>

#include "cocoon/ledger/reader.h"

namespace cocoon::ledger {

class Sequence {
 public:
  enum class Verdict : std::uint8_t {
    kNext,    // as it should be; also after a gap, which gaps() tells
    kRepeat,  // it was there
    kLate,    // it was missing: it no longer is
  };
  struct Gap {
    std::uint64_t last = 0;  // missing, inclusive
    Position before;         // the line that made it known
  };

  Verdict see(std::uint64_t seq, const Position& at);

  [[nodiscard]] std::uint64_t last() const { return last_; }

  // A line that is no entry had this number. It counts as seen where it is the next one; a line whose number nobody can
  // read shows as a gap if it had one.
  void see_bad(std::uint64_t seq);

  // An entry without a number: the Go engine's. What it opened has no number either.
  void see_unnumbered() { unnumbered_ = true; }

  // Whether nothing that came before can have been missed.
  [[nodiscard]] bool complete() const { return gaps_.empty() && bad_.empty() && !unnumbered_; }

  // Whether a line between these numbers, both included, is missing or bad.
  [[nodiscard]] bool lost_within(std::uint64_t first, std::uint64_t last) const;

  // What is missing to the end, by the first missing number.
  [[nodiscard]] const std::map<std::uint64_t, Gap>& gaps() const { return gaps_; }

 private:
  std::uint64_t last_ = 0;  // the highest seen
  std::map<std::uint64_t, Gap> gaps_;
  std::vector<std::uint64_t> bad_;  // increasing
  bool unnumbered_ = false;
};

}  // namespace cocoon::ledger
