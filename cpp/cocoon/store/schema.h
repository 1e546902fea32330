#pragma once
// The database's format: what marks it as ours, its version, and the way from each version to the next.

#include <string>

#include "cocoon/store/connection.h"

namespace cocoon::store {

// Makes the schema in an empty database, migrates an older one, and leaves the database in WAL mode. True if it changed
// something.
// Requires the store's lock.
// Errors   StoreError: the database is foreign, damaged, or newer than this engine.
bool prepare_schema(Connection& connection);

// The values of the `meta` table.
inline constexpr char kNodeId[] = "node_id";
inline constexpr char kLedgerId[] = "ledger_id";
inline constexpr char kMeteredLabels[] = "metered_labels";  // sorted, one per line
inline constexpr char kPrunedThrough[] = "pruned_through";  // rows up to this seq have left the outbox
inline constexpr char kGivenThrough[] = "given_through";    // a seq that was given, as far as the outbox does not tell

[[nodiscard]] std::string meta_value(Connection& connection, const std::string& key);
void set_meta_value(Connection& connection, const std::string& key, const std::string& value);

}  // namespace cocoon::store
