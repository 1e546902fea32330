// Many threads and many processes on one root.

#include <atomic>
#include <fstream>
#include <map>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

constexpr int kWriters = 8;
constexpr int kTransitions = 200;

class StoreConcurrencyTest : public StoreTest {
 protected:
  // seq 1…n without a gap, each line once, each VM's in its own number.
  void check_ledger(std::uint64_t count) const {
    const auto text = read_file(ledger);
    ASSERT_EQ(seqs_of(text), count_up(count));
    std::map<std::string, int> lines_of_vm;
    for (const auto& line : lines_of(text)) ++lines_of_vm[metering::from_json(line).vm_id];
    ASSERT_EQ(lines_of_vm.size(), std::size_t{kWriters});
    for (const auto& [vm, lines] : lines_of_vm) EXPECT_EQ(lines, kTransitions) << vm;
  }
};

TEST_F(StoreConcurrencyTest, EightProcesses) {
  std::vector<Child> children;
  for (int i = 0; i < kWriters; ++i) {
    children.emplace_back([&, i] {
      const auto store = open(64);
      for (int n = 0; n < kTransitions; ++n) {
        transition(*store, fmt::format("vm-{}", i));
        if (n % 50 == 0) store->flush();
      }
      return store->find(Table::kVm, fmt::format("vm-{}", i))->generation == kTransitions + 1 ? 0 : 1;
    });
  }
  for (auto& child : children) EXPECT_EQ(child.wait(), 0);
  check_ledger(kWriters * kTransitions);
}

TEST_F(StoreConcurrencyTest, EightThreads) {
  const auto store = open(64);
  std::vector<std::thread> threads;
  for (int i = 0; i < kWriters; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < kTransitions; ++n) {
        transition(*store, fmt::format("vm-{}", i));
        if (n % 20 != 0) continue;
        EXPECT_TRUE(store->find(Table::kVm, fmt::format("vm-{}", i)));
        EXPECT_LE(store->pending(), std::uint64_t{kWriters});
        store->flush();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  check_ledger(kWriters * kTransitions);
}

TEST_F(StoreConcurrencyTest, ThreadsOfProcessesOnOneVm) {
  std::vector<Child> children;
  for (int i = 0; i < 3; ++i) {
    children.emplace_back([&] {
      const auto store = open(32);
      std::vector<std::thread> threads;
      for (int t = 0; t < 3; ++t) {
        threads.emplace_back([&] {
          for (int n = 0; n < 40; ++n) transition(*store, "shared");
        });
      }
      for (auto& thread : threads) thread.join();
      return 0;
    });
  }
  for (auto& child : children) EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(ledger_seqs(), count_up(360));
  EXPECT_EQ(open()->find(Table::kVm, "shared")->generation, 361);
}

TEST_F(StoreConcurrencyTest, TwoStoresOfOneProcessShareTheNode) {
  const auto one = open(16);
  const auto two = open(16);
  std::thread other([&] {
    for (int n = 0; n < 60; ++n) transition(*two, "vm-2");
  });
  for (int n = 0; n < 60; ++n) transition(*one, "vm-1");
  other.join();
  EXPECT_EQ(ledger_seqs(), count_up(120));
  EXPECT_EQ(one->list(Table::kVm).size(), 2U);
}

TEST_F(StoreConcurrencyTest, EightThreadsAndARecorderThatIsCalled) {
  const auto capture = std::make_shared<metering::CaptureRecorder>();
  const auto store = open_with(capture);
  std::vector<std::thread> threads;
  for (int i = 0; i < kWriters; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 50; ++n) transition(*store, fmt::format("vm-{}", i));
    });
  }
  for (auto& thread : threads) thread.join();
  std::vector<std::uint64_t> seqs;
  for (const auto& entry : capture->entries()) seqs.push_back(*entry.seq);
  EXPECT_EQ(seqs, count_up(kWriters * 50));
  EXPECT_EQ(store->pending(), 0U);
}

TEST_F(StoreConcurrencyTest, LockFilesThatSomebodyRemovesAreMadeAgain) {
  const auto one = open(16);
  const auto two = open(16);
  const auto work = [](MetaStore& store, const char* vm) {
    for (int n = 0; n < 40; ++n) transition(store, vm);
  };
  for (int round = 0; round < 3; ++round) {
    std::thread other([&] { work(*two, "vm-2"); });
    work(*one, "vm-1");
    other.join();
    fs::remove(root / "db" / "store.lock");
    std::ofstream(root / "db" / "other").close();
    fs::rename(root / "db" / "other", root / "db" / "ledger.lock");  // and one that is replaced
  }
  EXPECT_EQ(ledger_seqs(), count_up(240));
}

TEST_F(StoreConcurrencyTest, ManyReadersBesideAWriter) {
  const auto store = open();
  transition(*store, "vm-1");
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 12; ++i) {  // more than there are connections
    readers.emplace_back([&] {
      std::int64_t seen = 0;
      while (!stop) {
        const auto generation = store->resolve(Table::kVm, "vm-1").generation;
        EXPECT_GE(generation, seen);
        seen = generation;
      }
    });
  }
  for (int n = 0; n < 100; ++n) transition(*store, "vm-1");
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(store->find(Table::kVm, "vm-1")->generation, 102);
}

}  // namespace
}  // namespace cocoon::store
