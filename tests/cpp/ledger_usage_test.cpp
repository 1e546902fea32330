#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/usage.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

using metering::Entry;
using metering::Kind;
using metering::Reason;
using test::kMidnight;
using test::kSecond;
using test::LedgerText;

constexpr std::int64_t kNow = kMidnight + 100 * kSecond;

std::int64_t at(std::int64_t seconds) { return kMidnight + seconds * kSecond; }

class UsageTest : public testing::Test {
 protected:
  std::vector<UsageRow> use(const LedgerText& text, const UsageQuery& query) {
    return read_usage(text.write(dir_ / "ledger.jsonl"), query, kNow);
  }
  test::TempDir dir_;
};

double vcpu(const UsageRow& row) { return per_second(row.vcpu_ns); }

struct Sum {
  Uint128 vcpu = 0, mem = 0, storage = 0;
  bool operator==(const Sum&) const = default;
};

Sum sum(const std::vector<UsageRow>& rows) {
  Sum all;
  for (const UsageRow& row : rows) {
    all.vcpu += row.vcpu_ns;
    all.mem += row.mem_byte_ns;
    all.storage += row.storage_byte_ns;
  }
  return all;
}

TEST_F(UsageTest, AddsUpTheQuietDayByVm) {
  const auto rows = use(test::quiet_day(), {});
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].key[0], std::nullopt) << "a snapshot has no VM; it is not dropped";
  EXPECT_EQ(per_second(rows[0].storage_byte_ns), 28.0 * 4096);
  EXPECT_EQ(rows[0].vcpu_ns, 0U);
  EXPECT_EQ(rows[1].key[0], "v1");
  EXPECT_EQ(vcpu(rows[1]), 2.0 * (10 + 30));
  EXPECT_EQ(per_second(rows[1].mem_byte_ns), 512.0 * (10 + 30));
  EXPECT_EQ(per_second(rows[1].storage_byte_ns), 1024.0 * 50);
  EXPECT_EQ(rows[1].intervals, 3U);
  EXPECT_EQ(rows[1].open, 0U);
  EXPECT_EQ(rows[2].key[0], "v2");
  EXPECT_EQ(vcpu(rows[2]), 2.0 * 70) << "open intervals count up to now";
  EXPECT_EQ(rows[2].open, 2U);
}

TEST_F(UsageTest, EveryKeyOfByIsKnown) {
  const auto key = [&](std::vector<std::string> by) {
    UsageQuery query;
    query.by = std::move(by);
    std::vector<std::vector<std::optional<std::string>>> keys;
    for (const UsageRow& row : use(test::quiet_day(), query)) {
      keys.push_back(row.key);
    }
    return keys;
  };
  using Keys = std::vector<std::vector<std::optional<std::string>>>;
  EXPECT_EQ(key({}), (Keys{{}}));
  EXPECT_EQ(key({"snapshot_id"}), (Keys{{std::nullopt}, {"s1"}}));
  EXPECT_EQ(key({"hypervisor"}), (Keys{{"qemu"}}));
  EXPECT_EQ(key({"reason"}), (Keys{{std::nullopt}, {"boot"}, {"clone"}, {"restart"}}));
  EXPECT_EQ(key({"kind"}), (Keys{{"snap.storage"}, {"vm.compute"}, {"vm.storage"}}));
  EXPECT_EQ(key({"label:tenant"}), (Keys{{std::nullopt}, {"blue"}}));
  EXPECT_EQ(key({"label:tenant", "vm_id"}), (Keys{{std::nullopt, std::nullopt}, {std::nullopt, "v1"}, {"blue", "v2"}}));
}

TEST_F(UsageTest, AnySplitAddsUpToTheWhole) {
  UsageQuery whole;
  whole.by = {};
  const Sum all = sum(use(test::quiet_day(), whole));
  EXPECT_GT(all.vcpu, 0U);
  for (const std::vector<std::string>& by :
       std::vector<std::vector<std::string>>{{"label:tenant"}, {"label:none"}, {"vm_id", "reason", "kind"}}) {
    for (const std::optional<std::int64_t> every : {std::optional<std::int64_t>(), {7 * kSecond}, {333'333'333}}) {
      UsageQuery query;
      query.by = by;
      query.every_ns = every;
      EXPECT_TRUE(sum(use(test::quiet_day(), query)) == all);
    }
  }
}

TEST_F(UsageTest, ARelabelledVmIsSplitAtTheInstant) {
  LedgerText text;
  const auto label = [](std::string tenant, Reason reason) {
    return [tenant = std::move(tenant), reason](Entry& e) { e.labels = {{"tenant", tenant}}, e.reason = reason; };
  };
  text.vm_start("v", 0, label("blue", Reason::kBoot))
      .vm_stop("v", 10, [](Entry& e) { e.reason = Reason::kRelabel; })
      .vm_start("v", 10, label("green", Reason::kRelabel))
      .vm_stop("v", 40);
  UsageQuery query;
  query.by = {"label:tenant"};
  const auto rows = use(text, query);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].key[0], "blue");
  EXPECT_EQ(vcpu(rows[0]), 20);
  EXPECT_EQ(rows[1].key[0], "green");
  EXPECT_EQ(vcpu(rows[1]), 60);
}

TEST_F(UsageTest, TheWindowIsClosedAtSinceAndOpenAtUntil) {
  LedgerText text;
  text.vm_start("v", 10).vm_stop("v", 20);
  const auto seconds = [&](std::optional<std::int64_t> since, std::optional<std::int64_t> until) {
    UsageQuery query;
    if (since) query.since_ns = at(*since);
    if (until) query.until_ns = at(*until);
    const auto rows = use(text, query);
    return rows.empty() ? -1.0 : vcpu(rows[0]) / 2;
  };
  EXPECT_EQ(seconds({}, {}), 10);
  EXPECT_EQ(seconds(12, 15), 3);
  EXPECT_EQ(seconds(0, 12), 2);
  EXPECT_EQ(seconds(15, 90), 5);
  EXPECT_EQ(seconds(20, 90), -1) << "nothing of it lies there, so it is no row";
  EXPECT_EQ(seconds(0, 10), -1);
  EXPECT_EQ(seconds(12, 12), -1);
}

TEST_F(UsageTest, AnOpenIntervalCountsUpToUntil) {
  LedgerText text;
  text.vm_start("v", 10);
  UsageQuery query;
  query.until_ns = at(30);
  auto rows = use(text, query);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(vcpu(rows[0]), 40);
  EXPECT_EQ(rows[0].open, 1U);
  query.until_ns = at(10);
  EXPECT_TRUE(use(text, query).empty());
  query.until_ns = at(500);
  EXPECT_EQ(vcpu(use(text, query)[0]), 2 * 490) << "also when that is past now";
}

TEST_F(UsageTest, AnIntervalOfNoLengthIsCountedOnce) {
  LedgerText text;
  text.vm_start("v", 10).vm_stop("v", 10);
  UsageQuery query;
  for (const std::optional<std::int64_t> every : {std::optional<std::int64_t>(), {kSecond}}) {
    query.every_ns = every;
    const auto rows = use(text, query);
    ASSERT_EQ(rows.size(), 1U);
    EXPECT_EQ(rows[0].intervals, 1U);
    EXPECT_EQ(rows[0].vcpu_ns, 0U);
  }
}

TEST_F(UsageTest, BucketsBeginAtMultiplesOfTheirLength) {
  LedgerText text;
  text.vm_start("v", 3'000).vm_stop("v", 10'000);
  UsageQuery query;
  query.every_ns = 3'600 * kSecond;
  const auto rows = use(text, query);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].bucket_ns, at(0));
  EXPECT_EQ(vcpu(rows[0]), 2 * 600);
  EXPECT_EQ(rows[1].bucket_ns, at(3'600));
  EXPECT_EQ(vcpu(rows[1]), 2 * 3'600);
  EXPECT_EQ(rows[2].bucket_ns, at(7'200));
  EXPECT_EQ(vcpu(rows[2]), 2 * 2'800);
  query.since_ns = at(3'500);
  query.until_ns = at(3'700);
  const auto clipped = use(text, query);
  ASSERT_EQ(clipped.size(), 2U);
  EXPECT_EQ(vcpu(clipped[0]), 200);
  EXPECT_EQ(vcpu(clipped[1]), 200);
}

TEST_F(UsageTest, BucketsBeforeTheEpochAreAlignedToo) {
  LedgerText text;
  text.vm_start("v", 0, [](Entry& e) { e.emitted_at_ns = -5 * kSecond; }).vm_stop("v", 8, [](Entry& e) {
    e.emitted_at_ns = 3 * kSecond;
  });
  UsageQuery query;
  query.every_ns = 10 * kSecond;
  const auto rows = use(text, query);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].bucket_ns, -10 * kSecond);
  EXPECT_EQ(vcpu(rows[0]), 10);
  EXPECT_EQ(vcpu(rows[1]), 6);
}

TEST_F(UsageTest, ACrashCountsAsAsked) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 50, [](Entry& e) {
    e.reason = Reason::kStopCrash;
    e.alive_until_ns = at(30);
  });
  UsageQuery query;
  EXPECT_EQ(vcpu(use(text, query)[0]), 100);
  query.crash = CrashEnd::kAliveUntil;
  EXPECT_EQ(vcpu(use(text, query)[0]), 60);
  query.crash = CrashEnd::kEmitted;
  EXPECT_EQ(vcpu(use(text, query)[0]), 100);
}

TEST_F(UsageTest, AStepOfTheWallClockChangesNoSum) {
  LedgerText text;
  text.vm_start("v", 0).vm_stop("v", 10, [](Entry& e) { e.emitted_at_ns += 3'600 * kSecond; });
  UsageQuery query;
  query.every_ns = kSecond;
  const auto rows = use(text, query);
  EXPECT_EQ(rows.size(), 10U);
  EXPECT_EQ(per_second(sum(rows).vcpu), 20);
}

TEST_F(UsageTest, SumsAreExactFarPast64Bits) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  LedgerText text;
  for (const std::string id : {"a", "b"}) {
    text.vm_start(id, 0, [](Entry& e) { e.shape.mem_bytes = kHuge; }).vm_stop(id, 3'600);
  }
  UsageQuery query;
  query.by = {};
  const auto rows = use(text, query);
  EXPECT_TRUE(rows[0].mem_byte_ns == Uint128{2} * static_cast<std::uint64_t>(kHuge) * 3'600 * kSecond);
  query.every_ns = 7;
  query.since_ns = at(0);
  query.until_ns = at(0) + 100;
  EXPECT_TRUE(sum(use(text, query)).mem == Uint128{2} * static_cast<std::uint64_t>(kHuge) * 100);
}

TEST_F(UsageTest, RefusesWhatItCannotAnswer) {
  const LedgerText text = test::quiet_day();
  const auto refused = [&](const std::function<void(UsageQuery&)>& spoil, std::string_view word) {
    UsageQuery query;
    spoil(query);
    try {
      use(text, query);
      ADD_FAILURE() << "answered: " << word;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  refused([](UsageQuery& q) { q.by = {"tenant"}; }, "\"tenant\" is not one of vm_id");
  refused([](UsageQuery& q) { q.by = {"label:"}; }, "label:");
  refused([](UsageQuery& q) { q.by = {"vm_id", "vm_id"}; }, "twice");
  refused([](UsageQuery& q) { q.every_ns = 0; }, "every");
  refused([](UsageQuery& q) { q.every_ns = -5; }, "every");
  refused([](UsageQuery& q) { q.every_ns = 1; }, "rows");
  refused([](UsageQuery& q) { q.since_ns = at(2), q.until_ns = at(1); }, "since");
}

TEST_F(UsageTest, AnEmptyLedgerIsNoRows) { EXPECT_TRUE(use(LedgerText(), {}).empty()); }

TEST_F(UsageTest, TheGoEnginesLedgerByHypervisorAddsUp) {
  const Files files = {std::string(COCOON_TEST_DATA) + "/go-engine/vms.ledger.jsonl"};
  UsageQuery whole;
  whole.by = {};
  UsageQuery split;
  split.by = {"hypervisor", "reason"};
  split.every_ns = 1'000'000;
  const std::int64_t until = metering::parse_time("2026-11-23T02:00:00Z");
  whole.until_ns = split.until_ns = until;
  const auto rows = read_usage(files, whole, kNow);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].intervals, 684U + 353U);
  whole.since_ns = split.since_ns = metering::parse_time("2026-11-23T01:00:36Z");
  split.until_ns = whole.until_ns = metering::parse_time("2026-11-23T01:00:37Z");
  EXPECT_TRUE(sum(read_usage(files, split, kNow)) == sum(read_usage(files, whole, kNow)));
}

}  // namespace
}  // namespace cocoon::ledger
