// What exactly the entries of a transition say: intervals, shapes, labels, lineage, evidence; and the limits of labels.
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/lifecycle/labels.h"
#include "cocoon/lifecycle/transition.h"

#include "lifecycle_test_support.h"

namespace cocoon::lifecycle {
namespace {

using metering::Entry;
using metering::Kind;
using metering::Reason;

constexpr std::int64_t kGiB = 1LL << 30;

VmConfig config(std::int64_t cpu) {
  VmConfig config;
  config.name = "web-1";
  config.cpu = cpu;
  config.mem_bytes = cpu * kGiB;
  config.storage_bytes = 10 * cpu * kGiB;
  config.labels = {{"note", "private"}, {"team", "x"}, {"tenant", "a"}};
  return config;
}

// A VM and the clock it lives by: each event comes 100 ns after the one before unless said otherwise.
class LifecycleEntriesTest : public testing::Test {
 protected:
  std::vector<Entry> on(const VmEvent& event) {
    now = {now.wall_ns + 100, now.uptime_ns + 100, now.boot_id};
    auto outcome = apply(vm, event, {now, next_seq, &metered});
    vm = outcome.record;
    next_seq += outcome.entries.size();
    return outcome.entries;
  }

  void reserve(std::int64_t cpu = 2) {
    VmRecord wanted;
    wanted.id = "vm1";
    wanted.hypervisor = "qemu";
    wanted.config = config(cpu);
    on(Reserve{wanted});
  }

  void create_and_start() {
    reserve();
    on(FinalizeCreate{config(2)});
    on(MarkStarted{process});
  }

  // `expected` is asked for after the event, whose instant it needs. Compared as lines, to be read when they differ.
  static void expect(const std::vector<Entry>& said, const std::function<std::vector<Entry>()>& expected) {
    const auto lines = [](const std::vector<Entry>& entries) {
      std::string all;
      for (const Entry& entry : entries) all += metering::to_json(entry) + "\n";
      return all;
    };
    const std::vector<Entry> wanted = expected();
    EXPECT_EQ(lines(said), lines(wanted));
    EXPECT_TRUE(said == wanted);
  }

  // An entry of this VM at `now`.
  Entry entry(Kind kind, Reason reason, std::uint64_t seq, std::uint64_t interval, std::int64_t cpu = 2) const {
    Entry expected;
    expected.kind = kind;
    expected.reason = reason;
    expected.vm_id = "vm1";
    expected.hypervisor = "qemu";
    expected.shape = {cpu, cpu * kGiB, 10 * cpu * kGiB};
    expected.emitted_at_ns = now.wall_ns;
    expected.uptime_ns = now.uptime_ns;
    expected.boot_id = now.boot_id;
    expected.seq = seq;
    expected.interval = interval;
    if (metering::is_start(kind)) expected.labels = {{"team", "x"}, {"tenant", "a"}};
    return expected;
  }

  static Entry from(Entry entry, const std::string& snapshot) {
    entry.source_snapshot_id = snapshot;
    return entry;
  }

  std::optional<VmRecord> vm;
  Instant now = instant(1000);
  std::uint64_t next_seq = 50;
  std::vector<std::string> metered = {"absent", "team", "tenant"};
  const ProcessIdentity process{20, 21, "boot0001"};
};

TEST_F(LifecycleEntriesTest, FromCreateToRemove) {
  reserve();
  expect(on(FinalizeCreate{config(2)}),
         [&] { return std::vector{entry(Kind::kVmStorageStart, Reason::kBoot, 50, 50)}; });
  EXPECT_EQ(vm->storage_interval, 50U);
  expect(on(MarkStarted{process}), [&] { return std::vector{entry(Kind::kVmComputeStart, Reason::kBoot, 51, 51)}; });
  EXPECT_EQ(vm->started, now);
  EXPECT_EQ(vm->last_alive, now);
  expect(on(MarkStopped{}), [&] { return std::vector{entry(Kind::kVmComputeStop, Reason::kStopUser, 52, 51)}; });
  EXPECT_EQ(vm->stopped_at_ns, now.wall_ns);
  EXPECT_FALSE(vm->last_alive);
  const Instant first_stop = now;
  EXPECT_TRUE(on(MarkStopped{}).empty());
  EXPECT_EQ(vm->stopped_at_ns, first_stop.wall_ns);
  expect(on(MarkStarted{}), [&] { return std::vector{entry(Kind::kVmComputeStart, Reason::kRestart, 53, 53)}; });
  EXPECT_FALSE(vm->process);
  EXPECT_FALSE(vm->stopped_at_ns);
  expect(on(Remove{true, {}}), [&] {
    return std::vector{entry(Kind::kVmComputeStop, Reason::kStopUser, 54, 53),
                       entry(Kind::kVmStorageStop, Reason::kVmRemove, 55, 50)};
  });
  EXPECT_FALSE(vm);
}

TEST_F(LifecycleEntriesTest, StoppedNeverStartedHasNoStopTime) {
  reserve();
  on(FinalizeCreate{config(2)});
  EXPECT_TRUE(on(MarkStopped{}).empty());
  EXPECT_EQ(vm->state, VmState::kStopped);
  EXPECT_FALSE(vm->stopped_at_ns);
  expect(on(MarkStarted{process}), [&] { return std::vector{entry(Kind::kVmComputeStart, Reason::kBoot, 51, 51)}; });
}

TEST_F(LifecycleEntriesTest, FinalizeTakesThePreparedConfiguration) {
  reserve(2);
  EXPECT_EQ(vm->shape, metering::Shape{});
  VmConfig prepared = config(3);
  prepared.disks.push_back({"/d", false, "raw", "data", "", 5});
  const auto entries = on(FinalizeCreate{prepared});
  EXPECT_EQ(vm->config, prepared);
  EXPECT_EQ(vm->shape, (metering::Shape{3, 3 * kGiB, 30 * kGiB + 5}));
  EXPECT_EQ(entries.at(0).shape, vm->shape);
}

TEST_F(LifecycleEntriesTest, CloneNamesItsSnapshotAndStartsWithStorage) {
  reserve();
  expect(on(FinalizeClone{config(4), "snap", process}), [&] {
    return std::vector{from(entry(Kind::kVmStorageStart, Reason::kClone, 50, 50, 4), "snap"),
                       from(entry(Kind::kVmComputeStart, Reason::kClone, 51, 51, 4), "snap")};
  });
  EXPECT_EQ(vm->started, now);
  EXPECT_EQ(vm->process, process);
  on(MarkStopped{});
  expect(on(MarkStarted{}), [&] { return std::vector{entry(Kind::kVmComputeStart, Reason::kRestart, 53, 53, 4)}; });
}

TEST_F(LifecycleEntriesTest, RestoreStopsTheOldShapeAndStartsTheNew) {
  create_and_start();
  expect(on(RestoreKilled{"snap"}),
         [&] { return std::vector{from(entry(Kind::kVmComputeStop, Reason::kRestore, 52, 51, 2), "snap")}; });
  EXPECT_EQ(vm->shape.cpu, 2);
  expect(on(RestoreDone{config(4), "snap", process}), [&] {
    return std::vector{from(entry(Kind::kVmStorageStop, Reason::kRestore, 53, 50, 2), "snap"),
                       from(entry(Kind::kVmStorageStart, Reason::kRestore, 54, 54, 4), "snap"),
                       from(entry(Kind::kVmComputeStart, Reason::kRestore, 55, 55, 4), "snap")};
  });
  EXPECT_EQ(vm->config.cpu, 4);
  EXPECT_EQ(vm->started, now);
}

TEST_F(LifecycleEntriesTest, FailedRestoreMarksTheRunDirAsGivenAndTheNextOneClearsIt) {
  create_and_start();
  on(RestoreKilled{"snap"});
  EXPECT_TRUE(on(RestoreFailed{true}).empty());
  EXPECT_TRUE(vm->dirty);
  EXPECT_EQ(on(RestoreDone{config(2), "snap", process}).size(), 3U);
  EXPECT_FALSE(vm->dirty);
  on(RestoreKilled{"snap"});
  on(RestoreFailed{false});
  EXPECT_FALSE(vm->dirty);
  EXPECT_EQ(summaries(on(Remove{})), std::vector<std::string>{"vm.storage.stop vm-rm"});
}

TEST_F(LifecycleEntriesTest, FilesThatAreBeingExchangedAreDirtyUntilTheRestoreHasAnEnd) {
  create_and_start();
  on(RestoreKilled{"snap", true});
  EXPECT_TRUE(vm->dirty);
  on(RestoreKilled{"snap"});
  EXPECT_TRUE(vm->dirty);
  on(RestoreFailed{false});
  EXPECT_FALSE(vm->dirty);
}

TEST_F(LifecycleEntriesTest, ATakenSnapshotIsKnownToItsVmUntilItIsGone) {
  create_and_start();
  EXPECT_TRUE(on(SnapshotTaken{"s1", {}}).empty());
  on(SnapshotTaken{"s2", {}});
  on(SnapshotTaken{"s2", {}});
  EXPECT_EQ(vm->snapshot_ids, (std::vector<std::string>{"s1", "s2"}));
  on(SnapshotTaken{"s3", {"s1", "never there"}});
  EXPECT_EQ(vm->snapshot_ids, (std::vector<std::string>{"s2", "s3"}));
}

TEST_F(LifecycleEntriesTest, WakeNamesTheKeptSnapshotAndForgetsIt) {
  create_and_start();
  expect(on(Hibernate{"kept"}), [&] { return std::vector{entry(Kind::kVmComputeStop, Reason::kStopUser, 52, 51)}; });
  EXPECT_EQ(vm->kept_snapshot_id, "kept");
  EXPECT_FALSE(vm->process);
  expect(on(Wake{process}),
         [&] { return std::vector{from(entry(Kind::kVmComputeStart, Reason::kHibernateWake, 53, 53), "kept")}; });
  EXPECT_EQ(vm->kept_snapshot_id, "");
  EXPECT_TRUE(
      contains(error_of([&] { on(Hibernate{""}); }), "InvalidArgument: hibernate web-1: the kept snapshot's id"));
}

TEST_F(LifecycleEntriesTest, StartOfAHibernatedVmKeepsItsSnapshot) {
  create_and_start();
  on(Hibernate{"kept"});
  expect(on(MarkStarted{process}), [&] { return std::vector{entry(Kind::kVmComputeStart, Reason::kRestart, 53, 53)}; });
  EXPECT_EQ(vm->kept_snapshot_id, "kept");
}

TEST_F(LifecycleEntriesTest, ErrorKeepsTheIntervalAndTheProcess) {
  create_and_start();
  const VmRecord before = *vm;
  EXPECT_TRUE(on(MarkError{}).empty());
  VmRecord expected = before;
  expected.state = VmState::kError;
  expected.generation += 1;
  expected.updated_at_ns = now.wall_ns;
  EXPECT_EQ(*vm, expected);
  on(MarkStopped{});
  const auto stopped_at = vm->stopped_at_ns;
  on(MarkError{});
  EXPECT_EQ(vm->stopped_at_ns, stopped_at);
}

TEST_F(LifecycleEntriesTest, FoundAliveWithinAnOpenIntervalSaysNothingButProvesLife) {
  create_and_start();
  const auto started = vm->started;
  on(MarkError{});
  EXPECT_TRUE(on(FoundAlive{{30, 31, "boot0001"}}).empty());
  EXPECT_EQ(vm->state, VmState::kRunning);
  EXPECT_EQ(vm->started, started);
  EXPECT_EQ(vm->last_alive, now);
  EXPECT_EQ(vm->process->pid, 30);
}

// ---- labels

TEST_F(LifecycleEntriesTest, RelabelClosesAndOpensEveryOpenIntervalAtOneInstant) {
  create_and_start();
  const auto started = vm->started;
  auto relabelled = [&](Entry expected) {
    expected.labels = {{"tenant", "b"}};
    return expected;
  };
  const auto entries = on(Relabel{{{"tenant", "b"}, {"team", std::nullopt}, {"never", std::nullopt}}});
  EXPECT_TRUE(entries == (std::vector{entry(Kind::kVmComputeStop, Reason::kRelabel, 52, 51),
                                      entry(Kind::kVmStorageStop, Reason::kRelabel, 53, 50),
                                      relabelled(entry(Kind::kVmStorageStart, Reason::kRelabel, 54, 54)),
                                      relabelled(entry(Kind::kVmComputeStart, Reason::kRelabel, 55, 55))}));
  EXPECT_EQ(vm->config.labels, (Labels{{"note", "private"}, {"tenant", "b"}}));
  EXPECT_EQ(vm->started, started) << "the VMM is the same";
  EXPECT_EQ(vm->compute_since, now);
  expect(on(MarkStopped{}), [&] { return std::vector{entry(Kind::kVmComputeStop, Reason::kStopUser, 56, 55)}; });
  EXPECT_FALSE(vm->compute_since);
  EXPECT_EQ(summaries(on(Relabel{{{"tenant", "c"}}})),
            (std::vector<std::string>{"vm.storage.stop relabel", "vm.storage.start relabel"}));
}

TEST_F(LifecycleEntriesTest, RelabelOfWhatIsNotMeteredChangesTheRecordOnly) {
  create_and_start();
  EXPECT_TRUE(on(Relabel{{{"note", "other"}, {"tenant", "a"}, {"absent", std::nullopt}}}).empty());
  EXPECT_EQ(vm->config.labels.at("note"), "other");
  const VmRecord before = *vm;
  EXPECT_TRUE(on(Relabel{}).empty());
  EXPECT_EQ(vm->generation, before.generation + 1);
  metered.clear();
  EXPECT_TRUE(on(Relabel{{{"tenant", "z"}}}).empty());
}

TEST_F(LifecycleEntriesTest, WithoutAnAllowListNoLabelIsSaid) {
  reserve();
  const auto outcome = apply(vm, FinalizeClone{config(2), "", {}}, {now, 1, nullptr});
  ASSERT_EQ(outcome.entries.size(), 2U);
  for (const Entry& entry : outcome.entries) {
    EXPECT_TRUE(entry.labels.empty());
    EXPECT_EQ(entry.source_snapshot_id, "");
  }
}

TEST_F(LifecycleEntriesTest, LimitsOfLabels) {
  create_and_start();
  const auto relabel = [&](const std::string& key, const std::optional<std::string>& value) {
    return error_of([&] { on(Relabel{{{key, value}}}); });
  };
  EXPECT_EQ(relabel(std::string(63, 'k'), std::string(256, 'v')), "");
  EXPECT_EQ(relabel("größe", "中文 🚀"), "");
  for (const std::string& key : {std::string(), std::string(64, 'k'), std::string("a\tb"), std::string("a\x7f"),
                                 std::string("a\xff"), std::string("a\xc2\x85"), std::string(1, '\0')}) {
    EXPECT_TRUE(contains(relabel(key, "v"), "InvalidArgument: label key")) << key;
    EXPECT_EQ(relabel(key, std::nullopt), "") << "removing what cannot be there is fine";
  }
  for (const std::string& value :
       {std::string(257, 'v'), std::string("\n"), std::string("\xc3"), std::string("\xc2\x80")}) {
    EXPECT_TRUE(contains(relabel("key", value), "InvalidArgument: label \"key\": value")) << value;
  }
  EXPECT_EQ(vm->config.labels.count("key"), 0U);
  Relabel many;
  for (std::size_t i = vm->config.labels.size(); i < kMaxLabels; ++i) many.labels[fmt::format("k{}", i)] = "";
  on(many);
  EXPECT_EQ(vm->config.labels.size(), 64U);
  EXPECT_TRUE(contains(relabel("one-more", ""), "InvalidArgument: 65 labels: allowed are up to 64"));
  EXPECT_EQ(relabel("note", "changed"), "");
  EXPECT_EQ(error_of([&] { on(Relabel{{{"one-more", ""}, {"note", std::nullopt}}}); }), "");
}

TEST_F(LifecycleEntriesTest, EveryConfigurationThatComesInIsChecked) {
  VmConfig bad_labels = config(2);
  bad_labels.labels["\x01"] = "";
  VmConfig bad_shape = config(2);
  bad_shape.mem_bytes = -1;
  reserve();
  for (const VmConfig& bad : {bad_labels, bad_shape}) {
    const auto placeholder = vm;
    EXPECT_TRUE(contains(error_of([&] { on(FinalizeCreate{bad}); }), "InvalidArgument: "));
    EXPECT_TRUE(contains(error_of([&] { on(FinalizeClone{bad, "snap", {}}); }), "InvalidArgument: "));
    EXPECT_EQ(vm, placeholder);
  }
  on(FinalizeCreate{config(2)});
  for (const VmConfig& bad : {bad_labels, bad_shape}) {
    EXPECT_TRUE(contains(error_of([&] { on(RestoreDone{bad, "snap", {}}); }), "InvalidArgument: "));
  }
}

// ---- how a crashed VM ended

class CrashEvidenceTest : public LifecycleEntriesTest {
 protected:
  // Started at uptime 1300 (and the wall clock of then).
  void SetUp() override {
    create_and_start();
    ASSERT_EQ(vm->started, instant(1300));
  }

  Entry found_dead(const std::optional<Death>& death) {
    const auto entries = on(FoundDead{death});
    EXPECT_EQ(summaries(entries), std::vector<std::string>{"vm.compute.stop stop-crash"});
    EXPECT_EQ(entries.at(0).ended_at_ns.has_value(), entries.at(0).ended_uptime_ns.has_value());
    EXPECT_EQ(entries.at(0).ended_at_ns.has_value(), !entries.at(0).evidence.empty());
    EXPECT_NE(entries.at(0).ended_at_ns.has_value(), entries.at(0).alive_until_ns.has_value());
    return entries.at(0);
  }
};

TEST_F(CrashEvidenceTest, ACredibleDeathIsToldWithItsWitness) {
  for (const char* witness : {"shim", "watch", "log"}) {
    const Entry stop = found_dead(Death{{5, now.uptime_ns, "boot0001"}, witness});
    EXPECT_EQ(stop.ended_at_ns, 5) << "the wall clock has no say";
    EXPECT_EQ(stop.ended_uptime_ns, now.uptime_ns - 100);
    EXPECT_EQ(stop.evidence, witness);
    on(MarkStarted{process});
  }
}

TEST_F(CrashEvidenceTest, TheBoundsOfTheIntervalAreCredible) {
  EXPECT_EQ(found_dead(Death{instant(1300), "shim"}).ended_uptime_ns, 1300);
  on(MarkStarted{process});
  EXPECT_EQ(found_dead(Death{instant(1600), "shim"}).ended_uptime_ns, 1600);
  EXPECT_EQ(now.uptime_ns, 1600);
}

TEST_F(CrashEvidenceTest, AnIncredibleDeathIsDropped) {
  const std::vector<Death> incredible = {
      {instant(1299), "shim"},              // before the start: another VMM's
      {instant(1401), "shim"},              // after now
      {instant(1350, "boot0000"), "shim"},  // on another boot than the start
      {instant(1350), "hearsay"},
      {instant(1350), ""},
      {{-1, 1350, "boot0001"}, "shim"},  // before 1970: no ledger line can hold it
  };
  const auto record = vm;
  for (const Death& death : incredible) {
    vm = record;
    now = instant(1300);
    const Entry stop = found_dead(death);
    EXPECT_FALSE(stop.ended_at_ns) << death.at.uptime_ns << death.evidence;
    EXPECT_EQ(stop.alive_until_ns, instant(1300).wall_ns);
  }
}

TEST_F(CrashEvidenceTest, ADeathBeforeARebootIsCredibleAgainstTheStartAlone) {
  now = instant(7, "boot0002");
  const Entry stop = found_dead(Death{instant(999999), "shim"});
  EXPECT_EQ(stop.ended_uptime_ns, 999999);
  EXPECT_EQ(stop.boot_id, "boot0002");
}

TEST_F(CrashEvidenceTest, ADeathAfterTheRebootIsNotThisVmms) {
  now = instant(5000, "boot0002");
  EXPECT_FALSE(found_dead(Death{instant(4000, "boot0002"), "shim"}).ended_at_ns);
}

TEST_F(CrashEvidenceTest, WithoutADeathTheLastProofOfLifeIsTold) {
  EXPECT_EQ(found_dead({}).alive_until_ns, instant(1300).wall_ns);
  on(MarkStarted{process});
  on(FoundAlive{process});
  const Instant alive = now;
  on(MarkError{});
  on(Relabel{{{"note", "y"}}});
  EXPECT_EQ(found_dead({}).alive_until_ns, alive.wall_ns) << "neither an error nor a relabel proves life";
}

TEST_F(CrashEvidenceTest, ProofsOfLifeLieWithinTheIntervalOnTheUptimeClock) {
  vm->last_alive = instant(1200);
  const auto record = vm;
  EXPECT_EQ(found_dead({}).alive_until_ns, instant(1300).wall_ns);
  vm = record;
  vm->last_alive = instant(99999);
  const Entry stop = found_dead({});
  EXPECT_EQ(stop.alive_until_ns, now.wall_ns);
  vm = record;
  vm->last_alive.reset();
  EXPECT_EQ(found_dead({}).alive_until_ns, instant(1300).wall_ns);
  // The wall clock was stepped back by hours between the proof and now: still the proof's.
  vm = record;
  vm->last_alive = instant(1350);
  now = {5, 1400, "boot0001"};
  EXPECT_EQ(found_dead({}).alive_until_ns, instant(1350).wall_ns);
}

TEST_F(CrashEvidenceTest, ARelabelBoundsTheEvidenceOfTheNewInterval) {
  on(Relabel{{{"tenant", "b"}}});
  const Instant relabelled = now;
  const auto record = vm;
  EXPECT_EQ(found_dead({}).alive_until_ns, relabelled.wall_ns);
  // Dead before the relabel, which nobody knew: the VMM's death all the same, and nothing of the new interval was used.
  vm = record;
  const Entry before = found_dead(Death{instant(1350), "shim"});
  EXPECT_EQ(before.ended_at_ns, relabelled.wall_ns);
  EXPECT_EQ(before.ended_uptime_ns, relabelled.uptime_ns);
  EXPECT_EQ(before.evidence, "shim");
  vm = record;
  EXPECT_EQ(found_dead(Death{instant(1450), "shim"}).ended_uptime_ns, 1450);
}

TEST_F(CrashEvidenceTest, ARelabelAfterARebootFollowsTheDeathBefore) {
  now = instant(3, "boot0002");
  on(Relabel{{{"tenant", "b"}}});
  const Entry stop = found_dead(Death{instant(8000), "shim"});
  EXPECT_EQ(stop.ended_uptime_ns, 103);
  EXPECT_EQ(stop.interval, 55U);
}

TEST_F(CrashEvidenceTest, StartOnAnOpenIntervalClosesItAsACrashAtTheSameInstant) {
  const auto entries = on(MarkStarted{process});
  Entry stop = entry(Kind::kVmComputeStop, Reason::kStopCrash, 52, 51);
  stop.alive_until_ns = instant(1300).wall_ns;
  EXPECT_EQ(entries, (std::vector{stop, entry(Kind::kVmComputeStart, Reason::kRestart, 53, 53)}));
  EXPECT_EQ(vm->started, now);
}

TEST_F(CrashEvidenceTest, RemoveTellsTheDeathUnlessTheCallerStoppedTheVm) {
  const auto record = vm;
  const Death death{instant(1350), "watch"};
  auto entries = on(Remove{false, death});
  EXPECT_EQ(summaries(entries), (std::vector<std::string>{"vm.compute.stop stop-crash", "vm.storage.stop vm-rm"}));
  EXPECT_EQ(entries[0].ended_uptime_ns, 1350);
  EXPECT_EQ(entries[0].evidence, "watch");
  EXPECT_FALSE(entries[1].ended_at_ns);
  vm = record;
  entries = on(Remove{true, death});
  EXPECT_EQ(entries[0], entry(Kind::kVmComputeStop, Reason::kStopUser, 54, 51));
}

// ---- snapshots

TEST(LifecycleSnapshotEntriesTest, StartAndStopCarryTheSameShape) {
  SnapshotRecord wanted;
  wanted.id = "snap";
  wanted.hypervisor = "firecracker";
  wanted.vm_id = "vm1";
  wanted.cpu = 2;
  wanted.pending = false;
  wanted.storage_interval = 99;
  const std::vector<std::string> metered = {"tenant"};
  std::optional<SnapshotRecord> record;
  record = apply(record, ReserveSnapshot{wanted}, {instant(1), 5, &metered}).record;
  ASSERT_TRUE(record);
  EXPECT_TRUE(record->pending);
  EXPECT_FALSE(record->storage_interval != 0);
  EXPECT_EQ(record->created_at_ns, instant(1).wall_ns);
  EXPECT_TRUE(contains(error_of([&] { apply(record, FinalizeSnapshot{-1}, {instant(2), 5, &metered}); }),
                       "InvalidArgument: finalize snapshot snap: size -1"));
  auto outcome = apply(record, FinalizeSnapshot{700}, {instant(2), 5, &metered});
  Entry expected;
  expected.kind = Kind::kSnapStorageStart;
  expected.snapshot_id = "snap";
  expected.hypervisor = "firecracker";
  expected.shape.storage_bytes = 700;
  expected.emitted_at_ns = instant(2).wall_ns;
  expected.uptime_ns = 2;
  expected.boot_id = "boot0001";
  expected.seq = 5;
  expected.interval = 5;
  EXPECT_EQ(outcome.entries, std::vector{expected});
  EXPECT_EQ(outcome.record->size_bytes, 700);
  outcome = apply(outcome.record, RemoveSnapshot{}, {instant(3), 6, &metered});
  expected.kind = Kind::kSnapStorageStop;
  expected.reason = Reason::kSnapshotRemove;
  expected.emitted_at_ns = instant(3).wall_ns;
  expected.uptime_ns = 3;
  expected.seq = 6;
  EXPECT_EQ(outcome.entries, std::vector{expected});
  EXPECT_FALSE(outcome.record);
  EXPECT_TRUE(
      contains(error_of([&] { apply(std::optional<SnapshotRecord>(), ReserveSnapshot{}, {instant(1), 1, nullptr}); }),
               "InvalidArgument: reserve snapshot : its id is empty"));
}

}  // namespace
}  // namespace cocoon::lifecycle
