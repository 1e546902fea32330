#include <sys/stat.h>

#include <atomic>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "cocoon/lifecycle/transition.h"
#include "cocoon/snapshot/commit.h"

#include "snapshot_test_support.h"
#include "system_test_support.h"

namespace cocoon::snapshot {
namespace {

using store::read_file;
using store::write_file;
using Strings = std::vector<std::string>;

TEST_F(SnapshotTest, PublishedOneIsReadyMeteredByLogicalBytesAndPrivate) {
  auto staging = snapshots->begin({.name = "base",
                                   .description = "a description",
                                   .hypervisor = "firecracker",
                                   .vm_id = "vm1",
                                   .cpu = 2,
                                   .mem_bytes = 512 << 20,
                                   .storage_bytes = 10});
  EXPECT_EQ(fs::status(staging.dir()).permissions(), fs::perms::owner_all);
  write_file(staging.dir() / "vmstate", "abc");
  system::make_sparse_file(staging.dir() / "memory", 1 << 20);
  const auto id = staging.id();
  const auto made = snapshots->publish(std::move(staging), never);

  EXPECT_EQ(made.id, id);
  EXPECT_EQ(made.size_bytes, (1 << 20) + 3);
  EXPECT_FALSE(made.pending);
  EXPECT_EQ(snapshots->inspect("base"), made);
  EXPECT_EQ(snapshots->list(), std::vector<SnapshotRecord>{made});
  EXPECT_EQ(read_file(snapshots->data_dir(id.substr(0, 5)) / "vmstate"), "abc");
  EXPECT_EQ(entries(), Strings{fmt::format("snap.storage.start {} {}", id, (1 << 20) + 3)});
  expect_nothing_but({id});
}

TEST_F(SnapshotTest, ListsNewestFirstAndOnlyCompleteOnes) {
  const auto first = make("first");
  const auto staging = snapshots->begin({.name = "second"});
  const auto third = make("third");
  EXPECT_EQ(snapshots->list(), (std::vector<SnapshotRecord>{third, first}));
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->inspect("second"); }), "still being made"));
}

TEST_F(SnapshotTest, AbandonedOneLeavesNothing) {
  {
    const auto staging = snapshots->begin({.name = "gone"});
    write_file(staging.dir() / "memory", "data");
  }
  expect_nothing_but({});
  EXPECT_EQ(entries(), Strings());
  (void)make("gone");  // the name is free
}

TEST_F(SnapshotTest, TakenNameIsAlreadyExistsAndNamesItsHolder) {
  const auto first = make("base");
  EXPECT_EQ(error_of([&] { (void)snapshots->begin({.name = "base"}); }),
            fmt::format("AlreadyExists: snapshot base: this name is taken by {}", first.id));
  const auto pending = snapshots->begin({.name = "other"});
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->begin({.name = "other"}); }), "AlreadyExists"));
  EXPECT_EQ(entries().size(), 1U);
}

TEST_F(SnapshotTest, NameThatADeadProcessHadTakenIsFree) {
  abandon("base");
  EXPECT_EQ(store->list(store::Table::kSnapshot, {}, "pending").size(), 1U);
  const auto made = make("base");
  expect_nothing_but({made.id});
  EXPECT_EQ(entries().size(), 1U);
}

TEST_F(SnapshotTest, ManyMayHaveNoName) {
  const auto a = make();
  const auto b = make();
  EXPECT_NE(a.id, b.id);
  EXPECT_EQ(snapshots->list().size(), 2U);
}

TEST_F(SnapshotTest, RefusesWhatIsNoNameAndNegativeSizes) {
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->begin({.name = "../x"}); }), "InvalidArgument: name: '../x'"));
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->begin({.cpu = -1}); }), "InvalidArgument"));
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->begin({.description = "\xff"}); }), "description"));
  expect_nothing_but({});
}

TEST_F(SnapshotTest, HoldsPlainFilesOnly) {
  auto staging = snapshots->begin({.name = "odd"});
  fs::create_symlink("/etc/passwd", staging.dir() / "link");
  EXPECT_TRUE(contains(error_of([&] { snapshots->publish(std::move(staging), never); }), "link is not a plain file"));
  expect_nothing_but({});
}

TEST_F(SnapshotTest, WhatIsCommittedWithItComesFirstAndTogether) {
  auto staging = snapshots->begin({.name = "kept"});
  const auto id = staging.id();
  const auto also = [&](store::Transaction& transaction) {
    transaction.put(store::Table::kVm, store::vm_row("vm1", "web"));
    transaction.append({store::entry_for(transaction, "vm1")});
  };
  snapshots->publish(std::move(staging), never, also);
  store->flush();
  const auto lines = store::lines_of(read_file(ledger));
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(metering::from_json(lines[0]).vm_id, "vm1");
  EXPECT_EQ(metering::from_json(lines[1]).snapshot_id, id);
  EXPECT_EQ(metering::from_json(lines[0]).emitted_at_ns, metering::from_json(lines[1]).emitted_at_ns);
}

TEST_F(SnapshotTest, WhatIsCommittedWithItAndThrowsTakesItAlong) {
  auto staging = snapshots->begin({.name = "kept"});
  write_file(staging.dir() / "memory", "data");
  const auto lost = [](store::Transaction& transaction) {
    transaction.put(store::Table::kVm, store::vm_row("vm1", "web"));
    throw InvalidState("the VM was changed meanwhile", "stopped");
  };
  EXPECT_THROW(snapshots->publish(std::move(staging), never, lost), InvalidState);
  expect_nothing_but({});
  EXPECT_FALSE(store->find(store::Table::kVm, "vm1"));
  EXPECT_EQ(entries(), Strings());
}

TEST_F(SnapshotTest, RemovedOneStopsOnceWithItsStartsShapeAndFreesItsName) {
  const auto made = make("base", "12345");
  EXPECT_EQ(snapshots->remove(Strings{"base", made.id, "base"}, never), Strings{made.id});
  expect_nothing_but({});
  EXPECT_EQ(entries(),
            (Strings{fmt::format("snap.storage.start {} 5", made.id), fmt::format("snap.storage.stop {} 5", made.id)}));
  EXPECT_NE(make("base").id, made.id);
}

TEST_F(SnapshotTest, UnknownReferenceAmongSeveralRemovesNothing) {
  const auto made = make("base");
  EXPECT_THROW(snapshots->remove(Strings{"base", "unknown"}, never), NotFound);
  expect_nothing_but({made.id});
}

TEST_F(SnapshotTest, OneInUseIsNotRemovedUnderItsReader) {
  const auto made = make("base");
  const auto other = make("other");
  {
    const auto use = snapshots->use("base", never);
    const auto again = snapshots->use("base", never);
    EXPECT_TRUE(contains(error_of([&] { snapshots->remove("base", never); }), "in use"));
    try {
      snapshots->remove(Strings{"base", "other"}, never);
      FAIL() << "base was removed";
    } catch (const BulkError& error) {
      EXPECT_EQ(error.succeeded, Strings{other.id});
      EXPECT_EQ(error.errors.size(), 1U);
      EXPECT_TRUE(error.errors.contains("base"));
    }
    EXPECT_EQ(read_file(use.dir() / "memory"), "data");
  }
  snapshots->remove("base", never);
  expect_nothing_but({});
}

TEST_F(SnapshotTest, ReaderInAProcessThatDiedHoldsNothing) {
  const auto made = make("base");
  Child child([&] {
    const auto own = open();
    const LocalFile theirs(*own, root);
    const auto use = theirs.use("base", never);
    ::kill(::getpid(), SIGKILL);
    return 1;
  });
  ASSERT_EQ(child.wait(), 128 + SIGKILL);
  snapshots->remove("base", never);
  expect_nothing_but({});
}

TEST_F(SnapshotTest, ForkedChildProlongsNoLockAndEndsNone) {
  const auto made = make("base");
  int release[2];
  ASSERT_EQ(::pipe(release), 0);
  auto use = std::make_unique<Use>(snapshots->use("base", never));
  Child child([&] {
    use.reset();  // as a child does that runs its parent's destructors
    ::close(release[1]);
    char byte = 0;
    return static_cast<int>(::read(release[0], &byte, 1));
  });
  ::close(release[0]);
  EXPECT_TRUE(contains(error_of([&] { snapshots->remove("base", never); }), "in use"));
  use.reset();
  snapshots->remove("base", never);
  ::close(release[1]);
  EXPECT_EQ(child.wait(), 0);
}

TEST_F(SnapshotTest, OneBeingMadeIsNeitherUsedNorRemoved) {
  const auto staging = snapshots->begin({.name = "base"});
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->use("base", never); }), "still being made"));
  EXPECT_TRUE(contains(error_of([&] { snapshots->remove("base", never); }), "still being made"));
  EXPECT_EQ(snapshots->discard_stale(staging.id()), LocalFile::Stale::kOwned);
}

TEST_F(SnapshotTest, RemovingAnAbandonedOneSaysNothingInTheLedger) {
  abandon("base");
  snapshots->remove("base", never);
  expect_nothing_but({});
  EXPECT_EQ(entries(), Strings());
}

TEST_F(SnapshotTest, WhoDiscardsSaysWhetherThereWasAnything) {
  abandon("base");
  const auto id = store->list(store::Table::kSnapshot, {}, "pending").at(0).id;
  EXPECT_EQ(snapshots->discard_stale(id), LocalFile::Stale::kDiscarded);
  EXPECT_EQ(snapshots->discard_stale(id), LocalFile::Stale::kNothing);
  expect_nothing_but({});
}

TEST_F(SnapshotTest, HalfRemovedOneIsRefusedUntilItIsRemovedAgain) {
  const auto made = make("base");
  fs::rename(snapshots->data_dir("base"), snapshots->staging_folder() / made.id);
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->use("base", never); }), "remove it again"));
  EXPECT_TRUE(contains(error_of([&] { (void)snapshots->data_dir("base"); }), "remove it again"));
  snapshots->remove("base", never);
  expect_nothing_but({});
  EXPECT_EQ(entries().size(), 2U);
}

TEST_F(SnapshotTest, DataThatCannotBeRemovedKeepsTheRecordAndItsInterval) {
  const auto made = make("base");
  const auto obstacle = snapshots->staging_folder() / made.id;  // of root, too
  fs::create_directories(obstacle / "x");
  EXPECT_TRUE(contains(error_of([&] { snapshots->remove("base", never); }), "Directory not empty"));
  EXPECT_EQ(read_file(snapshots->data_dir("base") / "memory"), "data");
  EXPECT_EQ(entries().size(), 1U);
  fs::remove_all(obstacle);
  snapshots->remove("base", never);
  EXPECT_EQ(entries().size(), 2U);
}

// The memory of a hibernated VM, and that VM.
class KeptSnapshotTest : public SnapshotTest {
 protected:
  void put_vm(const std::string& kept_id) const {
    lifecycle::VmRecord vm;
    vm.id = "vm1";
    vm.config.name = "web";
    vm.state = lifecycle::VmState::kHibernated;
    vm.kept_snapshot_id = kept_id;
    store->transact([&](store::Transaction& transaction) {
      auto row = store::vm_row(vm.id, vm.config.name);
      row.document = lifecycle::to_document(vm);
      transaction.put(store::Table::kVm, row);
    });
  }
};

TEST_F(KeptSnapshotTest, IsNotRemovedWhileItsVmSleepsInIt) {
  const auto made = snapshots->publish(snapshots->begin({.name = "sleep", .vm_id = "vm1", .kept = true}), never);
  put_vm(made.id);
  EXPECT_TRUE(contains(error_of([&] { snapshots->remove("sleep", never); }), "hibernated VM web"));
  EXPECT_TRUE(fs::exists(snapshots->data_dir("sleep")));
  put_vm("");
  snapshots->remove("sleep", never);
  expect_nothing_but({});
}

TEST_F(SnapshotTest, ManyProcessesThatRemoveOneStopItOnce) {
  for (int round = 0; round < 10; ++round) {
    const auto made = make("base", std::string(100'000, 'x'));
    std::vector<Child> children;
    for (int i = 0; i < 4; ++i)
      children.emplace_back([&] {
        const auto own = open();
        LocalFile theirs(*own, root);
        try {
          theirs.remove("base", never);
          return 0;
        } catch (const NotFound&) {
          return 1;
        }
      });
    int won = 0;
    for (auto& child : children) {
      const auto status = child.wait();
      EXPECT_TRUE(status == 0 || status == 1) << status;
      won += status == 0 ? 1 : 0;
    }
    EXPECT_EQ(won, 1);
    EXPECT_EQ(entries().size(), 2U * static_cast<std::size_t>(round + 1));
    expect_nothing_but({});
  }
}

TEST_F(SnapshotTest, RemoversDoNotTakeEachOtherForReaders) {
  const int rounds = 10;
  std::atomic<int> refused{0};
  for (int round = 0; round < rounds; ++round) {
    make("base");
    std::optional<Use> use(snapshots->use("base", never));
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&] {
        try {
          system::Cancel own;
          snapshots->remove("base", own);
        } catch (const NotFound&) {  // another was first
        } catch (const InvalidState&) {
          ++refused;
        }
      });
    system::pause_for(std::chrono::milliseconds(10), never);  // all of them look by now
    use.reset();
    for (auto& thread : threads) thread.join();
    if (!snapshots->list().empty()) snapshots->remove("base", never);
  }
  // One may be, where the reader's thread stands still for as long as readers are waited for.
  EXPECT_LT(refused, rounds);
}

TEST_F(SnapshotTest, ThreadsThatUseAndRemoveNeverSeeHalfOfIt) {
  std::atomic<int> used{0};
  for (int round = 0; round < 20; ++round) {
    const auto made = make("base");
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        system::Cancel cancel;
        try {
          if (i == 0) {
            snapshots->remove("base", cancel);
          } else {
            const auto use = snapshots->use("base", cancel);
            EXPECT_EQ(read_file(use.dir() / "memory"), "data");
            ++used;
          }
        } catch (const NotFound&) {
        } catch (const InvalidState&) {
        }
      });
    for (auto& thread : threads) thread.join();
    if (!snapshots->list().empty()) snapshots->remove("base", never);
    expect_nothing_but({});
  }
  EXPECT_EQ(entries().size(), 40U);
}

TEST_F(SnapshotTest, CancelledOneLeavesNothing) {
  auto staging = snapshots->begin({.name = "base"});
  write_file(staging.dir() / "memory", "data");
  system::Cancel cancel;
  cancel.request();
  EXPECT_THROW(snapshots->publish(std::move(staging), cancel), Cancelled);
  expect_nothing_but({});
}

}  // namespace
}  // namespace cocoon::snapshot
