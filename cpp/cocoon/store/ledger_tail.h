#pragma once
// What stands in a ledger after the entries that have left the outbox, compared with the outbox line by line.

#include <cstdint>
#include <optional>
#include <string>

#include "cocoon/metering/ledger_file.h"
#include "cocoon/store/connection.h"

namespace cocoon::store {

struct Given {
  std::uint64_t pruned = 0;  // rows up to here have left the outbox
  std::uint64_t last = 0;    // the last seq of the outbox
};

struct LedgerTail {
  std::uint64_t covered = 0;            // the ledger holds every row up to here
  std::optional<std::uint64_t> cut_at;  // what stands from this offset on is to be appended again
  std::string kept;                     // lines behind `cut_at` that are not ours to drop, to be appended first
};

// `distrust`: a sync of the ledger failed, so that pages of it may be lost although they still read well: all of it
// has to be written again.
// Requires the ledger's lock, and file.refresh().
[[nodiscard]] LedgerTail read_tail(metering::LedgerFile& file, Connection& connection, const Given& given,
                                   bool distrust);

// A whole entry that no row of the outbox can replace: it has no seq, or one that is not waiting there.
[[nodiscard]] bool is_somebody_elses(std::string_view line, const Given& given);

}  // namespace cocoon::store
