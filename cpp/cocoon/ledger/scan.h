#pragma once
// A pass over ledger files: blocks are read one after the other, parsed by as many threads as there are processors, and
// handed out in their order. Memory: a few blocks, whatever the files' size.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/source.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/entry_view.h"

namespace cocoon::ledger {

// Asked between blocks, by the thread that began the pass; what it throws ends the pass. May be empty.
using Check = std::function<void()>;

// One block and what is in it.
struct Batch {
  struct Item {
    metering::EntryView entry;
    std::uint64_t hash = 0;  // hash_of(entry.id)
    std::uint32_t line = 0;  // in the batch, from 0
    std::uint32_t offset = 0;
  };
  struct Bad {
    std::size_t before = 0;  // the index in `items` of the entry that follows it
    std::uint32_t line = 0;
    std::uint32_t offset = 0;
    std::uint32_t size = 0;
    std::optional<metering::BadEntry> error;  // none: the line is torn or overlong, and was not looked at
  };

  Block block;
  std::vector<Item> items;
  std::vector<Bad> bad;
  std::uint64_t lines = 0;
  std::uint64_t first_line = 1;  // in its file

 private:
  friend void parse(Batch& batch);
  struct Kept {
    metering::Entry entry;
    std::string labels;
  };
  std::deque<Kept> kept_;  // what views of other layouts point into
};

// Fills in items, bad and lines from the block.
void parse(Batch& batch);

// `skip`: begins behind this byte of the first file, where a line begins.
// Errors   LedgerError: a file cannot be read; what `check` or `take` throws.
void scan(const std::shared_ptr<const Files>& files, const std::function<void(const Batch& batch)>& take,
          const Check& check = {}, std::uint64_t skip = 0);

}  // namespace cocoon::ledger
