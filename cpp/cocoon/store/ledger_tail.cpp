#include "cocoon/store/ledger_tail.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/metering/entry.h"
#include "cocoon/store/outbox.h"

namespace cocoon::store {
namespace {

// Goes through the outbox beside the ledger.
class Rows {
 public:
  Rows(Connection& connection, std::uint64_t after) : connection_(connection), last_(after) {}

  // nullptr: there are no more.
  const OutboxRow* front() {
    if (at_ == rows_.size() && !end_) {
      rows_ = rows_after(connection_, last_);
      at_ = 0;
      end_ = rows_.empty();
      if (!end_) last_ = rows_.back().seq;
    }
    return end_ ? nullptr : &rows_[at_];
  }
  void pop() { ++at_; }

 private:
  Connection& connection_;
  std::uint64_t last_;
  std::vector<OutboxRow> rows_;
  std::size_t at_ = 0;
  bool end_ = false;
};

// Lost pages read as NUL bytes, and leave lines without beginning or end. Whatever looks like an object was written
// by somebody.
bool is_debris(std::string_view line) {
  if (line.size() < 2 || line.front() != '{' || line.back() != '}') return true;
  return std::any_of(line.begin(), line.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 && c != '\t'; });
}

}  // namespace

bool is_somebody_elses(std::string_view line, const Given& given) {
  try {
    const auto entry = metering::from_json(line);
    return !entry.seq || *entry.seq <= given.pruned || *entry.seq > given.last;
  } catch (const InvalidArgument&) {
    return false;
  }
}

LedgerTail read_tail(metering::LedgerFile& file, Connection& connection, const Given& given, bool distrust) {
  LedgerTail tail{.covered = given.pruned};
  Rows rows(connection, given.pruned);
  if (rows.front() == nullptr) return tail;

  std::optional<std::uint64_t> debris;  // the first since the last line that fits its row
  file.for_each_after(given.pruned, [&](std::string_view line, std::uint64_t offset) {
    const auto seq = metering::line_seq(line);
    if (seq == 0) {
      if (!debris && is_debris(line)) debris = offset;
      return true;
    }
    // A repeat, or a number this node never gave: the audit's business.
    if (seq <= tail.covered || seq > given.last) return true;
    const auto* row = rows.front();
    if (row != nullptr && row->seq == seq && row->line == line && !distrust) {
      tail.covered = seq;
      rows.pop();
      debris.reset();
      return true;
    }
    tail.cut_at = debris.value_or(offset);
    return false;
  });
  // Debris with all rows around it present harms nobody. Where rows are missing, it is what is left of them.
  if (!tail.cut_at && debris && rows.front() != nullptr) tail.cut_at = debris;
  if (!tail.cut_at) return tail;

  file.for_each_after(given.pruned, [&](std::string_view line, std::uint64_t offset) {
    if (offset >= *tail.cut_at && is_somebody_elses(line, given)) (tail.kept += line) += '\n';
    return true;
  });
  return tail;
}

}  // namespace cocoon::store
