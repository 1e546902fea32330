#pragma once
// Every change of a VM or snapshot is one pure function: apply(record, event, context) -> record', entries.
// No I/O, no clock, no randomness. Nothing else in the code base decides what the ledger says.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/metering/entry.h"

namespace cocoon::lifecycle {

// When and where a VMM died, as somebody saw it.
struct Death {
  Instant at;
  std::string evidence;  // shim, watch, log
};

// Events of a VM. The preconditions and entries of each are the table in docs/lifecycle.md.
struct Reserve {    // a new placeholder; the record must not exist
  VmRecord record;  // id, hypervisor, config, run_dir, log_dir
};
struct FinalizeCreate {
  VmConfig config;  // as prepared: disks resolved, with sizes
};
struct RollbackCreate {};
struct MarkStarted {
  std::optional<ProcessIdentity> process;
};
struct MarkStopped {};
struct MarkError {};
struct Relabel {
  std::map<std::string, std::optional<std::string>> labels;  // merged; nullopt removes
};
struct FoundDead {
  std::optional<Death> death;
};
struct FoundAlive {
  ProcessIdentity process;
};
struct Remove {
  bool stopped_by_caller = false;  // this caller ended the VMM
  std::optional<Death> death;      // else what is known of its death
};
struct FinalizeClone {
  VmConfig config;
  std::string source_snapshot_id;
  std::optional<ProcessIdentity> process;
};
struct RestoreKilled {
  std::string source_snapshot_id;
  bool dirty = false;  // its files are about to be exchanged: until the restore has an end, start must refuse it
};
struct RestoreDone {
  VmConfig config;
  std::string source_snapshot_id;
  std::optional<ProcessIdentity> process;
};
struct RestoreFailed {
  bool dirty = false;  // the run dir holds a mixture: start must refuse it
};
struct Hibernate {
  std::string kept_snapshot_id;
};
struct Wake {
  std::optional<ProcessIdentity> process;
};
struct SnapshotTaken {
  std::string snapshot_id;
  std::vector<std::string> gone;  // earlier ones that have been removed since
};
using VmEvent = std::variant<Reserve, FinalizeCreate, RollbackCreate, MarkStarted, MarkStopped, MarkError, Relabel,
                             FoundDead, FoundAlive, Remove, FinalizeClone, RestoreKilled, RestoreDone, RestoreFailed,
                             Hibernate, Wake, SnapshotTaken>;

// Events of a snapshot.
struct ReserveSnapshot {
  SnapshotRecord record;
};
struct FinalizeSnapshot {  // create, import, and the one that hibernation keeps
  std::int64_t size_bytes = 0;
};
struct RemoveSnapshot {};  // rm, gc, or a pending one rolled back
using SnapshotEvent = std::variant<ReserveSnapshot, FinalizeSnapshot, RemoveSnapshot>;

// The name of an event for messages: "mark started", …
std::string_view name_of(const VmEvent& event);
std::string_view name_of(const SnapshotEvent& event);

struct Context {
  Instant now;                                               // taken inside the transaction
  std::uint64_t next_seq = 1;                                // of the first entry this transition adds
  const std::vector<std::string>* metered_labels = nullptr;  // the node's allow list, sorted; null: none
};

template <typename Record>
struct Outcome {
  std::optional<Record> record;          // absent: removed
  std::vector<metering::Entry> entries;  // complete, with consecutive seq from context.next_seq
};

// Errors   NotFound: there is no record (Reserve: AlreadyExists, there is one).
//          InvalidState: the record's state does not allow the event; nothing changes.
//          InvalidArgument: labels out of bounds.
Outcome<VmRecord> apply(const std::optional<VmRecord>& record, const VmEvent& event, const Context& context);
Outcome<SnapshotRecord> apply(const std::optional<SnapshotRecord>& record, const SnapshotEvent& event,
                              const Context& context);

}  // namespace cocoon::lifecycle
