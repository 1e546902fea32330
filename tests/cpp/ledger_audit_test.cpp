#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/audit.h"
#include "cocoon/ledger/id_set.h"
#include "cocoon/ledger/sequence.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

using metering::Entry;
using metering::Kind;
using metering::Reason;
using test::kSecond;
using test::LedgerText;

class AuditTest : public testing::Test {
 protected:
  AuditReport look_at(const LedgerText& text) { return audit(text.write(dir_ / "ledger.jsonl")); }

  // The one finding there is.
  Finding only(const AuditReport& report, Code code) {
    EXPECT_EQ(report.findings.size(), 1U);
    for (const Finding& finding : report.findings) {
      EXPECT_EQ(to_string(finding.code), to_string(code)) << finding.message;
      EXPECT_EQ(finding.file, (dir_ / "ledger.jsonl").string());
      EXPECT_FALSE(finding.message.empty());
    }
    EXPECT_FALSE(report.ok());
    return report.findings.empty() ? Finding{} : report.findings.front();
  }

  test::TempDir dir_;
};

TEST_F(AuditTest, AQuietDayIsClean) {
  const auto report = look_at(test::quiet_day());
  EXPECT_TRUE(report.ok()) << report.findings.front().message;
  EXPECT_EQ(report.entries, 10U);
}

TEST_F(AuditTest, TheGoEnginesFilesAreClean) {
  const std::string data = std::string(COCOON_TEST_DATA) + "/go-engine/";
  const auto report = audit({data + "vms.ledger.jsonl", data + "snapshots.ledger.jsonl"});
  EXPECT_TRUE(report.ok()) << report.findings.front().message;
  EXPECT_EQ(report.entries, 1'994U);
}

TEST_F(AuditTest, AnEmptyLedgerIsClean) {
  EXPECT_TRUE(look_at(LedgerText()).ok());
  EXPECT_TRUE(audit({}).ok());
  EXPECT_THROW(audit({dir_ / "none.jsonl"}), LedgerError);
}

TEST_F(AuditTest, TornLine) {
  LedgerText text;
  text.vm_create("v", 0).vm_start("v", 1);
  const std::string whole = text.text();
  const std::size_t begin = whole.find('\n') + 1;
  for (std::size_t size = begin + 1; size < whole.size(); ++size) {
    test::write_file(dir_ / "ledger.jsonl", whole.substr(0, size));
    const auto report = audit({dir_ / "ledger.jsonl"});
    const Finding finding = only(report, Code::kTornLine);
    EXPECT_EQ(finding.line, 2U);
    EXPECT_EQ(finding.offset, begin);
    EXPECT_EQ(report.entries, 1U);
  }
  test::write_file(dir_ / "ledger.jsonl", whole + std::string(100, '\0'));
  only(audit({dir_ / "ledger.jsonl"}), Code::kTornLine);
}

TEST_F(AuditTest, BadJson) {
  LedgerText text = test::quiet_day();
  const std::size_t offset = text.text().size();
  text.line("garbage").vm_stop("v2", 60);
  const auto report = look_at(text);
  const Finding finding = only(report, Code::kBadJson);
  EXPECT_EQ(finding.line, 11U);
  EXPECT_EQ(finding.offset, offset);
  EXPECT_EQ(report.entries, 11U) << "reading goes on behind it";
}

TEST_F(AuditTest, AnEmptyLineIsBadJson) {
  LedgerText text;
  text.vm_create("v", 0).line("").vm_start("v", 1);
  EXPECT_EQ(only(look_at(text), Code::kBadJson).line, 2U);
}

TEST_F(AuditTest, ABrokenLineOfOursIsNotAlsoAGap) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60);
  text.last().replace(2, 4, "k\x01nd");
  text.vm_start("v2", 70);
  only(look_at(text), Code::kBadJson);
}

TEST_F(AuditTest, BadField) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.reason = Reason::kStopUser; });
  std::string& line = text.last();
  line.replace(line.find("stop-user"), 9, "stop-work");
  text.vm_start("v2", 70);  // what the bad line stopped is started again: it is the same fault
  const Finding finding = only(look_at(text), Code::kBadField);
  EXPECT_EQ(finding.seq, 11U);
  EXPECT_NE(finding.message.find("stop-work"), std::string::npos);
}

TEST_F(AuditTest, AStartThatNamesAnotherIntervalIsABadField) {
  LedgerText text = test::quiet_day();
  text.vm_create("v3", 60, [](Entry& e) { e.interval = 3; });
  EXPECT_EQ(only(look_at(text), Code::kBadField).vm_id, "v3");
}

TEST_F(AuditTest, AStopThatNamesALaterIntervalIsABadField) {
  LedgerText text;
  text.vm_create("v", 0).vm_start("v", 1).vm_stop("v", 2, [](Entry& e) { e.interval = 3; });
  const auto report = look_at(text);
  ASSERT_EQ(report.findings.size(), 2U) << "and so it has no start";
  EXPECT_EQ(report.findings[0].code, Code::kBadField);
  EXPECT_EQ(report.findings[1].code, Code::kStopWithoutStart);
}

TEST_F(AuditTest, UnknownKind) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60);
  std::string& line = text.last();
  line.replace(line.find("vm.compute.stop"), 15, "vm.network.stop");
  const Finding finding = only(look_at(text), Code::kUnknownKind);
  EXPECT_EQ(finding.seq, 11U);
  EXPECT_NE(finding.message.find("vm.network.stop"), std::string::npos);
}

TEST_F(AuditTest, SeqGap) {
  LedgerText text;
  text.vm_create("v", 0).vm_start("v", 1).vm_stop("v", 2).drop_last().vm_start("v", 3).drop_last();
  const std::size_t offset = text.text().size();
  text.vm_start("v", 4);  // the stop is in the gap: not a double start of its own
  const Finding finding = only(look_at(text), Code::kSeqGap);
  EXPECT_EQ(finding.seq, 3U);
  EXPECT_EQ(finding.line, 3U);
  EXPECT_EQ(finding.offset, offset);
  EXPECT_NE(finding.message.find("3 to 4"), std::string::npos);
}

TEST_F(AuditTest, ALedgerWithoutItsBeginningIsOneGap) {
  LedgerText text;
  text.vm_create("v", 0).drop_last().vm_start("v", 1).drop_last().vm_stop("v", 2).vm_remove("v", 3);
  EXPECT_EQ(only(look_at(text), Code::kSeqGap).seq, 1U);
}

TEST_F(AuditTest, SeqRepeat) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60).repeat_last();
  const Finding finding = only(look_at(text), Code::kSeqRepeat);
  EXPECT_EQ(finding.seq, 11U);
  EXPECT_EQ(finding.line, 12U);
  EXPECT_EQ(finding.vm_id, "v2");
}

TEST_F(AuditTest, SeqBackwards) {
  LedgerText text;
  text.vm_create("v", 0).vm_create("w", 0).vm_create("x", 0).swap_last_two().vm_start("v", 2);
  const Finding finding = only(look_at(text), Code::kSeqBackwards);
  EXPECT_EQ(finding.seq, 2U);
  EXPECT_EQ(finding.line, 3U);
}

TEST_F(AuditTest, DoubleStart) {
  LedgerText text = test::quiet_day();
  text.vm_start("v2", 60);
  const Finding finding = only(look_at(text), Code::kDoubleStart);
  EXPECT_EQ(finding.seq, 11U);
  EXPECT_EQ(finding.vm_id, "v2");
}

TEST_F(AuditTest, DoubleStartInALedgerWithoutSeq) {
  LedgerText text;
  const auto go = [](Entry& e) { e.seq.reset(), e.interval.reset(), e.boot_id.clear(), e.uptime_ns.reset(); };
  text.vm_create("v", 0, go).vm_start("v", 1, go).vm_start("v", 2, go);
  EXPECT_EQ(only(look_at(text), Code::kDoubleStart).seq, std::nullopt);
}

TEST_F(AuditTest, StopWithoutStart) {
  LedgerText text;
  text.vm_create("v", 0).vm_start("v", 1).vm_stop("v", 2).vm_stop("v", 3);
  const Finding finding = only(look_at(text), Code::kStopWithoutStart);
  EXPECT_EQ(finding.seq, 4U);
  EXPECT_EQ(finding.vm_id, "v");
}

TEST_F(AuditTest, ShapeChanged) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.shape.cpu = 3; });
  EXPECT_EQ(only(look_at(text), Code::kShapeChanged).vm_id, "v2");
}

TEST_F(AuditTest, ASnapshotsStopWithoutShapeIsAFindingOnlyInOurs) {
  LedgerText ours;
  ours.add(Kind::kSnapStorageStart, "s", 0).add(Kind::kSnapStorageStop, "s", 1, [](Entry& e) { e.shape = {}; });
  EXPECT_EQ(only(look_at(ours), Code::kShapeChanged).snapshot_id, "s");
}

TEST_F(AuditTest, HypervisorChanged) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.hypervisor = "firecracker"; });
  EXPECT_EQ(only(look_at(text), Code::kHypervisorChanged).vm_id, "v2");
}

TEST_F(AuditTest, ClockStepped) {
  for (const std::int64_t step : {-3'600, -1, 1, 86'400}) {
    LedgerText text = test::quiet_day();
    const auto stepped = [&](Entry& e) { e.emitted_at_ns += step * kSecond; };
    text.vm_stop("v2", 60, stepped).vm_start("v2", 61, stepped);
    EXPECT_EQ(only(look_at(text), Code::kClockStepped).seq, 11U) << "once, at the step: " << step;
  }
}

TEST_F(AuditTest, ASlewedOrBusyClockIsNoStep) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.emitted_at_ns += kSecond / 4; });
  text.vm_start("v2", 100'000, [](Entry& e) { e.emitted_at_ns += 50 * kSecond; });
  EXPECT_TRUE(look_at(text).ok());
}

TEST_F(AuditTest, ARebootIsNoStep) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.boot_id = "ffffffff", e.uptime_ns = 5 * kSecond; });
  EXPECT_TRUE(look_at(text).ok());
}

TEST_F(AuditTest, NegativeLength) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) {  // after a reboot, with a clock that lost its battery
    e.boot_id = "ffffffff";
    e.emitted_at_ns -= 86'400 * kSecond;
  });
  EXPECT_EQ(only(look_at(text), Code::kNegativeLength).seq, 11U);
}

TEST_F(AuditTest, ADeathBeforeTheStartIsNegativeToo) {
  LedgerText text = test::quiet_day();
  text.vm_stop("v2", 60, [](Entry& e) { e.ended_at_ns = 0, e.ended_uptime_ns = 1; });
  only(look_at(text), Code::kNegativeLength);
}

TEST_F(AuditTest, ComputeOutlivesStorage) {
  LedgerText text = test::quiet_day();
  text.vm_remove("v2", 60, [](Entry& e) { e.reason.reset(); }).vm_stop("v2", 70);
  const Finding finding = only(look_at(text), Code::kComputeOutlivesStorage);
  EXPECT_EQ(finding.seq, 11U);
  EXPECT_EQ(finding.vm_id, "v2");
}

TEST_F(AuditTest, ComputeThatNeverStopsOutlivesItsStorageToo) {
  LedgerText text = test::quiet_day();
  text.vm_remove("v2", 60);
  only(look_at(text), Code::kComputeOutlivesStorage);
}

TEST_F(AuditTest, ComputeWithoutStorage) {
  LedgerText text = test::quiet_day();
  text.vm_start("v3", 60);
  EXPECT_EQ(only(look_at(text), Code::kComputeOutlivesStorage).vm_id, "v3");
}

TEST_F(AuditTest, ARelabelClosesAndOpensAllAtOneInstant) {
  const auto relabel = [](Entry& e) { e.reason = Reason::kRelabel; };
  LedgerText storage_first = test::quiet_day();
  storage_first.add(Kind::kVmStorageStop, "v2", 60, relabel).vm_create("v2", 60, relabel);
  storage_first.vm_stop("v2", 60, relabel).vm_start("v2", 60, relabel);
  EXPECT_TRUE(look_at(storage_first).ok());
  LedgerText nested = test::quiet_day();
  nested.vm_stop("v2", 60, relabel).add(Kind::kVmStorageStop, "v2", 60, relabel);
  nested.vm_create("v2", 60, relabel).vm_start("v2", 60, relabel);
  EXPECT_TRUE(look_at(nested).ok());
}

TEST_F(AuditTest, AfterRemoval) {
  LedgerText text = test::quiet_day();
  text.vm_create("v1", 60);
  EXPECT_EQ(only(look_at(text), Code::kAfterRemoval).vm_id, "v1");
  text.vm_stop("v1", 61);
  const auto report = look_at(text);
  ASSERT_EQ(report.findings.size(), 2U);
  EXPECT_EQ(report.findings[1].code, Code::kAfterRemoval) << "a stop without a start is the lesser of its faults";
}

TEST_F(AuditTest, AfterRemovalOfASnapshot) {
  LedgerText text = test::quiet_day();
  text.add(Kind::kSnapStorageStart, "s1", 60);
  EXPECT_EQ(only(look_at(text), Code::kAfterRemoval).snapshot_id, "s1");
}

TEST_F(AuditTest, AVmMayHaveTheIdOfARemovedSnapshot) {
  LedgerText text = test::quiet_day();
  text.vm_create("s1", 60);
  EXPECT_TRUE(look_at(text).ok());
}

TEST_F(AuditTest, UnknownSourceSnapshot) {
  LedgerText text = test::quiet_day();
  text.vm_create("v3", 60, [](Entry& e) { e.reason = Reason::kClone, e.source_snapshot_id = "s2"; });
  EXPECT_EQ(only(look_at(text), Code::kUnknownSourceSnapshot).vm_id, "v3");
}

TEST_F(AuditTest, TheGoEnginesLinesMayComeFirst) {
  LedgerText text;
  const std::string go = R"({"kind":"vm.storage.start","vm_id":"OLD","source_snapshot_id":"S","reason":"clone",)"
                         R"("shape":{},"emitted_at":"2026-11-22T09:00:35.8+08:00"})";
  text.line(go).vm_create("v", 0).vm_start("v", 1, [](Entry& e) { e.source_snapshot_id = "S"; });
  EXPECT_TRUE(look_at(text).ok());
}

TEST_F(AuditTest, SeqGoesOnFromFileToFileOfAFolder) {
  const std::vector<std::string> lines = test::lines_of(test::quiet_day().text());
  std::string first;
  std::string second;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    (i < 4 ? first : second) += lines[i] + '\n';
  }
  test::write_file(dir_ / "ledger.1-4.jsonl", first);
  test::write_file(dir_ / "ledger.jsonl", second);
  const std::vector<std::string> folder = {dir_.path().string()};
  EXPECT_TRUE(audit(find_files(folder)).ok());
  test::TempDir other_node;
  test::write_file(other_node / "ledger.jsonl", LedgerText().vm_create("w", 5).text());
  const std::vector<std::string> both = {dir_.path().string(), other_node.path().string()};
  EXPECT_TRUE(audit(find_files(both)).ok()) << "each folder is a node of its own";
}

TEST_F(AuditTest, TwoLedgersOfOneFolderEachHaveTheirSeqs) {
  test::quiet_day().write(dir_ / "a.jsonl");
  LedgerText().vm_create("w", 5).vm_start("w", 6).repeat_last().write(dir_ / "b.jsonl");
  const std::vector<std::string> folder = {dir_.path().string()};
  const auto report = audit(find_files(folder));
  ASSERT_EQ(report.findings.size(), 1U);
  EXPECT_EQ(report.findings[0].code, Code::kSeqRepeat);
  EXPECT_TRUE(report.findings[0].file.ends_with("b.jsonl"));
}

TEST_F(AuditTest, FindingsAreInTheOrderOfTheLines) {
  LedgerText text = test::quiet_day();
  text.vm_create("v1", 60).line("garbage").vm_stop("v2", 70, [](Entry& e) { e.shape = {}; }).vm_stop("v2", 80);
  std::vector<Code> codes;
  for (const Finding& finding : look_at(text).findings) {
    codes.push_back(finding.code);
  }
  EXPECT_EQ(codes,
            (std::vector<Code>{Code::kAfterRemoval, Code::kBadJson, Code::kShapeChanged, Code::kStopWithoutStart}));
}

TEST_F(AuditTest, AnyDamageIsSurvived) {
  const std::string whole = test::quiet_day().text();
  std::mt19937_64 random(test::test_seed());
  for (int round = 0; round < 300; ++round) {
    std::string text = whole;
    for (std::uint64_t hits = 1 + random() % 4; hits > 0; --hits) {
      const std::size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 40);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 400));
          break;
      }
      if (text.empty()) text = "x";
    }
    test::write_file(dir_ / "ledger.jsonl", text);
    const auto report = audit({dir_ / "ledger.jsonl"});
    EXPECT_LE(report.entries, 20U);
    for (const Finding& finding : report.findings) {
      ASSERT_TRUE(finding.offset && *finding.offset <= text.size());
    }
  }
}

TEST(SequenceTest, TellsRepeatsFromLateOnesAndKeepsTheGaps) {
  Sequence sequence;
  using Verdict = Sequence::Verdict;
  EXPECT_EQ(sequence.see(1, {}), Verdict::kNext);
  EXPECT_EQ(sequence.see(10, {}), Verdict::kNext);
  EXPECT_EQ(sequence.see(5, {}), Verdict::kLate);
  EXPECT_EQ(sequence.see(5, {}), Verdict::kRepeat);
  EXPECT_EQ(sequence.see(2, {}), Verdict::kLate);
  EXPECT_EQ(sequence.see(9, {}), Verdict::kLate);
  EXPECT_EQ(sequence.see(1, {}), Verdict::kRepeat);
  EXPECT_EQ(sequence.see(10, {}), Verdict::kRepeat);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> gaps;
  for (const auto& [first, gap] : sequence.gaps()) {
    gaps.emplace_back(first, gap.last);
  }
  EXPECT_EQ(gaps, (std::vector<std::pair<std::uint64_t, std::uint64_t>>{{3, 4}, {6, 8}}));
  EXPECT_TRUE(sequence.lost_within(4, 4));
  EXPECT_TRUE(sequence.lost_within(1, 20));
  EXPECT_FALSE(sequence.lost_within(5, 5));
  EXPECT_FALSE(sequence.lost_within(9, 20));
  EXPECT_FALSE(sequence.complete());
}

TEST(IdSetTest, HoldsWhatWasPutIn) {
  IdSet set;
  for (int i = 0; i < 10'000; i += 2) {
    set.insert(hash_of("id" + std::to_string(i)));
    set.insert(hash_of("id" + std::to_string(i)));
  }
  for (int i = 0; i < 10'000; ++i) {
    ASSERT_EQ(set.contains(hash_of("id" + std::to_string(i))), i % 2 == 0);
  }
  EXPECT_FALSE(set.contains(hash_of("")));
}

}  // namespace
}  // namespace cocoon::ledger
