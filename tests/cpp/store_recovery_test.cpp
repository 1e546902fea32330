// Recovery: each row of the table in docs/ledger.md, and a ledger cut at every byte that was not synced.

#include <sys/stat.h>

#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

class StoreRecoveryTest : public StoreTest {
 protected:
  StoreRecoveryTest() : StoreTest(memory_folder()) {}

  // Leaves a ledger of `pruned` entries that were pruned and `open_rows` that are in the outbox still, as a process
  // that was killed leaves it.
  void leave_behind(std::uint64_t pruned, std::uint64_t open_rows) {
    in_dying_process([&](MetaStore& store) {
      for (std::uint64_t i = 0; i < pruned; ++i) transition(store, "aaaa1");
      store.flush();
      for (std::uint64_t i = 0; i < open_rows; ++i) transition(store, "aaaa1");
    });
    whole = read_file(ledger);
    lines = lines_of(whole);
    ASSERT_EQ(seqs_of(whole), count_up(pruned + open_rows));
  }
  // The first `count` lines.
  [[nodiscard]] std::string first(std::size_t count) const {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += lines.at(i) + "\n";
    return text;
  }
  [[nodiscard]] std::string line(std::uint64_t seq) const { return lines.at(seq - 1) + "\n"; }
  // What the ledger holds once somebody opened the node.
  [[nodiscard]] std::string reopened() const {
    const auto store = open();
    EXPECT_EQ(store->pending(), 0U);
    return read_file(ledger);
  }

  std::string whole;
  std::vector<std::string> lines;
  LogCapture log;
};

constexpr std::string_view kGoLine =
    R"({"kind":"vm.storage.start","vm_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","reason":"boot","hypervisor":"firecracker",)"
    R"("shape":{"storage_bytes":10737418240},"emitted_at":"2026-01-02T03:04:05.678+08:00"})";

TEST_F(StoreRecoveryTest, AWholeLedgerIsLeftAsItIs) {
  leave_behind(3, 4);
  EXPECT_EQ(reopened(), whole);
  EXPECT_EQ(log.text(), "");
}

TEST_F(StoreRecoveryTest, CutAtEveryByteAfterTheLastSyncedOne) {
  leave_behind(3, 3);
  for (auto size = first(3).size(); size <= whole.size(); ++size) {
    // Each cut starts from what the dead process left: reopening prunes.
    const auto before = root / "before";
    if (!fs::exists(before)) fs::copy(root / "db", before, fs::copy_options::recursive);
    fs::remove_all(root / "db");
    fs::copy(before, root / "db", fs::copy_options::recursive);
    write_file(ledger, whole.substr(0, size));
    ASSERT_EQ(reopened(), whole) << "cut after " << size << " of " << whole.size() << " bytes";
  }
}

TEST_F(StoreRecoveryTest, ATailOfNulBytes) {
  leave_behind(2, 3);
  write_file(ledger, first(3) + std::string(5000, '\0'));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, ALostPageInTheMiddleOfTheTail) {
  leave_behind(2, 5);
  const auto begin = first(3).size() + 20;
  const auto end = first(5).size() + 30;
  auto torn = whole;
  std::fill(torn.begin() + static_cast<std::ptrdiff_t>(begin), torn.begin() + static_cast<std::ptrdiff_t>(end), '\0');
  write_file(ledger, torn);
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, EveryLostPageOfTheTail) {
  leave_behind(1, 4);
  const auto before = root / "before";
  fs::copy(root / "db", before, fs::copy_options::recursive);
  constexpr std::size_t kPage = 64;  // the smaller, the more ways to hit a line
  for (auto begin = first(1).size(); begin < whole.size(); begin += kPage) {
    fs::remove_all(root / "db");
    fs::copy(before, root / "db", fs::copy_options::recursive);
    auto torn = whole;
    const auto end = std::min(begin + kPage, torn.size());
    std::fill(torn.begin() + static_cast<std::ptrdiff_t>(begin), torn.begin() + static_cast<std::ptrdiff_t>(end), '\0');
    write_file(ledger, torn);
    ASSERT_EQ(reopened(), whole) << "lost from " << begin;
  }
}

TEST_F(StoreRecoveryTest, ALineThatDiffersFromItsRowIsWrittenAgain) {
  leave_behind(2, 4);
  auto other = line(4);
  other[other.find("\"cpu\":2") + 6] = '3';
  write_file(ledger, first(3) + other + line(5) + line(6));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, MissingRowsAreAppended) {
  leave_behind(2, 4);
  write_file(ledger, first(3));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, AHoleInTheTailIsFilled) {
  leave_behind(2, 4);
  write_file(ledger, first(3) + line(5) + line(6));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, ALedgerShorterThanWhatWasPruned) {
  leave_behind(5, 2);
  write_file(ledger, first(3));
  EXPECT_EQ(reopened(), first(3) + line(6) + line(7)) << "nothing is invented";
  EXPECT_EQ(log.count("warning ledger " + ledger.string() + ": its last seq is 3, but entries up to 5 were in it"), 1U)
      << log.text();
  const auto store = open();
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{1, 2, 3, 6, 7, 8}));
}

TEST_F(StoreRecoveryTest, ADeletedLedger) {
  leave_behind(5, 2);
  fs::remove(ledger);
  EXPECT_EQ(reopened(), line(6) + line(7));
  EXPECT_EQ(log.count("its last seq is 0, but entries up to 5 were in it"), 1U) << log.text();
}

TEST_F(StoreRecoveryTest, GarbageInTheMiddleIsLeftAlone) {
  leave_behind(2, 4);
  const std::string garbage = "what is this?\n\n{\"seq\":}\n";
  const auto dirty = first(1) + garbage + line(2) + line(3) + garbage + line(4) + line(5) + line(6);
  write_file(ledger, dirty);
  EXPECT_EQ(reopened(), dirty);
}

TEST_F(StoreRecoveryTest, GarbageAfterTheLastLineIsLeftAlone) {
  leave_behind(2, 4);
  write_file(ledger, whole + "garbage\n");
  EXPECT_EQ(reopened(), whole + "garbage\n");
  transition(*open(), "aaaa1");
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6, 0, 7}));
}

TEST_F(StoreRecoveryTest, GarbageWhereRowsAreMissingIsWhatIsLeftOfThem) {
  leave_behind(2, 4);
  write_file(ledger, first(4) + line(5).substr(40));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, AFileOfTheGoEngineIsKept) {
  const std::string go = std::string(kGoLine) + "\n" + std::string(kGoLine) + "\n";
  fs::create_directories(ledger.parent_path());
  write_file(ledger, go);
  {
    const auto store = open();
    transition(*store, "aaaa1", 2);
  }
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{0, 0, 1, 2}));
  EXPECT_TRUE(read_file(ledger).starts_with(go));
  EXPECT_EQ(log.text(), "");
}

TEST_F(StoreRecoveryTest, ALastLineOfTheGoEngineWithoutNewlineIsEnded) {
  fs::create_directories(ledger.parent_path());
  write_file(ledger, kGoLine);
  transition(*open(), "aaaa1");
  EXPECT_TRUE(read_file(ledger).starts_with(std::string(kGoLine) + "\n{"));
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{0, 1}));
}

TEST_F(StoreRecoveryTest, AnUnendedLineThatWasPrunedIsEnded) {
  leave_behind(3, 0);
  write_file(ledger, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, AnUnendedLineThatIsInTheOutboxIsWrittenAgain) {
  leave_behind(1, 2);
  write_file(ledger, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(reopened(), whole);
}

TEST_F(StoreRecoveryTest, LinesOfOthersBehindACutAreKept) {
  leave_behind(1, 3);
  const auto go = std::string(kGoLine) + "\n";
  auto other = line(3);
  other[other.find("\"cpu\":2") + 6] = '3';
  write_file(ledger, first(2) + go + other + go + "garbage\n" + line(4));
  EXPECT_EQ(reopened(), first(2) + go + go + line(3) + line(4));
}

TEST_F(StoreRecoveryTest, AnotherNodesLedgerIsLeftAndWarnedOf) {
  leave_behind(0, 20);
  const auto foreign = whole;
  fs::remove_all(root / "db");
  fs::remove(ledger);
  leave_behind(2, 2);
  write_file(ledger, foreign);
  EXPECT_EQ(reopened(), foreign + line(3) + line(4));
  EXPECT_EQ(log.count("warning ledger " + ledger.string() + ": its last seq is 20, but this node gave only 4"), 1U)
      << log.text();
  transition(*open(), "aaaa1");
  EXPECT_EQ(lines_of(read_file(ledger)).size(), 23U);
  EXPECT_EQ(ledger_seqs().back(), 5U);
}

TEST_F(StoreRecoveryTest, AnotherNodesLedgerPutInPlaceWhileOpen) {
  leave_behind(0, 20);
  const auto foreign = whole;
  fs::remove_all(root / "db");
  fs::remove(ledger);
  const auto store = open();
  transition(*store, "aaaa1");
  write_file(ledger, foreign);  // the same inode, and longer
  transition(*store, "aaaa1");
  EXPECT_EQ(lines_of(read_file(ledger)).size(), 22U);
  EXPECT_TRUE(read_file(ledger).starts_with(foreign));
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs().back(), 3U);
}

TEST_F(StoreRecoveryTest, ALedgerReplacedWhileOpenIsFilledAgain) {
  const auto store = open();
  transition(*store, "aaaa1", 3);
  whole = read_file(ledger);
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(4)) << "nothing had been pruned";
  fs::rename(ledger, root / "rotated");
  write_file(ledger, "");
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(5));
  struct stat status{};
  fs::remove(ledger);
  transition(*store, "aaaa1");
  ASSERT_EQ(::stat(ledger.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
}

TEST_F(StoreRecoveryTest, AnotherWritersTornLineIsRepairedByTheNextDrain) {
  const auto store = open();
  transition(*store, "aaaa1");
  append_file(ledger, R"({"kind":"vm.compute.start","vm_id":"x)");
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(2));
}

TEST_F(StoreRecoveryTest, RowsOfACrashedProcessComeBeforeTheOpenersOwn) {
  fs::create_directories(ledger);  // so that nothing is drained
  in_dying_process([](MetaStore& store) { transition(store, "aaaa1", 3); });
  fs::remove(ledger);
  const auto store = open();
  EXPECT_EQ(ledger_seqs(), count_up(3));
  transition(*store, "aaaa2");
  EXPECT_EQ(ledger_seqs(), count_up(4));
}

TEST_F(StoreRecoveryTest, ANewDatabaseBesideAnOldLedgerAndItsNote) {
  const auto drain_twice = [&](const std::string& vm) {  // two processes in turn leave notes
    const auto one = open();
    Child child([&] {
      transition(*open(), vm);
      return 0;
    });
    EXPECT_EQ(child.wait(), 0);
    transition(*one, vm);
    transition(*one, vm);
  };
  drain_twice("aaaa1");
  ASSERT_TRUE(fs::exists(root / "db" / "ledger.note"));
  fs::remove(root / "db" / "meta.db");
  drain_twice("bbbb1");
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{1, 2, 3, 1, 2, 3}));
}

TEST_F(StoreRecoveryTest, ManyRowsAreComparedInBatches) {
  in_dying_process(
      [](MetaStore& store) {
        for (int i = 0; i < 10; ++i) transition(store, "aaaa1", 500);
      },
      1'000'000);
  whole = read_file(ledger);
  ASSERT_EQ(seqs_of(whole), count_up(5000));
  auto torn = whole;
  torn[whole.size() / 2] = '\0';
  write_file(ledger, torn.substr(0, torn.size() - 100));
  EXPECT_EQ(reopened(), whole);
}

}  // namespace
}  // namespace cocoon::store
