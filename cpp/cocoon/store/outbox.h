#pragma once
// The outbox table: entries committed with their transitions, waiting for the recorder.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cocoon/store/connection.h"

namespace cocoon::store {

struct OutboxRow {
  std::uint64_t seq = 0;
  std::string line;  // without '\n'
};

// The last seq that a committed transaction gave, 0 before the first.
[[nodiscard]] std::uint64_t last_given(Connection& connection);

void insert_row(Connection& connection, const OutboxRow& row);

// Consumes seq numbers without an entry: metering is off.
void skip_through(Connection& connection, std::uint64_t seq);

// The rows after `seq`, in order; at most what makes one reasonable write. Empty: there are none.
[[nodiscard]] std::vector<OutboxRow> rows_after(Connection& connection, std::uint64_t seq);

[[nodiscard]] std::uint64_t count_after(Connection& connection, std::uint64_t seq);

[[nodiscard]] std::uint64_t pruned_through(Connection& connection);

// Deletes the rows up to `seq` and says so in `meta`, in one transaction.
// Requires the ledger's lock and the store's; what is deleted is with the recorder for good.
void prune_rows(Connection& connection, std::uint64_t seq);

}  // namespace cocoon::store
