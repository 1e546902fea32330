#pragma once
// Snapshot records through the store: one event and its ledger entries, inside a transaction that is open already.

#include <optional>
#include <string_view>

#include "cocoon/lifecycle/record.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::snapshot {

lifecycle::SnapshotRecord record_from_row(const store::Row& row);

std::optional<lifecycle::SnapshotRecord> find_record(const store::MetaStore& store, std::string_view id);
std::optional<lifecycle::SnapshotRecord> find_in(store::Transaction& transaction, std::string_view id);

// The record as the event leaves it; nullopt: removed. Errors as lifecycle::apply; AlreadyExists: its name is taken.
std::optional<lifecycle::SnapshotRecord> apply_in(store::Transaction& transaction, std::string_view id,
                                                  const lifecycle::SnapshotEvent& event);

}  // namespace cocoon::snapshot
