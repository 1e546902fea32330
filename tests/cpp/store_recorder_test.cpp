// Recorders: a ledger that fails and comes back, Capture, a subclass that throws or calls the store, metering off.

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

class StoreRecorderTest : public StoreTest {
 protected:
  LogCapture log;
};

// Does what it is told to with each entry, then keeps it.
class ScriptedRecorder final : public metering::Recorder {
 public:
  explicit ScriptedRecorder(bool calls_out = false) : calls_out_(calls_out) {}
  void emit(const metering::Entry& entry) override {
    if (script) script(entry);
    const std::lock_guard lock(mutex_);
    seqs_.push_back(entry.seq.value_or(0));
  }
  [[nodiscard]] bool calls_out() const override { return calls_out_; }
  [[nodiscard]] std::vector<std::uint64_t> seqs() const {
    const std::lock_guard lock(mutex_);
    return seqs_;
  }
  std::function<void(const metering::Entry&)> script;

 private:
  bool calls_out_;
  mutable std::mutex mutex_;
  std::vector<std::uint64_t> seqs_;
};

template <typename Condition>
bool within_deadline(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST_F(StoreRecorderTest, ALedgerThatIsAFolderGetsItsEntriesLater) {
  fs::create_directories(ledger);
  const auto store = open();
  for (int i = 0; i < 5; ++i) transition(*store, "aaaa1");
  EXPECT_EQ(store->pending(), 5U);
  EXPECT_EQ(log.count("warning open ledger " + ledger.string() + ": Is a directory"), 1U) << log.text();
  EXPECT_TRUE(contains(error_of([&] { store->flush(); }), "LedgerError: open ledger " + ledger.string()));
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(store->pending(), 0U);
  EXPECT_EQ(ledger_seqs(), count_up(6));
  // It works again: the next failure is news.
  fs::rename(ledger, root / "aside");
  fs::create_directories(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(log.count("Is a directory"), 2U) << log.text();
  EXPECT_EQ(store->pending(), 1U);
}

TEST_F(StoreRecorderTest, EntriesThatNeverFoundALedgerWaitForTheNextOpener) {
  fs::create_directories(ledger);
  {
    transition(*open(), "aaaa1", 3);
  }
  EXPECT_EQ(log.count("entries wait in the node's database"), 2U);  // when it happened, and at close
  fs::remove(ledger);
  const auto store = open();
  EXPECT_EQ(ledger_seqs(), count_up(3));
}

TEST_F(StoreRecorderTest, ManyWaitingEntriesArriveInOrder) {
  fs::create_directories(ledger);
  const auto store = open(100);
  for (int i = 0; i < 20; ++i) transition(*store, "aaaa1", 500);  // more than one batch of rows
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(10001));
  EXPECT_EQ(store->pending(), 0U);
}

TEST_F(StoreRecorderTest, ALedgerThatMayNotBeWritten) {
  const bool as_root = ::getuid() == 0;
  // Root may write everything but what the file system refuses, so root's ledger lies in a file's place.
  fs::create_directories(root / "metering");
  if (as_root) {
    fs::remove(root / "metering");
    write_file(root / "metering", "");
  } else {
    fs::permissions(root / "metering", fs::perms(0500));
  }
  const auto store = open();
  transition(*store, "aaaa1");
  transition(*store, "aaaa1");
  EXPECT_EQ(store->pending(), 2U);
  EXPECT_EQ(log.count("warning"), 1U) << log.text();
  EXPECT_EQ(log.count(as_root ? "Not a directory" : "Permission denied"), 1U) << log.text();
  if (as_root)
    fs::remove(root / "metering");
  else
    fs::permissions(root / "metering", fs::perms(0700));
  store->flush();
  EXPECT_EQ(ledger_seqs(), count_up(2));
}

// A tmpfs that is gone when the test is.
class Tmpfs {
 public:
  Tmpfs(const fs::path& path, const char* options) : path_(path.string()) {
    fs::create_directories(path);
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options) == 0;
    error_ = mounted_ ? 0 : errno;
  }
  ~Tmpfs() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  Tmpfs(const Tmpfs&) = delete;
  Tmpfs& operator=(const Tmpfs&) = delete;
  [[nodiscard]] bool mounted() const { return mounted_; }
  [[nodiscard]] std::string reason() const { return system_message("no tmpfs can be mounted here", error_); }

 private:
  std::string path_;
  bool mounted_ = false;
  int error_ = 0;
};

TEST_F(StoreRecorderTest, AFullDiskDelaysEntriesAndLosesNone) {
  const Tmpfs disk(root / "metering", "size=64k,mode=0700");
  if (!disk.mounted()) GTEST_SKIP() << disk.reason();
  const auto store = open(64);
  constexpr std::uint64_t kTransitions = 400;  // of about 280 bytes: more than fits
  for (std::uint64_t i = 0; i < kTransitions; ++i) transition(*store, "aaaa1");
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, kTransitions + 1);
  EXPECT_EQ(log.count("No space left on device"), 1U) << log.text();
  const auto waiting = store->pending();
  EXPECT_GT(waiting, 50U);
  const auto full = read_file(ledger);
  EXPECT_EQ(full.back(), '\n') << "a partial write is cut back";
  EXPECT_EQ(seqs_of(full), count_up(kTransitions - waiting));
  EXPECT_TRUE(contains(error_of([&] { store->flush(); }), "No space left on device"));

  ASSERT_EQ(::mount("tmpfs", (root / "metering").c_str(), "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, "size=1m"), 0);
  transition(*store, "aaaa1");
  EXPECT_EQ(store->pending(), 0U);
  EXPECT_EQ(ledger_seqs(), count_up(kTransitions + 1));
  store->close();
}

TEST_F(StoreRecorderTest, CaptureKeepsEntriesInOrder) {
  const auto capture = std::make_shared<metering::CaptureRecorder>();
  const auto store = open_with(capture);
  transition(*store, "aaaa1", 2);
  transition(*store, "aaaa2");
  std::vector<std::uint64_t> seqs;
  for (const auto& entry : capture->entries()) seqs.push_back(*entry.seq);
  EXPECT_EQ(seqs, count_up(3));
  EXPECT_EQ(capture->entries()[2].vm_id, "aaaa2");
  EXPECT_EQ(store->pending(), 0U);
  EXPECT_EQ(store->recorder(), capture);
}

TEST_F(StoreRecorderTest, ARecorderThatThrowsIsOfferedTheEntryAgain) {
  const auto recorder = std::make_shared<ScriptedRecorder>();
  bool broken = false;
  recorder->script = [&](const metering::Entry& entry) {
    if (broken && entry.seq >= 3U) throw std::runtime_error("no room");
  };
  const auto store = open_with(recorder);
  transition(*store, "aaaa1");
  broken = true;
  for (int i = 0; i < 4; ++i) transition(*store, "aaaa1");
  EXPECT_EQ(recorder->seqs(), count_up(2));
  EXPECT_EQ(store->pending(), 3U);
  EXPECT_EQ(log.count("warning no room"), 1U) << log.text();
  EXPECT_TRUE(contains(error_of([&] { store->flush(); }), "Error: the recorder refused an entry: no room"));
  broken = false;
  store->flush();
  EXPECT_EQ(recorder->seqs(), count_up(5));
  broken = true;
  transition(*store, "aaaa1");
  EXPECT_EQ(log.count("no room"), 2U) << log.text();
  broken = false;
  transition(*store, "aaaa1");
  EXPECT_EQ(recorder->seqs(), count_up(7));
}

TEST_F(StoreRecorderTest, ARecorderMayThrowAnything) {
  const auto recorder = std::make_shared<ScriptedRecorder>();
  recorder->script = [](const metering::Entry&) { throw 7; };  // NOLINT
  const auto store = open_with(recorder);
  transition(*store, "aaaa1");
  EXPECT_EQ(store->pending(), 1U);
  EXPECT_EQ(log.count("no std::exception"), 1U);
}

TEST_F(StoreRecorderTest, ARecorderMayUseTheStore) {
  const auto recorder = std::make_shared<ScriptedRecorder>();
  MetaStore* store_in_emit = nullptr;
  std::vector<std::string> refused;
  recorder->script = [&](const metering::Entry& entry) {
    EXPECT_TRUE(store_in_emit->find(Table::kVm, entry.vm_id));
    if (*entry.seq <= 5) transition(*store_in_emit, "nested", 2);  // its entries come after this one
    refused.push_back(error_of([&] { store_in_emit->flush(); }));
    refused.push_back(error_of([&] { store_in_emit->close(); }));
  };
  const auto store = open_with(recorder);
  store_in_emit = store.get();
  transition(*store, "aaaa1");
  EXPECT_EQ(recorder->seqs(), count_up(11));
  EXPECT_EQ(store->pending(), 0U);
  EXPECT_EQ(store->find(Table::kVm, "nested")->generation, 11);
  EXPECT_TRUE(contains(refused[0], "from inside its recorder's emit"));
  EXPECT_TRUE(contains(refused[1], "from inside a call of it"));
}

TEST_F(StoreRecorderTest, OtherThreadsWaitForTheirDelivery) {
  const auto recorder = std::make_shared<ScriptedRecorder>();
  std::atomic<bool> delivering{false};
  std::atomic<bool> go_on{false};
  recorder->script = [&](const metering::Entry&) {
    delivering = true;
    EXPECT_TRUE(within_deadline([&] { return go_on.load(); }));
  };
  const auto store = open_with(recorder);
  std::thread first([&] { transition(*store, "aaaa1"); });
  ASSERT_TRUE(within_deadline([&] { return delivering.load(); }));
  std::atomic<bool> second_done{false};
  std::thread second([&] {
    transition(*store, "aaaa2");
    EXPECT_EQ(recorder->seqs(), count_up(2));
    second_done = true;
  });
  ASSERT_TRUE(within_deadline([&] { return store->find(Table::kVm, "aaaa2").has_value(); }));
  EXPECT_FALSE(second_done);
  go_on = true;
  first.join();
  second.join();
}

TEST_F(StoreRecorderTest, NobodyWaitsForARecorderThatCallsOut) {
  const auto recorder = std::make_shared<ScriptedRecorder>(true);
  const auto store = open_with(recorder);
  std::thread other;
  recorder->script = [&](const metering::Entry& entry) {
    if (*entry.seq != 1) return;
    // Another thread's transition ends while this call goes on: here it would wait for us for ever.
    other = std::thread([&] { transition(*store, "aaaa2"); });
    other.join();
  };
  transition(*store, "aaaa1");
  EXPECT_EQ(recorder->seqs(), count_up(2));
  EXPECT_EQ(store->pending(), 0U);
}

TEST_F(StoreRecorderTest, AForkInsideEmitLeavesTheDatabaseToTheParent) {
  const auto recorder = std::make_shared<ScriptedRecorder>(true);
  const auto store = open_with(recorder);
  pid_t child = -1;
  recorder->script = [&](const metering::Entry&) { child = ::fork(); };
  const auto error = error_of([&] { transition(*store, "aaaa1"); });
  if (child == 0) ::_exit(contains(error, "forked inside the recorder's emit") ? 0 : 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(error, "");
  EXPECT_EQ(recorder->seqs(), count_up(1));
  EXPECT_EQ(store->pending(), 0U);
}

TEST_F(StoreRecorderTest, WhatACrashedProcessLeftIsDeliveredFirst) {
  Child child([&] {
    const auto recorder = std::make_shared<ScriptedRecorder>();
    recorder->script = [](const metering::Entry& entry) {
      if (entry.seq == 3U) ::kill(::getpid(), SIGKILL);
    };
    const auto store = open_with(recorder);
    transition(*store, "aaaa1");
    transition(*store, "aaaa1", 3);
    return 1;
  });
  ASSERT_EQ(child.wait(), 128 + SIGKILL);
  const auto capture = std::make_shared<metering::CaptureRecorder>();
  const auto store = open_with(capture);
  transition(*store, "aaaa1");
  std::vector<std::uint64_t> seqs;
  for (const auto& entry : capture->entries()) seqs.push_back(*entry.seq);
  EXPECT_EQ(seqs, count_up(5, 2)) << "2 was taken by the dead, and comes once more";
}

TEST_F(StoreRecorderTest, WithoutMeteringNumbersGoOnAndRowsOfOthersStay) {
  fs::create_directories(ledger);
  {
    transition(*open(), "aaaa1", 2);
  }  // they wait for their ledger
  {
    const auto store = open_with(nullptr);
    EXPECT_NE(dynamic_cast<metering::NopRecorder*>(store->recorder().get()), nullptr);
    store->transact([](Transaction& transaction) {
      EXPECT_EQ(transaction.next_seq(), 3U);
      transaction.append({entry_for(transaction, "aaaa1")});
      EXPECT_EQ(transaction.next_seq(), 4U);
    });
    EXPECT_THROW(store->transact([](Transaction& transaction) {
      transaction.append({entry_for(transaction, "aaaa1")});
      throw std::runtime_error("no");
    }),
                 std::runtime_error);
    transition(*store, "aaaa1");
    EXPECT_EQ(store->pending(), 0U);
    store->flush();
  }
  fs::remove(ledger);
  const auto store = open();
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), (std::vector<std::uint64_t>{1, 2, 5}));
  EXPECT_EQ(store->pending(), 0U);
}

TEST_F(StoreRecorderTest, RowsLeaveTheOutboxInBatches) {
  const auto store = open(10);
  for (int i = 0; i < 25; ++i) transition(*store, "aaaa1");
  store->flush();
  // A process that finds the ledger gone can only give back what was not pruned: here nothing.
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(26, 26));
  EXPECT_EQ(log.count("lines were taken away"), 1U) << log.text();
  for (int i = 0; i < 9; ++i) transition(*store, "aaaa1");
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(36, 36)) << "26 to 35 were pruned as the tenth of them came";
  transition(*store, "aaaa1");
  fs::remove(ledger);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(38, 36)) << "not pruned yet, so appended again";
}

}  // namespace
}  // namespace cocoon::store
