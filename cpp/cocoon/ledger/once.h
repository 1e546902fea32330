#pragma once
// Each entry once. A line may be in a ledger twice: somebody put two copies together, or restored an old one. What it
// says happened once, and must open and bill nothing again, however late the copy comes.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/scan.h"
#include "cocoon/ledger/source.h"

namespace cocoon::ledger {

// By the rule of Sequence, of which this keeps only what is needed for the answer: a number at or below the highest
// seen is a repeat unless it was missing. Numbers are a node's, and its ledger's files are those of one stream_of(). An
// entry without a number is always new. Memory: the gaps, at most kMostGaps of a node. The lowest is forgotten first,
// and what comes out of it is a repeat.
class Once {
 public:
  static constexpr std::size_t kMostGaps = 65'536;

  // What is_new calls file 0, 1, …; what was seen of their ledgers stays seen.
  void set_files(const Files& files);

  bool is_new(const std::optional<std::uint64_t>& seq, std::size_t file) {
    if (!seq) return true;
    Node& node = *by_file_[file];
    if (*seq != node.last + 1) return fills_gap(node, *seq);
    ++node.last;
    return true;
  }

  // The repeats that were passed over, in one warning of the log.
  void say() const;

  // What was seen, as bytes, and back: for a checkpoint. Errors   LedgerError: not what save() made.
  void save(std::string& out) const;
  void load(std::string_view& in);

 private:
  struct Node {
    std::uint64_t last = 0;                       // the highest seen
    std::map<std::uint64_t, std::uint64_t> gaps;  // missing below it: from first to last
  };

  bool fills_gap(Node& node, std::uint64_t seq);

  std::map<std::string, Node> nodes_;  // by stream_of()
  std::vector<Node*> by_file_;
  std::uint64_t repeats_ = 0;
  std::uint64_t first_repeat_ = 0;
};

// Every entry of the files once, in order, as visit(batch, index of the item). Lines that are no entries are passed
// over, and counted in one warning of the log: the audit reports each.
// Errors   LedgerError: a file cannot be read; what `check` or `visit` throws.
template <typename Visit>
void for_each_once(const std::shared_ptr<const Files>& files, Once& once, const Visit& visit, const Check& check) {
  once.set_files(*files);
  PassedOver passed;
  const auto take = [&](const Batch& batch) {
    for (const Batch::Bad& bad : batch.bad) passed.add(bad_line(*files, batch, bad));
    for (std::size_t item = 0; item < batch.items.size(); ++item) {
      if (once.is_new(batch.items[item].entry.seq, batch.block.file)) visit(batch, item);
    }
  };
  scan(files, take, check);
  passed.say();
  once.say();
}

template <typename Visit>
void for_each_once(const Files& files, const Visit& visit, const Check& check) {
  Once once;
  for_each_once(std::make_shared<const Files>(files), once, visit, check);
}

}  // namespace cocoon::ledger
