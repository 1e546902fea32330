// Crashes: processes killed at random points, and power cuts modelled on copies of the files.

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

// A counter that a child raises and its parent reads after the child's death.
class Shared {
 public:
  Shared()
      : value_(static_cast<std::atomic<std::uint64_t>*>(::mmap(
            nullptr, sizeof(std::atomic<std::uint64_t>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (value_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  ~Shared() { ::munmap(value_, sizeof(std::atomic<std::uint64_t>)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  std::atomic<std::uint64_t>& operator*() const { return *value_; }

 private:
  std::atomic<std::uint64_t>* value_;
};

class StoreCrashTest : public StoreTest {
 protected:
  explicit StoreCrashTest(const fs::path& base = fs::temp_directory_path()) : StoreTest(base) {}

  // The promise: the ledger is 1…n without gap or repeat, the records say n, and what was acknowledged is there.
  void check_promise(MetaStore& store, std::uint64_t acknowledged) const {
    const auto seqs = ledger_seqs();
    ASSERT_EQ(seqs, count_up(seqs.size()));
    std::int64_t given = 0;
    for (const auto& row : store.list(Table::kVm)) given += row.generation - 1;
    ASSERT_EQ(static_cast<std::uint64_t>(given), seqs.size()) << "records and ledger differ";
    ASSERT_GE(seqs.size(), acknowledged);
    ASSERT_EQ(store.pending(), 0U);
  }
};

TEST_F(StoreCrashTest, KilledAtRandomPoints) {
  std::mt19937_64 random(test_seed());
  const Shared acknowledged;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(4);
  int rounds = 0;
  std::uint64_t killed_inside = 0;
  while (std::chrono::steady_clock::now() < end && rounds < 200) {
    const Shared begun;
    const auto kill_after = 1 + random() % 40;
    const auto spin = std::chrono::microseconds(random() % 700);
    Child child([&] {
      const auto store = open(1 + random() % 20);  // so that some die in a prune
      for (;;) {
        ++*begun;
        const auto entries = 1 + *begun % 3;
        transition(*store, fmt::format("vm-{}", *begun % 5), entries);
        *acknowledged += entries;
      }
      return 0;
    });
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (*begun < kill_after && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    const auto until = std::chrono::steady_clock::now() + spin;
    while (std::chrono::steady_clock::now() < until) {
    }
    ASSERT_EQ(child.kill(), 128 + SIGKILL);
    ASSERT_GE(*begun, kill_after) << "the child got nowhere";
    const auto store = open();
    const auto total = ledger_seqs().size();
    if (total > *acknowledged) ++killed_inside;
    check_promise(*store, *acknowledged);
    if (HasFatalFailure()) return;
    *acknowledged = total;
    ++rounds;
  }
  std::cout << rounds << " kills, " << killed_inside << " between commit and acknowledgement\n";
  EXPECT_GT(rounds, 5);
}

TEST_F(StoreCrashTest, OneOfSeveralProcessesIsKilled) {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 6; ++round) {
    const Shared begun;
    const auto work = [&](int who, int count) {
      return [&, who, count] {
        const auto store = open(16);
        for (int i = 0; i != count; ++i) {
          ++*begun;
          transition(*store, fmt::format("vm-{}", who));
        }
        return 0;
      };
    };
    Child victim(work(0, -1));
    Child second(work(1, 40));
    Child third(work(2, 40));
    const auto kill_at = 5 + random() % 60;
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (*begun < kill_at && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    ASSERT_EQ(victim.kill(), 128 + SIGKILL);
    ASSERT_EQ(second.wait(), 0);
    ASSERT_EQ(third.wait(), 0);
    const auto store = open();
    check_promise(*store, 80);
    if (HasFatalFailure()) return;
  }
}

// Power cuts. The files are copied between transitions, as the disk may hold them after a cut at that moment: any
// prefix of the WAL's frames not shorter than its last sync, and any prefix of the ledger's bytes not shorter than its.
class StorePowerCutTest : public StoreCrashTest {
 protected:
  StorePowerCutTest() : StoreCrashTest(memory_folder()) {}
};

// The bytes of the WAL up to the end of each transaction in it: 32 bytes of header, then frames of 24 + page; a frame
// whose second word is not 0 is a commit. Frames of a former round of the file have another salt and do not count.
std::vector<std::size_t> commit_borders(const std::string& wal) {
  constexpr std::size_t kHeader = 32;
  constexpr std::size_t kFrame = 24 + 4096;
  std::vector<std::size_t> borders{0};
  for (std::size_t at = kHeader; at + kFrame <= wal.size(); at += kFrame) {
    if (wal.compare(at + 8, 8, wal, 16, 8) != 0) break;
    if (wal.compare(at + 4, 4, std::string(4, '\0')) != 0) borders.push_back(at + kFrame);
  }
  return borders;
}

TEST_F(StorePowerCutTest, EveryPrefixOfWhatWasNotSynced) {
  struct Cut {
    std::string database;
    std::string wal;
    std::string ledger;
    std::size_t synced_wal;     // bytes
    std::size_t synced_ledger;  // bytes
    std::uint64_t acknowledged;
  };
  std::vector<Cut> cuts;
  const LogCapture quiet;
  {
    const auto store = open(4);
    std::size_t synced_ledger = 0;
    std::size_t written = 0;  // of the WAL
    for (std::uint64_t i = 1; i <= 11; ++i) {
      transition(*store, fmt::format("vm-{}", i % 3));
      const auto text = read_file(ledger);
      if (i % 4 == 0) synced_ledger = text.size();  // pruned: the ledger was synced
      auto wal = read_file(root / "db" / "meta.db-wal");
      wal.resize(commit_borders(wal).back());  // behind it, what is kept ready for more
      // The drain synced this transition; a prune that came after it was not.
      const auto borders = commit_borders(wal);
      const auto synced = i == 1 ? borders.end() - 1 : std::upper_bound(borders.begin(), borders.end(), written);
      ASSERT_NE(synced, borders.end()) << "the WAL began anew: too many transitions for this test";
      if (i > 1) {
        // Between its commit and its drain nothing of it was synced, and its line was not there.
        auto between = cuts.back();
        between.wal = wal.substr(0, *synced);
        cuts.push_back(std::move(between));
      }
      cuts.push_back({.database = read_file(root / "db" / "meta.db"),
                      .wal = wal,
                      .ledger = text,
                      .synced_wal = *synced,
                      .synced_ledger = synced_ledger,
                      .acknowledged = i});
      written = borders.back();
    }
  }
  std::size_t tried = 0;
  for (const auto& cut : cuts) {
    std::vector<std::size_t> wal_sizes{cut.synced_wal};
    constexpr std::size_t kFrame = 24 + 4096;
    for (auto size = cut.synced_wal + kFrame; size <= cut.wal.size(); size += kFrame) {
      wal_sizes.push_back(size);
      wal_sizes.push_back(size - kFrame / 2);  // a frame torn in the middle
    }
    std::vector<std::size_t> ledger_sizes{cut.synced_ledger, cut.ledger.size()};
    for (auto size = cut.synced_ledger; size < cut.ledger.size(); size += 97) ledger_sizes.push_back(size);
    for (const auto wal_size : wal_sizes) {
      for (const auto ledger_size : ledger_sizes) {
        fs::remove_all(root / "db");
        fs::create_directories(root / "db");
        write_file(root / "db" / "meta.db", cut.database);
        write_file(root / "db" / "meta.db-wal", std::string_view(cut.wal).substr(0, wal_size));
        write_file(ledger, std::string_view(cut.ledger).substr(0, ledger_size));
        const auto store = open();
        check_promise(*store, cut.acknowledged);
        transition(*store, "after");
        check_promise(*store, cut.acknowledged + 1);
        ASSERT_FALSE(HasFatalFailure()) << "acknowledged " << cut.acknowledged << ", WAL " << wal_size << " of "
                                        << cut.wal.size() << ", ledger " << ledger_size << " of " << cut.ledger.size();
        ++tried;
      }
    }
  }
  std::cout << tried << " power cuts\n";
  EXPECT_GT(tried, 100U);
}

// The order of the drain's steps as the kernel sees it: a line may be appended only when a sync of the WAL came after
// its transaction. Without the sync, this cut loses a transition whose line stays.
TEST_F(StorePowerCutTest, ALineWithoutItsTransitionIsNoticed) {
  std::string database;
  std::string wal;
  {
    const auto store = open();
    transition(*store, "vm-1");
    database = read_file(root / "db" / "meta.db");
    wal = read_file(root / "db" / "meta.db-wal");
    transition(*store, "vm-1", 3);
  }
  write_file(root / "db" / "meta.db", database);
  write_file(root / "db" / "meta.db-wal", wal);
  const LogCapture log;
  const auto store = open();
  EXPECT_EQ(log.count("its last seq is 4, but this node gave only 1"), 1U) << log.text();
}

}  // namespace
}  // namespace cocoon::store
