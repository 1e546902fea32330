// Transactions: gapless numbers, all or nothing, moments, misuse, forks and closing.

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

class StoreCommitTest : public StoreTest {};

struct Abort {};

class SteppedClock final : public system::Clock {
 public:
  [[nodiscard]] std::int64_t wall_ns() const override { return wall; }
  [[nodiscard]] std::int64_t uptime_ns() const override { return uptime; }
  [[nodiscard]] std::string boot_id() const override { return "0badcafe"; }
  std::int64_t wall = 1'700'000'000'000'000'000;
  std::int64_t uptime = 5'000;
};

TEST_F(StoreCommitTest, TransitionAndLineComeTogether) {
  const auto store = open();
  transition(*store, "aaaa1");
  transition(*store, "aaaa1", 3);
  EXPECT_EQ(ledger_seqs(), count_up(4));
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, 5);
  EXPECT_EQ(store->pending(), 0U);
  const auto first = metering::from_json(lines_of(read_file(ledger)).front());
  EXPECT_EQ(first.vm_id, "aaaa1");
  EXPECT_EQ(read_file(ledger).back(), '\n');
}

TEST_F(StoreCommitTest, RollbackGivesItsNumbersBack) {
  const auto store = open();
  transition(*store, "aaaa1");
  for (int i = 0; i < 3; ++i) {
    EXPECT_THROW(store->transact([](Transaction& transaction) {
      EXPECT_EQ(transaction.next_seq(), 2U);
      transaction.put(Table::kVm, vm_row("gone", "gone"));
      transaction.append({entry_for(transaction, "gone"), entry_for(transaction, "gone", 1)});
      EXPECT_EQ(transaction.next_seq(), 4U);
      throw Abort();
    }),
                 Abort);
  }
  EXPECT_FALSE(store->find(Table::kVm, "gone"));
  transition(*store, "aaaa1");
  store->flush();  // numbers go on although no row is left
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(3));
}

TEST_F(StoreCommitTest, NumbersGoOnAfterReopening) {
  transition(*open(), "aaaa1", 2);
  transition(*open(), "aaaa1", 1);
  EXPECT_EQ(ledger_seqs(), count_up(3));
}

TEST_F(StoreCommitTest, RefusesEntriesWithOtherNumbers) {
  const auto store = open();
  const auto append = [&](std::optional<std::uint64_t> seq) {
    return error_of([&] {
      store->transact([&](Transaction& transaction) {
        auto entry = entry_for(transaction, "aaaa1");
        entry.seq = seq;
        transaction.append({entry});
      });
    });
  };
  EXPECT_TRUE(contains(append(2), "its seq is 2, the next one of this node is 1"));
  EXPECT_TRUE(contains(append(0), "its seq is 0"));
  EXPECT_TRUE(contains(append(std::nullopt), "its seq is absent"));
  EXPECT_EQ(append(1), "");
  EXPECT_EQ(ledger_seqs(), count_up(1));
}

TEST_F(StoreCommitTest, AnEntryThatCannotBeWrittenRollsBack) {
  const auto store = open();
  const auto bad = [&] {
    store->transact([](Transaction& transaction) {
      transaction.put(Table::kVm, vm_row("aaaa1", "web"));
      auto entry = entry_for(transaction, "aaaa1");
      entry.shape.cpu = -1;
      transaction.append({entry});
    });
  };
  EXPECT_TRUE(contains(error_of(bad), "InvalidArgument"));
  EXPECT_FALSE(store->find(Table::kVm, "aaaa1"));
  EXPECT_EQ(read_file(ledger), "");
}

TEST_F(StoreCommitTest, TheMomentIsReadInsideTheTransaction) {
  SteppedClock clock;
  MetaStore store({.root = root, .recorder = nullptr, .clock = &clock});
  store.transact([&](Transaction& transaction) {
    EXPECT_EQ(transaction.moment().wall_ns, 1'700'000'000'000'000'000);
    EXPECT_EQ(transaction.moment().uptime_ns, 5'000);
    EXPECT_EQ(transaction.moment().boot_id, "0badcafe");
    clock.uptime = 6'000;
    EXPECT_EQ(transaction.moment().uptime_ns, 5'000);
  });
  store.transact([](Transaction& transaction) { EXPECT_EQ(transaction.moment().uptime_ns, 6'000); });
}

TEST_F(StoreCommitTest, SeqOrderIsTimeOrderAcrossThreads) {
  const auto store = open();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 25; ++n) transition(*store, fmt::format("vm-{}", i));
    });
  }
  for (auto& thread : threads) thread.join();
  std::int64_t before = 0;
  for (const auto& line : lines_of(read_file(ledger))) {
    const auto at = *metering::from_json(line).uptime_ns;
    EXPECT_GE(at, before);
    before = at;
  }
}

TEST_F(StoreCommitTest, ATransactionInsideAnotherIsRefused) {
  const auto store = open();
  const auto nested = [&] { store->transact([&](Transaction&) { store->transact([](Transaction&) {}); }); };
  EXPECT_TRUE(contains(error_of(nested), "from inside the body of another transaction"));
  const auto twin = open();
  const auto nested_in_twin = [&] { store->transact([&](Transaction&) { transition(*twin, "aaaa1"); }); };
  EXPECT_TRUE(contains(error_of(nested_in_twin), "from inside the body of another transaction"));
  // Reading beside it is fine, and sees what is committed.
  store->transact([&](Transaction& transaction) {
    transaction.put(Table::kVm, vm_row("aaaa1", "web"));
    EXPECT_FALSE(store->find(Table::kVm, "aaaa1"));
    EXPECT_TRUE(transaction.find(Table::kVm, "aaaa1"));
  });
  EXPECT_TRUE(store->find(Table::kVm, "aaaa1"));
}

// SQLite limits the pages of a connection's database only by itself; a small file size limit makes the disk "full".
TEST_F(StoreCommitTest, AFullDiskKeepsNothingHalfDone) {
  {
    transition(*open(), "aaaa1");
  }
  Child child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const auto store = open();
    const rlimit limit{.rlim_cur = 256 << 10, .rlim_max = 256 << 10};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    const auto big = [&] {
      store->transact([](Transaction& transaction) {
        transaction.append({entry_for(transaction, "aaaa1")});
        auto row = vm_row("aaaa2", "big");
        row.document.assign(4 << 20, 'x');
        try {
          transaction.put(Table::kVm, row);
        } catch (const StoreError&) {
        }
        // SQLite has rolled back, or must: what follows may not be committed by itself.
        transaction.put(Table::kVm, vm_row("aaaa3", "small"));
        transaction.append({entry_for(transaction, "aaaa3")});
      });
    };
    const auto error = error_of(big);
    if (!contains(error, "StoreError") || !contains(error, (root / "db" / "meta.db").string())) {
      std::cerr << "unexpected: " << error << '\n';
      return 3;
    }
    if (store->find(Table::kVm, "aaaa2") || store->find(Table::kVm, "aaaa3")) return 4;
    transition(*store, "aaaa1");
    return 0;
  });
  ASSERT_EQ(child.wait(), 0);
  const auto store = open();
  EXPECT_EQ(store->list(Table::kVm).size(), 1U);
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, 3);
  EXPECT_EQ(ledger_seqs(), count_up(2));
}

TEST_F(StoreCommitTest, AForkedChildIsToldToOpenItsOwn) {
  auto store = open();
  transition(*store, "aaaa1");
  Child child([&] {
    for (const auto& use : std::vector<std::function<void()>>{
             [&] { transition(*store, "aaaa1"); },
             [&] { static_cast<void>(store->find(Table::kVm, "aaaa1")); },
             [&] { store->flush(); },
             [&] { static_cast<void>(store->pending()); },
         }) {
      if (!contains(error_of(use), "a forked process has to open one of its own")) return 2;
    }
    store->close();
    store.reset();  // leaves the parent's files and locks alone
    transition(*open(), "aaaa1");
    return 0;
  });
  ASSERT_EQ(child.wait(), 0);
  transition(*store, "aaaa1");
  EXPECT_EQ(ledger_seqs(), count_up(3));
}

// SQLite in the child would take the parent's locks for its own: then the parent, closing last as it believes, deletes
// the WAL under the child.
TEST_F(StoreCommitTest, TheStoreOfAForkedChildHoldsLocksOfItsOwn) {
  auto store = open();
  static_cast<void>(store->list(Table::kVm));  // a reader too
  transition(*store, "aaaa1");
  int to_parent[2];
  int to_child[2];
  ASSERT_EQ(::pipe(to_parent), 0);
  ASSERT_EQ(::pipe(to_child), 0);
  Child child([&] {
    const auto own = open();
    transition(*own, "aaaa1");
    char byte = 'x';
    if (::write(to_parent[1], &byte, 1) != 1 || ::read(to_child[0], &byte, 1) != 1) return 2;
    for (int i = 0; i < 50; ++i) transition(*own, "aaaa1");
    return own->find(Table::kVm, "aaaa1")->generation == 53 ? 0 : 3;
  });
  char byte = 0;
  ASSERT_EQ(::read(to_parent[0], &byte, 1), 1);
  struct stat before{};
  struct stat after{};
  const auto wal = (root / "db" / "meta.db-wal").string();
  ASSERT_EQ(::stat(wal.c_str(), &before), 0);
  store.reset();
  ASSERT_EQ(::stat(wal.c_str(), &after), 0) << "the WAL that the child writes was deleted";
  EXPECT_EQ(before.st_ino, after.st_ino);
  store = open();
  ASSERT_EQ(::write(to_child[1], &byte, 1), 1);
  ASSERT_EQ(child.wait(), 0);
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, 53);
  EXPECT_EQ(ledger_seqs(), count_up(52));
  for (const int fd : {to_parent[0], to_parent[1], to_child[0], to_child[1]}) ::close(fd);
}

TEST_F(StoreCommitTest, AForkInsideATransactionCommitsOnce) {
  const auto store = open();
  pid_t child = -1;
  std::string error;
  error = error_of([&] {
    store->transact([&](Transaction& transaction) {
      transaction.put(Table::kVm, vm_row("aaaa1", "web"));
      transaction.append({entry_for(transaction, "aaaa1")});
      child = ::fork();
    });
  });
  if (child == 0) {
    const bool refused = contains(error, "a forked process has to open one of its own");
    const bool unsafe =
        contains(error_of([&] { static_cast<void>(open()); }), "forked while another thread used the node");
    ::_exit(refused && unsafe ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(error, "");
  transition(*store, "aaaa2");
  EXPECT_EQ(ledger_seqs(), count_up(2));
}

// A lock that a forked child shares must not stay with it.
TEST_F(StoreCommitTest, AChildForkedMeanwhileKeepsNoLock) {
  const auto store = open();
  std::optional<Child> child;
  store->transact([&](Transaction& transaction) {
    transaction.put(Table::kVm, vm_row("aaaa1", "web"));
    child.emplace([] {
      ::pause();
      return 0;
    });
  });
  std::atomic<bool> done{false};
  std::thread other([&] {
    transition(*store, "aaaa1");
    done = true;
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!done && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_TRUE(done);
  child.reset();
  other.join();
}

// Nor an open file by which its parent takes a lock later, and dies with it.
TEST_F(StoreCommitTest, AChildDoesNotInheritTheLocksOfAParentThatDies) {
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  Child parent([&] {
    const auto store = open();
    transition(*store, "aaaa1");
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      ::pause();
      ::_exit(0);
    }
    if (::write(pipe[1], &grandchild, sizeof grandchild) != sizeof grandchild) return 2;
    store->transact([](Transaction&) { ::kill(::getpid(), SIGKILL); });
    return 3;
  });
  pid_t grandchild = -1;
  ASSERT_EQ(::read(pipe[0], &grandchild, sizeof grandchild), static_cast<ssize_t>(sizeof grandchild));
  EXPECT_EQ(parent.wait(), 128 + SIGKILL);
  // In a process of its own: if the lock is not free, it never comes back.
  Child other([&] {
    transition(*open(), "aaaa1");
    return 0;
  });
  siginfo_t ended{};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (ended.si_pid == 0 && std::chrono::steady_clock::now() < deadline) {
    ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(other.pid()), &ended, WEXITED | WNOHANG | WNOWAIT), 0);
    std::this_thread::yield();
  }
  EXPECT_EQ(ended.si_pid, other.pid()) << "it waits for a lock that nobody holds";
  if (ended.si_pid != 0) {
    EXPECT_EQ(other.wait(), 0);
  }
  ::kill(grandchild, SIGKILL);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(StoreCommitTest, ClosedIsClosed) {
  const auto store = open();
  transition(*store, "aaaa1");
  store->close();
  store->close();
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { transition(*store, "aaaa1"); },
           [&] { static_cast<void>(store->find(Table::kVm, "aaaa1")); },
           [&] { static_cast<void>(store->resolve(Table::kVm, "aaaa1")); },
           [&] { static_cast<void>(store->list(Table::kVm)); },
           [&] { static_cast<void>(store->pending()); },
           [&] { static_cast<void>(store->change_counter()); },
           [&] { store->flush(); },
       })
    EXPECT_TRUE(contains(error_of(use), "StoreError: node " + root.string() + ": closed"));
  EXPECT_EQ(store->node_id().size(), 26U);
  EXPECT_FALSE(fs::exists(root / "db" / "meta.db-wal"));  // the last one out puts everything into one file
}

TEST_F(StoreCommitTest, CloseWaitsForCallsUnderWay) {
  const auto store = open();
  std::atomic<int> stage{0};
  std::thread worker([&] {
    store->transact([&](Transaction& transaction) {
      stage = 1;
      while (stage < 2) std::this_thread::yield();
      transaction.put(Table::kVm, vm_row("aaaa1", "web"));
      transaction.append({entry_for(transaction, "aaaa1")});
    });
  });
  while (stage < 1) std::this_thread::yield();
  std::thread closer([&] { store->close(); });
  // The worker goes on only once close() has begun: new calls are refused.
  while (error_of([&] { static_cast<void>(store->find(Table::kVm, "x")); }).empty()) std::this_thread::yield();
  stage = 2;
  worker.join();
  closer.join();
  EXPECT_EQ(ledger_seqs(), count_up(1));
}

}  // namespace
}  // namespace cocoon::store
