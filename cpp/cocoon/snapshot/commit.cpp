#include "cocoon/snapshot/commit.h"

#include <string>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::snapshot {
namespace {

using lifecycle::SnapshotRecord;

store::Row to_row(const SnapshotRecord& record) {
  return {.id = record.id,
          .hypervisor = record.hypervisor,
          .name = record.name,
          .state = record.pending ? "pending" : "ready",
          .generation = record.generation,
          .document = lifecycle::to_document(record)};
}

}  // namespace

SnapshotRecord record_from_row(const store::Row& row) { return lifecycle::snapshot_from_document(row.document); }

std::optional<SnapshotRecord> find_record(const store::MetaStore& store, std::string_view id) {
  const auto row = store.find(store::Table::kSnapshot, id);
  if (!row) return std::nullopt;
  return record_from_row(*row);
}

std::optional<SnapshotRecord> find_in(store::Transaction& transaction, std::string_view id) {
  const auto row = transaction.find(store::Table::kSnapshot, id);
  if (!row) return std::nullopt;
  return record_from_row(*row);
}

std::optional<SnapshotRecord> apply_in(store::Transaction& transaction, std::string_view id,
                                       const lifecycle::SnapshotEvent& event) {
  const auto record = find_in(transaction, id);
  if (!record && !std::holds_alternative<lifecycle::ReserveSnapshot>(event))
    throw NotFound(fmt::format("{}: snapshot {} was removed", lifecycle::name_of(event), id), std::string(id));
  const auto& moment = transaction.moment();
  const lifecycle::Context context{
      .now = {.wall_ns = moment.wall_ns, .uptime_ns = moment.uptime_ns, .boot_id = moment.boot_id},
      .next_seq = transaction.next_seq()};
  auto outcome = lifecycle::apply(record, event, context);
  if (outcome.record)
    transaction.put(store::Table::kSnapshot, to_row(*outcome.record));
  else
    transaction.erase(store::Table::kSnapshot, id);
  transaction.append(outcome.entries);
  return std::move(outcome.record);
}

}  // namespace cocoon::snapshot
