#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/entries.h"
#include "cocoon/lifecycle/transition.h"

namespace cocoon::lifecycle {
namespace {

using metering::Kind;

struct EventName {
  std::string_view operator()(const ReserveSnapshot&) const { return "reserve snapshot"; }
  std::string_view operator()(const FinalizeSnapshot&) const { return "finalize snapshot"; }
  std::string_view operator()(const RemoveSnapshot&) const { return "remove snapshot"; }
};

const std::string& label(const SnapshotRecord& record) { return record.name.empty() ? record.id : record.name; }

metering::Entry entry(const SnapshotRecord& record, Kind kind) {
  metering::Entry entry;
  entry.kind = kind;
  entry.snapshot_id = record.id;
  entry.hypervisor = record.hypervisor;
  entry.shape.storage_bytes = record.size_bytes;
  return entry;
}

// The record as the event leaves it; nullopt: removed. Entries go to `entries`.
struct Step {
  std::optional<SnapshotRecord> record;
  const Context& context;
  Entries entries;

  void operator()(const ReserveSnapshot& event) {
    if (record) {
      throw AlreadyExists(fmt::format("reserve snapshot {}: there is such a snapshot ({})", label(*record), record->id),
                          record->name, record->id);
    }
    if (event.record.id.empty()) {
      throw InvalidArgument(fmt::format("reserve snapshot {}: its id is empty", event.record.name));
    }
    record = event.record;
    record->pending = true;
    record->storage_interval = 0;
    record->generation = 1;
    record->created_at_ns = context.now.wall_ns;
  }

  void operator()(const FinalizeSnapshot& event) {
    if (!record->pending) {
      throw InvalidState(fmt::format("finalize snapshot {}: it is ready, allowed: pending", label(*record)), "ready");
    }
    if (event.size_bytes < 0) {
      throw InvalidArgument(
          fmt::format("finalize snapshot {}: size {}: it cannot be negative", label(*record), event.size_bytes));
    }
    record->pending = false;
    record->size_bytes = event.size_bytes;
    record->storage_interval = entries.start(entry(*record, Kind::kSnapStorageStart));
    ++record->generation;
  }

  // A pending one never opened an interval, and closes none.
  void operator()(const RemoveSnapshot&) {
    if (!record->pending) {
      metering::Entry stop = entry(*record, Kind::kSnapStorageStop);
      stop.reason = metering::Reason::kSnapshotRemove;
      entries.stop(std::move(stop), record->storage_interval);
    }
    record.reset();
  }
};

}  // namespace

std::string_view name_of(const SnapshotEvent& event) { return std::visit(EventName{}, event); }

Outcome<SnapshotRecord> apply(const std::optional<SnapshotRecord>& record, const SnapshotEvent& event,
                              const Context& context) {
  if (!record && !std::holds_alternative<ReserveSnapshot>(event)) {
    throw NotFound(fmt::format("{}: there is no such snapshot (any more)", name_of(event)), "");
  }
  Step step{record, context, Entries(context)};
  std::visit(step, event);
  return {std::move(step.record), step.entries.take()};
}

}  // namespace cocoon::lifecycle
