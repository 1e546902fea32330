// Power loss as the kernel's calls decide it: this program's fdatasync stands before the C library's, for the store and
// for SQLite, and keeps what the disk is sure to hold. Whatever was not synced may be there or not.

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "store_test_support.h"

namespace {

// Called with the path of the file; an error number makes the sync fail with it, unsynced.
using SyncHook = std::function<int(const std::string& path)>;
std::atomic<const SyncHook*> sync_hook{nullptr};

int hooked_sync(int fd, long call) {
  if (const auto* hook = sync_hook.load()) {
    std::error_code unknown;
    const auto path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), unknown);
    if (const int code = (*hook)(path.string()); code != 0) {
      errno = code;
      return -1;
    }
  }
  return static_cast<int>(::syscall(call, fd));
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) int fdatasync(int fd) { return hooked_sync(fd, SYS_fdatasync); }
__attribute__((visibility("default"))) int fsync(int fd) { return hooked_sync(fd, SYS_fsync); }
}

namespace cocoon::store {
namespace {

class HookedSync {
 public:
  explicit HookedSync(SyncHook hook) : hook_(std::move(hook)) { sync_hook = &hook_; }
  ~HookedSync() { sync_hook = nullptr; }
  HookedSync(const HookedSync&) = delete;
  HookedSync& operator=(const HookedSync&) = delete;

 private:
  SyncHook hook_;
};

class StoreSyncTest : public StoreTest {
 protected:
  StoreSyncTest() : StoreTest(memory_folder()) {}

  [[nodiscard]] std::string wal() const { return (root / "db" / "meta.db-wal").string(); }
};

std::string content(const fs::path& path) { return fs::exists(path) ? read_file(path) : std::string(); }

// The node's three files as a power cut may leave them.
struct Disk {
  std::map<std::string, std::string> synced;  // by name: what is sure
  std::string ledger_now;                     // what may be there too
  std::uint64_t acknowledged = 0;             // entries
};

TEST_F(StoreSyncTest, APowerCutAtEverySync) {
  std::vector<Disk> cuts;
  {
    std::map<std::string, std::string> synced;
    std::uint64_t acknowledged = 0;
    bool keep = true;
    const auto cut_here = [&] {
      cuts.push_back({.synced = synced, .ledger_now = content(ledger), .acknowledged = acknowledged});
    };
    const HookedSync hook([&](const std::string& path) {
      if (!path.starts_with(root.string()) || fs::is_directory(path)) return 0;
      const bool checkpoint = path == root / "db" / "meta.db";
      if (keep || checkpoint) cut_here();  // just before
      synced[path] = content(path);
      if (keep || checkpoint) cut_here();  // just after
      return 0;
    });
    const auto store = open(4);
    // Long enough for SQLite to move the WAL into the database and to begin it anew; all cuts would be too many.
    constexpr std::uint64_t kTransitions = 400;
    for (std::uint64_t i = 1; i <= kTransitions; ++i) {
      keep = i <= 9 || i > kTransitions - 5;
      transition(*store, fmt::format("vm-{}", i % 7), 1 + i % 2);
      acknowledged += 1 + i % 2;
      if (keep) cut_here();  // acknowledged
    }
    store->close();
    cut_here();
  }
  const LogCapture log;
  const auto database = (root / "db" / "meta.db").string();
  const auto lay_out = [&](const Disk& cut, std::string_view ledger_text) {
    fs::remove_all(root / "db");
    fs::create_directories(root / "db");
    for (const auto& path : {database, wal()}) {
      if (const auto found = cut.synced.find(path); found != cut.synced.end()) write_file(path, found->second);
    }
    write_file(ledger, ledger_text);
  };
  std::size_t tried = 0;
  std::uint64_t most = 0;
  for (const auto& cut : cuts) {
    // Before the first sync of the database there is no node to lose.
    if (!cut.synced.contains(database)) continue;
    const auto sure = cut.synced.contains(ledger.string()) ? cut.synced.at(ledger.string()) : std::string();
    ASSERT_TRUE(cut.ledger_now.starts_with(sure));
    for (const auto size : {sure.size(), (sure.size() + cut.ledger_now.size()) / 2, cut.ledger_now.size()}) {
      lay_out(cut, std::string_view(cut.ledger_now).substr(0, size));
      const auto store = open();
      const auto seqs = ledger_seqs();
      std::int64_t given = 0;
      for (const auto& row : store->list(Table::kVm)) given += row.generation - 1;
      ASSERT_EQ(seqs, count_up(seqs.size())) << "acknowledged " << cut.acknowledged << ", ledger " << size;
      ASSERT_EQ(static_cast<std::uint64_t>(given), seqs.size()) << "a line without its transition, or the reverse";
      ASSERT_GE(seqs.size(), cut.acknowledged);
      most = std::max(most, cut.acknowledged);
      ++tried;
    }
  }
  EXPECT_EQ(log.count("warning"), 0U) << log.text();
  EXPECT_EQ(most, 600U);
  EXPECT_GT(tried, 100U);
  std::cout << tried << " power cuts\n";
}

TEST_F(StoreSyncTest, ATransitionThatCannotBeMadeDurableIsAnError) {
  const auto store = open();
  transition(*store, "vm-1");
  {
    const HookedSync hook([&](const std::string& path) { return path == wal() ? EIO : 0; });
    EXPECT_TRUE(contains(error_of([&] { transition(*store, "vm-1"); }),
                         "StoreError: sync database journal " + wal() + ": Input/output error"));
    EXPECT_EQ(ledger_seqs(), count_up(1)) << "no line before its transition is durable";
  }
  // Committed it is, with its entry: both or neither.
  EXPECT_EQ(store->find(Table::kVm, "vm-1")->generation, 3);
  EXPECT_EQ(store->pending(), 1U);
  transition(*store, "vm-1");
  EXPECT_EQ(ledger_seqs(), count_up(3));
}

TEST_F(StoreSyncTest, NothingLeavesTheOutboxWhenTheLedgerCannotBeSynced) {
  const LogCapture log;
  auto store = open(2);
  {
    const HookedSync hook([&](const std::string& path) { return path == ledger.string() ? EIO : 0; });
    for (int i = 0; i < 5; ++i) transition(*store, "vm-1");
    EXPECT_EQ(ledger_seqs(), count_up(5));
    EXPECT_EQ(log.count("sync ledger " + ledger.string() + ": Input/output error"), 1U) << log.text();
    EXPECT_TRUE(contains(error_of([&] { store->flush(); }), "LedgerError: sync ledger"));
  }
  // The failed sync may have dropped pages that still read well: every line of them is written once more.
  const auto whole = read_file(ledger);
  const auto rewritten = log.count("written again from the outbox");
  store->flush();
  EXPECT_EQ(read_file(ledger), whole);
  EXPECT_EQ(log.count("written again from the outbox"), rewritten + 1) << log.text();
  fs::remove(ledger);
  transition(*store, "vm-1");
  EXPECT_EQ(ledger_seqs(), count_up(6, 6)) << "now they are pruned";
}

// Rows are read before the sync: one that is committed during it is not covered by it, and has to wait for its own.
TEST_F(StoreSyncTest, ACommitDuringASyncWaitsForTheNextOne) {
  const auto one = open();
  const auto two = open();
  std::thread other;
  std::atomic<int> syncs{0};
  const HookedSync hook([&](const std::string& path) {
    if (path != wal() || ++syncs != 1) return 0;
    other = std::thread([&] { transition(*two, "vm-2"); });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!one->find(Table::kVm, "vm-2") && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    return 0;
  });
  transition(*one, "vm-1");
  other.join();
  EXPECT_EQ(syncs, 2);
  EXPECT_EQ(ledger_seqs(), count_up(2));
}

TEST_F(StoreSyncTest, OneTransitionCostsOneSync) {
  const auto store = open();
  transition(*store, "vm-1");
  std::map<std::string, int> syncs;
  const HookedSync hook([&](const std::string& path) {
    ++syncs[path];
    return 0;
  });
  for (int i = 0; i < 50; ++i) transition(*store, "vm-1");
  EXPECT_EQ(syncs, (std::map<std::string, int>{{wal(), 50}}));
  store->transact([](Transaction& transaction) { static_cast<void>(transaction.find(Table::kVm, "vm-1")); });
  EXPECT_EQ(syncs[wal()], 50) << "a transaction that changed nothing has nothing to sync";
  store->transact([](Transaction& transaction) { transaction.put(Table::kVm, vm_row("vm-2", "vm-2")); });
  EXPECT_EQ(syncs[wal()], 51);
}

}  // namespace
}  // namespace cocoon::store
