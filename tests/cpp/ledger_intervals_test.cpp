#include <limits>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/intervals.h"
#include "cocoon/ledger/once.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

using metering::Entry;
using metering::Kind;
using metering::Reason;
using test::kMidnight;
using test::kSecond;
using test::LedgerText;

class IntervalsTest : public testing::Test {
 protected:
  std::vector<Interval> read(const LedgerText& text, CrashEnd crash = CrashEnd::kEnded, std::int64_t until = 100) {
    return read_intervals(text.write(dir_ / "ledger.jsonl"), crash, kMidnight + until * kSecond);
  }

  test::TempDir dir_;
};

TEST_F(IntervalsTest, PairsTheQuietDayInTheOrderOfTheStarts) {
  const auto intervals = read(test::quiet_day());
  struct Expected {
    std::string id;
    Dimension dimension;
    std::int64_t start, length;
    bool open;
  };
  const std::vector<Expected> expected = {
      {"v1", Dimension::kVmStorage, 0, 50, false},    {"v1", Dimension::kVmCompute, 1, 10, false},
      {"s1", Dimension::kSnapStorage, 12, 28, false}, {"v1", Dimension::kVmCompute, 20, 30, false},
      {"v2", Dimension::kVmStorage, 30, 70, true},    {"v2", Dimension::kVmCompute, 30, 70, true}};
  ASSERT_EQ(intervals.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(intervals[i].id, expected[i].id);
    EXPECT_EQ(intervals[i].dimension, expected[i].dimension);
    EXPECT_EQ(intervals[i].start_ns, kMidnight + expected[i].start * kSecond);
    EXPECT_EQ(intervals[i].length_ns, expected[i].length * kSecond);
    EXPECT_EQ(intervals[i].open, expected[i].open);
    EXPECT_EQ(intervals[i].stop_ns.has_value(), !expected[i].open);
    EXPECT_EQ(intervals[i].length_from, expected[i].open ? LengthFrom::kWall : LengthFrom::kUptime);
    EXPECT_EQ(intervals[i].ordinal, i);
  }
  EXPECT_EQ(intervals[1].start_reason, Reason::kBoot);
  EXPECT_EQ(intervals[1].stop_reason, Reason::kStopUser);
  EXPECT_EQ(intervals[1].start_seq, 2U);
  EXPECT_EQ(intervals[1].stop_seq, 3U);
  EXPECT_EQ(intervals[1].shape, (metering::Shape{2, 512, 1024}));
  EXPECT_EQ(intervals[5].source_snapshot_id, "s1");
  EXPECT_EQ(intervals[5].labels, (std::map<std::string, std::string>{{"tenant", "blue"}}));
}

TEST_F(IntervalsTest, ALineThatComesAgainOpensAndClosesNothing) {
  const auto expected = read(test::quiet_day());
  for (std::size_t line = 0; line < 10; ++line) {
    LedgerText text = test::quiet_day();
    const auto intervals = read(text.repeat(line));
    ASSERT_EQ(intervals.size(), expected.size()) << "line " << line;
    for (std::size_t i = 0; i < intervals.size(); ++i) {
      EXPECT_EQ(intervals[i].start_seq, expected[i].start_seq) << "line " << line;
      EXPECT_EQ(intervals[i].stop_seq, expected[i].stop_seq) << "line " << line;
      EXPECT_EQ(intervals[i].length_ns, expected[i].length_ns) << "line " << line;
      EXPECT_EQ(intervals[i].open, expected[i].open) << "line " << line;
    }
  }
}

TEST_F(IntervalsTest, ALateLineCountsOnce) {
  LedgerText text;
  text.vm_start("a", 0).vm_start("b", 0).swap_last_two().repeat(1);  // 2, 1, and 1 again
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 2U);
  EXPECT_EQ(intervals[0].start_seq, 2U);
  EXPECT_EQ(intervals[1].start_seq, 1U);
  EXPECT_TRUE(intervals[1].open);
}

TEST(OnceTest, SaysWhatASetOfAllNumbersWouldSay) {
  std::mt19937_64 random(test::test_seed());
  Once once;
  once.set_files({"/a/ledger.1-9.jsonl", "/a/ledger.jsonl", "/b/ledger.jsonl"});
  std::set<std::pair<bool, std::uint64_t>> seen;
  for (int i = 0; i < 20'000; ++i) {
    const std::size_t file = random() % 3;
    const std::uint64_t seq = 1 + random() % 3'000;
    ASSERT_EQ(once.is_new(seq, file), seen.emplace(file == 2, seq).second) << "seq " << seq << " of file " << file;
    EXPECT_TRUE(once.is_new(std::nullopt, file));
    if (i % 5'000 != 0) continue;
    std::string saved;
    once.save(saved);
    once = Once();
    std::string_view in = saved;
    once.load(in);
    EXPECT_TRUE(in.empty());
    once.set_files({"/a/ledger.1-9.jsonl", "/a/ledger.jsonl", "/b/ledger.jsonl"});
  }
}

TEST(OnceTest, LedgersOfTwoNodesInOneFolderHaveNumbersOfTheirOwn) {
  Once once;
  once.set_files({"/a/one.1-9.jsonl.zst", "/a/one.jsonl", "/a/two.1-9.jsonl", "/a/two.jsonl.gz", "/a/odd"});
  EXPECT_TRUE(once.is_new(1, 0));
  EXPECT_FALSE(once.is_new(1, 1)) << "the same ledger";
  EXPECT_TRUE(once.is_new(1, 2));
  EXPECT_FALSE(once.is_new(1, 3));
  EXPECT_TRUE(once.is_new(1, 4));
}

TEST_F(IntervalsTest, TwoNodesLedgersInOneFolderAddUp) {
  LedgerText one;
  LedgerText two;
  one.vm_start("a", 0).vm_stop("a", 10);
  two.vm_start("b", 0).vm_stop("b", 20).repeat(0);
  one.write(dir_ / "one.jsonl");
  two.write(dir_ / "two.jsonl");
  const std::vector<std::string> folder = {dir_.path().string()};
  const auto intervals = read_intervals(find_files(folder), CrashEnd::kEnded, kMidnight);
  ASSERT_EQ(intervals.size(), 2U);
  EXPECT_EQ(intervals[0].length_ns, 10 * kSecond);
  EXPECT_EQ(intervals[1].length_ns, 20 * kSecond);
}

TEST(OnceTest, ForgetsTheLowestGapsRatherThanGrowForEver) {
  Once once;
  once.set_files({"ledger.jsonl"});
  const std::uint64_t last = 2 * Once::kMostGaps + 2;
  for (std::uint64_t seq = 2; seq <= last; seq += 2) EXPECT_TRUE(once.is_new(seq, 0));
  EXPECT_FALSE(once.is_new(1, 0)) << "forgotten: a repeat";
  EXPECT_TRUE(once.is_new(3, 0));
  EXPECT_TRUE(once.is_new(last - 1, 0));
  EXPECT_FALSE(once.is_new(last - 1, 0));
}

TEST_F(IntervalsTest, TheGoEnginesLedgerPairsCleanly) {
  const std::string data = std::string(COCOON_TEST_DATA) + "/go-engine/";
  std::vector<Interval> intervals;
  std::vector<std::string> anomalies;
  Pairer pairer(
      CrashEnd::kEnded, [&](const IntervalView& interval) { intervals.push_back(to_interval(interval)); },
      [&](Anomaly, std::optional<std::uint64_t>, const std::string& message) { anomalies.push_back(message); });
  for_each_entry({data + "vms.ledger.jsonl", data + "snapshots.ledger.jsonl"},
                 [&](const Batch::Item& item, const Position&) { pairer.add(item.entry, item.hash); });
  const std::size_t closed = intervals.size();
  EXPECT_EQ(closed, 655U + 300U + 1U);
  EXPECT_EQ(pairer.open_count(), 82U);
  pairer.finish(std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(intervals.size(), 684U + 353U + 1U);
  EXPECT_EQ(anomalies, std::vector<std::string>{});
  for (std::size_t i = 0; i < closed; ++i) {
    EXPECT_EQ(intervals[i].length_from, LengthFrom::kWall);
    EXPECT_EQ(intervals[i].length_ns, *intervals[i].stop_ns - intervals[i].start_ns);
  }
  EXPECT_EQ(intervals[closed - 1].shape.storage_bytes, 12'582'961) << "the start's, the Go engine's stop has none";
}

TEST_F(IntervalsTest, LengthIsImmuneToStepsOfTheWallClock) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 10, [](Entry& e) { e.emitted_at_ns -= 3'600 * kSecond; });
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 1U);
  EXPECT_EQ(intervals[0].length_ns, 10 * kSecond);
  EXPECT_EQ(intervals[0].length_from, LengthFrom::kUptime);
}

TEST_F(IntervalsTest, AcrossAReBootTheWallClockCounts) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 10, [](Entry& e) { e.boot_id = "ffffffff", e.uptime_ns = 5; });
  const auto intervals = read(text);
  EXPECT_EQ(intervals[0].length_ns, 10 * kSecond);
  EXPECT_EQ(intervals[0].length_from, LengthFrom::kWall);
}

TEST_F(IntervalsTest, ACrashCountsToItsDeathUnlessAskedOtherwise) {
  LedgerText text;
  text.vm_start("seen", 0)
      .vm_stop("seen", 50,
               [](Entry& e) {
                 e.reason = Reason::kStopCrash;
                 e.ended_at_ns = kMidnight + 20 * kSecond;
                 e.ended_uptime_ns = 1'020 * kSecond;
                 e.evidence = "shim";
               })
      .vm_start("unseen", 0)
      .vm_stop("unseen", 50,
               [](Entry& e) {
                 e.reason = Reason::kStopCrash;
                 e.alive_until_ns = kMidnight + 30 * kSecond;
               })
      .vm_start("rebooted", 0)
      .vm_stop("rebooted", 50, [](Entry& e) {
        e.reason = Reason::kStopCrash;
        e.boot_id = "ffffffff";
        e.uptime_ns = 3 * kSecond;
        e.ended_at_ns = kMidnight + 10 * kSecond;
        e.ended_uptime_ns = 1'010 * kSecond;
      });
  const auto lengths = [&](CrashEnd crash) {
    std::vector<std::int64_t> seconds;
    for (const Interval& interval : read(text, crash)) {
      seconds.push_back(interval.length_ns / kSecond);
    }
    return seconds;
  };
  EXPECT_EQ(lengths(CrashEnd::kEnded), (std::vector<std::int64_t>{20, 50, 10}));
  EXPECT_EQ(lengths(CrashEnd::kEmitted), (std::vector<std::int64_t>{50, 50, 50}));
  EXPECT_EQ(lengths(CrashEnd::kAliveUntil), (std::vector<std::int64_t>{20, 30, 10}));
  const auto intervals = read(text);
  EXPECT_EQ(intervals[0].evidence, "shim");
  EXPECT_EQ(intervals[0].ended_at_ns, kMidnight + 20 * kSecond);
  EXPECT_EQ(intervals[0].stop_ns, kMidnight + 50 * kSecond);
  EXPECT_EQ(intervals[0].length_from, LengthFrom::kUptime);
  EXPECT_EQ(intervals[1].alive_until_ns, kMidnight + 30 * kSecond);
  EXPECT_EQ(intervals[2].length_from, LengthFrom::kWall);
}

TEST_F(IntervalsTest, ADeathNeverCountsPastItsCommit) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 50, [](Entry& e) {
    e.ended_at_ns = kMidnight + 4'000 * kSecond;  // the wall clock was set back afterwards
  });
  EXPECT_EQ(read(text)[0].length_ns, 50 * kSecond);
}

TEST_F(IntervalsTest, ASecondStartClosesTheFirst) {
  LedgerText text;
  text.vm_start("v", 0).vm_start("v", 10).vm_stop("v", 30);
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 2U);
  EXPECT_EQ(intervals[0].length_ns, 10 * kSecond);
  EXPECT_FALSE(intervals[0].open);
  EXPECT_EQ(intervals[0].stop_reason, std::nullopt);
  EXPECT_EQ(intervals[0].stop_seq, std::nullopt);
  EXPECT_EQ(intervals[1].length_ns, 20 * kSecond);
}

TEST_F(IntervalsTest, AStopThatNamesAnotherIntervalClosesNothing) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 10, [](Entry& e) { e.interval = 77; }).vm_stop("v", 20);
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 1U);
  EXPECT_EQ(intervals[0].length_ns, 20 * kSecond);
}

TEST_F(IntervalsTest, OurStopClosesAStartOfTheGoEngine) {
  LedgerText text;
  text.vm_start("v", 0, [](Entry& e) { e.seq.reset(), e.interval.reset(), e.boot_id.clear(), e.uptime_ns.reset(); })
      .vm_stop("v", 10, [](Entry& e) { e.seq = 1, e.interval.reset(); });
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 1U);
  EXPECT_EQ(intervals[0].length_ns, 10 * kSecond);
  EXPECT_EQ(intervals[0].length_from, LengthFrom::kWall);
}

TEST_F(IntervalsTest, OneIdIsThreeThingsToBePaired) {
  LedgerText text;
  text.vm_create("x", 0).vm_start("x", 1).add(Kind::kSnapStorageStart, "x", 2);
  text.add(Kind::kSnapStorageStop, "x", 3).vm_stop("x", 5).vm_remove("x", 9);
  const auto intervals = read(text);
  ASSERT_EQ(intervals.size(), 3U);
  EXPECT_EQ(intervals[0].length_ns, 9 * kSecond);
  EXPECT_EQ(intervals[1].length_ns, 4 * kSecond);
  EXPECT_EQ(intervals[2].length_ns, 1 * kSecond);
}

TEST_F(IntervalsTest, AnOpenIntervalNeverCountsBackwards) {
  LedgerText text;
  text.vm_start("v", 50);
  EXPECT_EQ(read(text, CrashEnd::kEnded, 10)[0].length_ns, 0);
}

TEST_F(IntervalsTest, TimesAtTheEndsOfTheRangeDoNotOverflow) {
  constexpr std::int64_t kFirst = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t kLast = std::numeric_limits<std::int64_t>::max();
  LedgerText text;
  const auto at = [](std::int64_t ns) {
    return [ns](Entry& e) { e.emitted_at_ns = ns, e.boot_id.clear(), e.uptime_ns.reset(); };
  };
  text.vm_start("v", 0, at(kFirst)).vm_stop("v", 1, at(kLast)).vm_start("w", 0, at(kLast)).vm_stop("w", 1, at(kFirst));
  const auto intervals = read(text);
  EXPECT_EQ(intervals[0].length_ns, kLast);
  EXPECT_EQ(intervals[1].length_ns, 0);
}

TEST_F(IntervalsTest, MemoryIsBoundedByWhatIsOpen) {
  std::size_t handed_out = 0;
  Pairer pairer(CrashEnd::kEnded, [&](const IntervalView&) { ++handed_out; });
  for (std::int64_t i = 0; i < 10'000; ++i) {
    const std::string id = "v" + std::to_string(i);
    test::pair(pairer, test::vm_entry(Kind::kVmComputeStart, id, i));
    EXPECT_EQ(pairer.open_count(), 1U);
    test::pair(pairer, test::vm_entry(Kind::kVmComputeStop, id, i + 1));
    EXPECT_EQ(pairer.open_count(), 0U);
  }
  EXPECT_EQ(handed_out, 10'000U);
}

// Whatever order lines come in, every start is one interval, and none is negative.
TEST_F(IntervalsTest, AnyOrderOfLinesGivesOneIntervalPerStart) {
  std::mt19937_64 random(test::test_seed());
  for (int round = 0; round < 200; ++round) {
    std::size_t starts = 0;
    std::size_t intervals = 0;
    Pairer pairer(
        static_cast<CrashEnd>(random() % 3),
        [&](const IntervalView& interval) {
          ++intervals;
          EXPECT_GE(interval.length_ns, 0);
        },
        [](Anomaly, std::optional<std::uint64_t>, const std::string&) {});
    for (std::uint64_t seq = 1; seq <= 60; ++seq) {
      const auto kind = static_cast<Kind>(random() % 6);
      const std::string id(1, static_cast<char>('a' + random() % 3));
      Entry entry = metering::is_vm(kind) ? test::vm_entry(kind, id, 0) : test::snap_entry(kind, id, 0);
      entry.emitted_at_ns = static_cast<std::int64_t>(random());
      entry.seq = seq;
      if (random() % 2 == 0) entry.interval = 1 + random() % seq;
      if (random() % 2 == 0) entry.boot_id = "b", entry.uptime_ns = static_cast<std::int64_t>(random() >> 1);
      if (random() % 3 == 0) entry.ended_at_ns = static_cast<std::int64_t>(random());
      if (random() % 3 == 0) entry.ended_uptime_ns = static_cast<std::int64_t>(random() >> 1);
      if (random() % 3 == 0) entry.alive_until_ns = static_cast<std::int64_t>(random());
      starts += metering::is_start(kind) ? 1 : 0;
      test::pair(pairer, entry);
    }
    pairer.finish(static_cast<std::int64_t>(random()));
    ASSERT_EQ(intervals, starts);
  }
}

TEST(CrashEndTest, IsParsedStrictly) {
  EXPECT_EQ(parse_crash_end("ended"), CrashEnd::kEnded);
  EXPECT_EQ(parse_crash_end("emitted"), CrashEnd::kEmitted);
  EXPECT_EQ(parse_crash_end("alive_until"), CrashEnd::kAliveUntil);
  EXPECT_THROW(parse_crash_end("never"), InvalidArgument);
}

}  // namespace
}  // namespace cocoon::ledger
