// The table of docs/lifecycle.md, cell by cell: state × event × compute open or closed × booted before or not.
#include <array>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/lifecycle/transition.h"

#include "lifecycle_test_support.h"

namespace cocoon::lifecycle {
namespace {

constexpr std::array kStates = {VmState::kCreating, VmState::kCreated,    VmState::kRunning,
                                VmState::kStopped,  VmState::kHibernated, VmState::kError};

VmConfig config(std::int64_t cpu) {
  VmConfig config;
  config.name = "web-1";
  config.cpu = cpu;
  config.mem_bytes = 1 << 20;
  config.labels = {{"tenant", "a"}, {"note", "x"}};
  return config;
}

VmRecord vm(VmState state, bool open, bool booted) {
  VmRecord record;
  record.id = "abcdefghijklmnopqrstuvwxyz";
  record.hypervisor = "qemu";
  record.state = state;
  record.config = config(1);
  record.shape = shape_of(record.config);
  record.generation = 7;
  record.first_booted = booted;
  if (state != VmState::kCreating) record.storage_interval = 3;
  if (booted || open) record.started = instant(100);
  if (open) {
    record.compute_interval = 4;
    record.last_alive = instant(150);
    record.process = ProcessIdentity{10, 11, "boot0001"};
  } else if (booted) {
    record.stopped_at_ns = instant(200).wall_ns;
  }
  if (state == VmState::kHibernated) record.kept_snapshot_id = "kept";
  return record;
}

struct NamedEvent {
  std::string name;
  VmEvent event;
};

std::vector<NamedEvent> events() {
  const ProcessIdentity process{20, 21, "boot0001"};
  VmRecord wanted;
  wanted.id = "b";
  return {
      {"reserve", Reserve{wanted}},
      {"finalize create", FinalizeCreate{config(2)}},
      {"rollback create", RollbackCreate{}},
      {"mark started", MarkStarted{process}},
      {"mark stopped", MarkStopped{}},
      {"mark error", MarkError{}},
      {"relabel metered", Relabel{{{"tenant", "b"}}}},
      {"relabel other", Relabel{{{"note", std::nullopt}, {"more", "y"}}}},
      {"found dead", FoundDead{}},
      {"found alive", FoundAlive{process}},
      {"remove", Remove{}},
      {"remove, stopped by the caller", Remove{true, std::nullopt}},
      {"finalize clone", FinalizeClone{config(2), "snap", process}},
      {"restore killed", RestoreKilled{"snap"}},
      {"restore done", RestoreDone{config(2), "snap", process}},
      {"restore failed", RestoreFailed{true}},
      {"hibernate", Hibernate{"kept-2"}},
      {"wake", Wake{process}},
      {"snapshot taken", SnapshotTaken{"snap", {}}},
  };
}

// What happens to the process the record knows.
enum class Process { kKept, kCleared, kSet };

struct Row {
  const char* event;
  const char* states;   // "*": all; "finalized": all but creating
  char open;            // 'o' open, 'c' closed, '*' both
  char booted;          // 'b' booted before, 'n' never, '*' both
  const char* result;   // the state after, "same", "removed", or the error
  const char* entries;  // "; " between them
  Process process = Process::kKept;
};

// Cells that no sequence of events reaches are here too: a `creating` record with an open interval is broken, and only
// removing it is possible, which closes what is open. Any other state closes and opens as the interval asks.
constexpr Row kTable[] = {
    {"reserve", "*", '*', '*', "AlreadyExists", ""},

    {"finalize create", "creating", 'c', '*', "created", "vm.storage.start boot"},
    {"finalize create", "creating", 'o', '*', "Error", ""},
    {"finalize create", "finalized", '*', '*', "InvalidState", ""},

    {"rollback create", "creating", 'c', '*', "removed", ""},
    {"rollback create", "creating", 'o', '*', "Error", ""},
    {"rollback create", "finalized", '*', '*', "InvalidState", ""},

    {"finalize clone", "creating", 'c', '*', "running", "vm.storage.start clone; vm.compute.start clone",
     Process::kSet},
    {"finalize clone", "creating", 'o', '*', "Error", ""},
    {"finalize clone", "finalized", '*', '*', "InvalidState", ""},

    {"mark started", "creating", '*', '*', "InvalidState", ""},
    {"mark started", "finalized", 'c', 'n', "running", "vm.compute.start boot", Process::kSet},
    {"mark started", "finalized", 'c', 'b', "running", "vm.compute.start restart", Process::kSet},
    {"mark started", "finalized", 'o', 'n', "running", "vm.compute.stop stop-crash; vm.compute.start boot",
     Process::kSet},
    {"mark started", "finalized", 'o', 'b', "running", "vm.compute.stop stop-crash; vm.compute.start restart",
     Process::kSet},

    {"mark stopped", "creating", '*', '*', "InvalidState", ""},
    {"mark stopped", "created running stopped error", 'c', '*', "stopped", "", Process::kCleared},
    // Its precondition is a process that was alive. A hibernated VM with nothing open has none: it is stopped already,
    // and this is a repetition, which changes nothing. As `stopped` it could not be woken any more, while the snapshot
    // that keeps its memory would be billed for ever.
    {"mark stopped", "hibernated", 'c', '*', "hibernated", "", Process::kCleared},
    // With an open interval it did run since, so the kept memory is older than its disks: stopped.
    {"mark stopped", "finalized", 'o', '*', "stopped", "vm.compute.stop stop-user", Process::kCleared},

    {"mark error", "creating", '*', '*', "InvalidState", ""},
    {"mark error", "finalized", '*', '*', "error", ""},

    {"relabel metered", "creating", '*', '*', "InvalidState", ""},
    {"relabel metered", "finalized", 'c', '*', "same", "vm.storage.stop relabel; vm.storage.start relabel"},
    {"relabel metered", "finalized", 'o', '*', "same",
     "vm.compute.stop relabel; vm.storage.stop relabel; vm.storage.start relabel; vm.compute.start relabel"},
    {"relabel other", "creating", '*', '*', "InvalidState", ""},
    {"relabel other", "finalized", '*', '*', "same", ""},

    {"found dead", "creating", '*', '*', "InvalidState", ""},
    {"found dead", "finalized", 'c', '*', "InvalidState", ""},
    {"found dead", "running", 'o', '*', "stopped", "vm.compute.stop stop-crash", Process::kCleared},
    {"found dead", "created stopped hibernated error", 'o', '*', "same", "vm.compute.stop stop-crash",
     Process::kCleared},

    {"found alive", "creating", '*', '*', "InvalidState", ""},
    {"found alive", "finalized", 'o', '*', "running", "", Process::kSet},
    {"found alive", "finalized", 'c', 'n', "running", "vm.compute.start boot", Process::kSet},
    {"found alive", "finalized", 'c', 'b', "running", "vm.compute.start restart", Process::kSet},

    {"remove", "creating", 'c', '*', "removed", ""},
    {"remove", "creating", 'o', '*', "removed", "vm.compute.stop stop-crash"},
    {"remove", "finalized", 'c', '*', "removed", "vm.storage.stop vm-rm"},
    {"remove", "finalized", 'o', '*', "removed", "vm.compute.stop stop-crash; vm.storage.stop vm-rm"},
    {"remove, stopped by the caller", "creating", 'c', '*', "removed", ""},
    {"remove, stopped by the caller", "creating", 'o', '*', "removed", "vm.compute.stop stop-user"},
    {"remove, stopped by the caller", "finalized", 'c', '*', "removed", "vm.storage.stop vm-rm"},
    {"remove, stopped by the caller", "finalized", 'o', '*', "removed",
     "vm.compute.stop stop-user; vm.storage.stop vm-rm"},

    {"restore killed", "creating", '*', '*', "InvalidState", ""},
    {"restore killed", "finalized", 'c', '*', "stopped", "", Process::kCleared},
    {"restore killed", "finalized", 'o', '*', "stopped", "vm.compute.stop restore", Process::kCleared},

    {"restore done", "creating", '*', '*', "InvalidState", ""},
    {"restore done", "finalized", 'o', '*', "InvalidState", ""},
    {"restore done", "finalized", 'c', '*', "running",
     "vm.storage.stop restore; vm.storage.start restore; vm.compute.start restore", Process::kSet},

    {"restore failed", "creating", '*', '*', "InvalidState", ""},
    {"restore failed", "finalized", '*', '*', "error", ""},

    {"hibernate", "running", 'o', '*', "hibernated", "vm.compute.stop stop-user", Process::kCleared},
    {"hibernate", "running", 'c', '*', "InvalidState", ""},
    {"hibernate", "creating created stopped hibernated error", '*', '*', "InvalidState", ""},

    {"wake", "hibernated", 'c', '*', "running", "vm.compute.start hibernate-wake", Process::kSet},
    {"wake", "hibernated", 'o', '*', "InvalidState", ""},
    {"wake", "creating created running stopped error", '*', '*', "InvalidState", ""},

    {"snapshot taken", "creating", '*', '*', "InvalidState", ""},
    {"snapshot taken", "finalized", '*', '*', "same", ""},
};

bool lists(const std::string& states, VmState state) {
  if (states == "*") return true;
  if (states == "finalized") return state != VmState::kCreating;
  std::istringstream words(states);
  for (std::string word; words >> word;) {
    if (parse_state(word) == state) return true;
  }
  return false;
}

bool covers(const Row& row, const std::string& event, VmState state, bool open, bool booted) {
  return event == row.event && lists(row.states, state) && (row.open == '*' || (row.open == 'o') == open) &&
         (row.booted == '*' || (row.booted == 'b') == booted);
}

Context context_at(std::int64_t uptime_ns) {
  static const std::vector<std::string> kMetered = {"tenant"};
  return {instant(uptime_ns), 1000, &kMetered};
}

void expect_cell(const Row& row, const NamedEvent& named, VmState state, bool open, bool booted) {
  const VmRecord before = vm(state, open, booted);
  const std::optional<VmRecord> record = before;
  const Context context = context_at(300);
  const std::string result = row.result;
  Outcome<VmRecord> outcome;
  const std::string error = error_of([&] { outcome = apply(record, named.event, context); });
  EXPECT_EQ(record, before);
  if (result == "AlreadyExists" || result == "InvalidState" || result == "Error") {
    EXPECT_TRUE(error.starts_with(result)) << error;
    if (result == "InvalidState") {
      const std::string said(to_string(state));
      EXPECT_TRUE(contains(
          error, fmt::format("InvalidState[{}]: {} web-1: it is {}, allowed: ", said, name_of(named.event), said)));
    }
    return;
  }
  ASSERT_EQ(error, "");
  const auto said = summaries(outcome.entries);
  EXPECT_EQ(fmt::format("{}", fmt::join(said, "; ")), row.entries);
  for (std::size_t i = 0; i < outcome.entries.size(); ++i) {
    const metering::Entry& entry = outcome.entries[i];
    EXPECT_EQ(entry.seq, 1000 + i);
    EXPECT_EQ(entry.emitted_at_ns, context.now.wall_ns);
    EXPECT_EQ(entry.uptime_ns, context.now.uptime_ns);
    EXPECT_EQ(entry.boot_id, context.now.boot_id);
    EXPECT_EQ(entry.vm_id, before.id);
    EXPECT_EQ(entry.hypervisor, "qemu");
    EXPECT_NO_THROW(metering::to_json(entry));
  }
  if (result == "removed") {
    EXPECT_FALSE(outcome.record);
    return;
  }
  ASSERT_TRUE(outcome.record);
  const VmRecord& after = *outcome.record;
  EXPECT_EQ(to_string(after.state), result == "same" ? to_string(state) : result);
  EXPECT_EQ(after.generation, before.generation + 1);
  EXPECT_EQ(after.updated_at_ns, context.now.wall_ns);
  EXPECT_EQ(after.created_at_ns, before.created_at_ns);
  EXPECT_EQ(after.id, before.id);

  // Open and closed follow from what was said, and from nothing else.
  bool compute = open;
  bool storage = before.storage_open();
  for (const auto& entry : outcome.entries) {
    const bool is_compute =
        entry.kind == metering::Kind::kVmComputeStart || entry.kind == metering::Kind::kVmComputeStop;
    (is_compute ? compute : storage) = metering::is_start(entry.kind);
  }
  EXPECT_EQ(after.compute_open(), compute);
  EXPECT_EQ(after.storage_open(), storage);
  EXPECT_EQ(after.compute_interval != 0, compute);
  EXPECT_EQ(after.first_booted, booted || result == "running");
  switch (row.process) {
    case Process::kKept:
      EXPECT_EQ(after.process, before.process);
      break;
    case Process::kCleared:
      EXPECT_FALSE(after.process);
      break;
    case Process::kSet:
      EXPECT_EQ(after.process, (ProcessIdentity{20, 21, "boot0001"}));
      break;
  }
  if (said.empty()) {
    EXPECT_EQ(after.started, before.started);
    EXPECT_EQ(after.stopped_at_ns, before.stopped_at_ns) << "the first stop stays";
  }
}

TEST(LifecycleTransitionTest, EveryCellOfTheTableForVms) {
  std::set<std::size_t> alternatives;
  int cells = 0;
  for (const NamedEvent& named : events()) {
    alternatives.insert(named.event.index());
    for (const VmState state : kStates) {
      for (const bool open : {false, true}) {
        for (const bool booted : {false, true}) {
          SCOPED_TRACE(fmt::format("{} on {}, {}, {}", named.name, to_string(state), open ? "open" : "closed",
                                   booted ? "booted before" : "never booted"));
          const Row* found = nullptr;
          for (const Row& row : kTable) {
            if (!covers(row, named.name, state, open, booted)) continue;
            EXPECT_EQ(found, nullptr) << "two rows speak of this cell";
            found = &row;
          }
          ASSERT_NE(found, nullptr) << "no row speaks of this cell";
          expect_cell(*found, named, state, open, booted);
          ++cells;
        }
      }
    }
  }
  EXPECT_EQ(alternatives.size(), std::variant_size_v<VmEvent>) << "an event is missing";
  EXPECT_EQ(cells, 19 * 6 * 2 * 2);
  std::set<std::string> names;
  for (const NamedEvent& named : events()) names.insert(named.name);
  for (const Row& row : kTable) EXPECT_EQ(names.count(row.event), 1U) << row.event;
}

TEST(LifecycleTransitionTest, WithoutARecordOnlyReserveIsPossible) {
  for (const NamedEvent& named : events()) {
    if (std::holds_alternative<Reserve>(named.event)) continue;
    EXPECT_TRUE(contains(error_of([&] { apply(std::optional<VmRecord>(), named.event, context_at(1)); }),
                         fmt::format("NotFound: {}: there is no such VM", name_of(named.event))));
  }
}

TEST(LifecycleTransitionTest, ReserveMakesAnEmptyPlaceholder) {
  VmRecord wanted = vm(VmState::kRunning, true, true);
  wanted.run_dir = "/run/a";
  wanted.log_dir = "/log/a";
  const auto outcome = apply(std::optional<VmRecord>(), Reserve{wanted}, context_at(5));
  VmRecord expected;
  expected.id = wanted.id;
  expected.hypervisor = "qemu";
  expected.config = wanted.config;
  expected.run_dir = "/run/a";
  expected.log_dir = "/log/a";
  expected.generation = 1;
  expected.created_at_ns = instant(5).wall_ns;
  expected.updated_at_ns = instant(5).wall_ns;
  EXPECT_EQ(outcome.record, expected);
  EXPECT_TRUE(outcome.entries.empty());
}

TEST(LifecycleTransitionTest, ReserveRefusesWhatCouldNotBeBilled) {
  const auto reserve = [](VmRecord wanted) {
    return error_of([&] { apply(std::optional<VmRecord>(), Reserve{wanted}, context_at(1)); });
  };
  VmRecord wanted = vm(VmState::kCreating, false, false);
  EXPECT_EQ(reserve(wanted), "");
  wanted.config.storage_bytes = -1;
  EXPECT_TRUE(contains(reserve(wanted), "InvalidArgument: storage of -1 bytes"));
  wanted = vm(VmState::kCreating, false, false);
  wanted.config.labels["a\n"] = "";
  EXPECT_TRUE(contains(reserve(wanted), "InvalidArgument: label key \"a\\x0a\""));
  wanted = vm(VmState::kCreating, false, false);
  wanted.id.clear();
  EXPECT_TRUE(contains(reserve(wanted), "InvalidArgument: reserve web-1: the VM's id is empty"));
}

TEST(LifecycleTransitionTest, MessagesNameTheIdWhereThereIsNoName) {
  VmRecord record = vm(VmState::kStopped, false, true);
  record.config.name.clear();
  EXPECT_EQ(error_of([&] { apply(std::optional(record), Wake{}, context_at(1)); }),
            "InvalidState[stopped]: wake abcdefghijklmnopqrstuvwxyz: it is stopped, allowed: hibernated with a closed "
            "compute interval");
}

enum class Stage { kNone, kPending, kReady };

TEST(LifecycleTransitionTest, EveryCellOfTheTableForSnapshots) {
  SnapshotRecord pending;
  pending.id = "snap";
  pending.name = "s";
  pending.hypervisor = "qemu";
  pending.generation = 1;
  SnapshotRecord ready = pending;
  ready.pending = false;
  ready.size_bytes = 50;
  ready.generation = 2;
  ready.storage_interval = 9;
  const std::map<Stage, std::optional<SnapshotRecord>> records = {
      {Stage::kNone, std::nullopt}, {Stage::kPending, pending}, {Stage::kReady, ready}};
  const std::vector<SnapshotEvent> all = {ReserveSnapshot{ready}, FinalizeSnapshot{70}, RemoveSnapshot{}};
  struct Cell {
    std::string result;  // "pending", "ready", "removed", or the beginning of the error
    std::vector<std::string> entries;
  };
  const std::map<std::pair<std::size_t, Stage>, Cell> table = {
      {{0, Stage::kNone}, {"pending", {}}},
      {{0, Stage::kPending}, {"AlreadyExists: reserve snapshot s: there is such a snapshot (snap)", {}}},
      {{0, Stage::kReady}, {"AlreadyExists: reserve snapshot s: there is such a snapshot (snap)", {}}},
      {{1, Stage::kNone}, {"NotFound: finalize snapshot: there is no such snapshot", {}}},
      {{1, Stage::kPending}, {"ready", {"snap.storage.start"}}},
      {{1, Stage::kReady}, {"InvalidState[ready]: finalize snapshot s: it is ready, allowed: pending", {}}},
      {{2, Stage::kNone}, {"NotFound: remove snapshot: there is no such snapshot", {}}},
      {{2, Stage::kPending}, {"removed", {}}},
      {{2, Stage::kReady}, {"removed", {"snap.storage.stop snap-rm"}}},
  };
  ASSERT_EQ(all.size(), std::variant_size_v<SnapshotEvent>);
  for (const SnapshotEvent& event : all) {
    for (const auto& [stage, record] : records) {
      SCOPED_TRACE(fmt::format("{} at stage {}", name_of(event), static_cast<int>(stage)));
      const auto cell = table.find({event.index(), stage});
      ASSERT_NE(cell, table.end());
      Outcome<SnapshotRecord> outcome;
      const std::string error = error_of([&] { outcome = apply(record, event, context_at(8)); });
      if (!error.empty()) {
        EXPECT_TRUE(error.starts_with(cell->second.result)) << error;
        continue;
      }
      EXPECT_EQ(summaries(outcome.entries), cell->second.entries);
      ASSERT_EQ(outcome.record.has_value(), cell->second.result != "removed");
      if (!outcome.record) continue;
      EXPECT_EQ(outcome.record->pending ? "pending" : "ready", cell->second.result);
      EXPECT_EQ(outcome.record->generation, stage == Stage::kNone ? 1 : record->generation + 1);
    }
  }
}

}  // namespace
}  // namespace cocoon::lifecycle
