// Records: putting, finding, names, references, lists.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

class StoreRecordsTest : public StoreTest {
 protected:
  void put(const Row& row, Table table = Table::kVm) const {
    store->transact([&](Transaction& transaction) { transaction.put(table, row); });
  }
  [[nodiscard]] std::string error_of_resolving(std::string_view ref, std::string_view hypervisor = {},
                                               Table table = Table::kVm) const {
    return error_of([&] { static_cast<void>(store->resolve(table, ref, hypervisor)); });
  }

  std::unique_ptr<MetaStore> store = open();
};

Row snapshot_row(std::string id, std::string name) {
  auto row = vm_row(std::move(id), std::move(name));
  row.state = "ready";
  return row;
}

TEST_F(StoreRecordsTest, KeepsWhatWasPut) {
  Row row = vm_row("aaaa1", "web-1");
  row.document = std::string("{\"text\":\"\u00e4\\u0000\"}") + std::string(2000, ' ');
  row.generation = std::int64_t{1} << 60;
  put(row);
  const auto found = store->find(Table::kVm, "aaaa1");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->id, row.id);
  EXPECT_EQ(found->hypervisor, row.hypervisor);
  EXPECT_EQ(found->name, row.name);
  EXPECT_EQ(found->state, row.state);
  EXPECT_EQ(found->generation, row.generation);
  EXPECT_EQ(found->document, row.document);
  EXPECT_FALSE(store->find(Table::kVm, "aaaa"));
  EXPECT_FALSE(store->find(Table::kSnapshot, "aaaa1"));
}

TEST_F(StoreRecordsTest, ReplacesById) {
  put(vm_row("aaaa1", "web-1"));
  put(vm_row("aaaa2", "web-2"));
  // With the record loaded before, and without; the second also renames.
  store->transact([](Transaction& transaction) {
    auto row = *transaction.find(Table::kVm, "aaaa1");
    row.state = "running";
    row.generation = 2;
    row.document = "{\"a\":1}";
    transaction.put(Table::kVm, row);
    row.generation = 3;
    transaction.put(Table::kVm, row);
  });
  auto renamed = vm_row("aaaa2", "db-1");
  renamed.generation = 7;
  put(renamed);
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->state, "running");
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, 3);
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->document, "{\"a\":1}");
  EXPECT_EQ(store->resolve(Table::kVm, "db-1").generation, 7);
  EXPECT_TRUE(contains(error_of_resolving("web-2"), "NotFound"));
  EXPECT_EQ(store->list(Table::kVm).size(), 2U);
}

TEST_F(StoreRecordsTest, ErasesAndPutsAgainInOneTransaction) {
  put(vm_row("aaaa1", "web-1"));
  store->transact([](Transaction& transaction) {
    auto row = *transaction.find(Table::kVm, "aaaa1");
    transaction.erase(Table::kVm, "aaaa1");
    EXPECT_FALSE(transaction.find(Table::kVm, "aaaa1"));
    EXPECT_FALSE(transaction.find_by_name(Table::kVm, "qemu", "web-1"));
    row.generation = 9;
    transaction.put(Table::kVm, row);
    EXPECT_EQ(transaction.find_by_name(Table::kVm, "qemu", "web-1")->generation, 9);
  });
  EXPECT_EQ(store->find(Table::kVm, "aaaa1")->generation, 9);
  store->transact([](Transaction& transaction) { transaction.erase(Table::kVm, "aaaa1"); });
  EXPECT_FALSE(store->find(Table::kVm, "aaaa1"));
  store->transact([](Transaction& transaction) { transaction.erase(Table::kVm, "aaaa1"); });
}

TEST_F(StoreRecordsTest, NamesAreUniquePerHypervisor) {
  put(vm_row("aaaa1", "web-1", "qemu"));
  put(vm_row("aaaa2", "web-1", "firecracker"));
  try {
    put(vm_row("aaaa3", "web-1", "qemu"));
    FAIL() << "the name is taken";
  } catch (const AlreadyExists& error) {
    EXPECT_EQ(error.name, "web-1");
    EXPECT_EQ(error.id, "aaaa1");
    EXPECT_TRUE(contains(error.what(), "web-1"));
  }
  EXPECT_FALSE(store->find(Table::kVm, "aaaa3"));
  // Renaming onto a taken name, with the record loaded.
  const auto rename = [&] {
    store->transact([](Transaction& transaction) {
      auto row = *transaction.find(Table::kVm, "aaaa2");
      row.hypervisor = "qemu";
      transaction.put(Table::kVm, row);
    });
  };
  EXPECT_TRUE(contains(error_of(rename), "AlreadyExists"));
  EXPECT_EQ(store->find(Table::kVm, "aaaa2")->hypervisor, "firecracker");
}

TEST_F(StoreRecordsTest, ARefusedNameLeavesTheTransactionUsable) {
  put(vm_row("aaaa1", "web-1"));
  store->transact([](Transaction& transaction) {
    EXPECT_THROW(transaction.put(Table::kVm, vm_row("aaaa2", "web-1")), AlreadyExists);
    transaction.put(Table::kVm, vm_row("aaaa2", "web-2"));
  });
  EXPECT_EQ(store->resolve(Table::kVm, "web-2").id, "aaaa2");
}

TEST_F(StoreRecordsTest, SnapshotNamesAreUniqueUnlessEmpty) {
  put(snapshot_row("snap1", ""), Table::kSnapshot);
  put(snapshot_row("snap2", ""), Table::kSnapshot);
  put(snapshot_row("snap3", "base"), Table::kSnapshot);
  auto other = snapshot_row("snap4", "base");
  other.hypervisor = "firecracker";
  EXPECT_TRUE(contains(error_of([&] { put(other, Table::kSnapshot); }), "AlreadyExists"));
  EXPECT_EQ(store->resolve(Table::kSnapshot, "base").id, "snap3");
  EXPECT_EQ(store->list(Table::kSnapshot).size(), 3U);
  EXPECT_TRUE(contains(error_of_resolving("", {}, Table::kSnapshot), "NotFound"));
  store->transact([](Transaction& transaction) {
    EXPECT_EQ(transaction.find_by_name(Table::kSnapshot, "", "base")->id, "snap3");
    EXPECT_FALSE(transaction.find_by_name(Table::kSnapshot, "", ""));
  });
}

TEST_F(StoreRecordsTest, ResolvesIdThenNameThenPrefix) {
  put(vm_row("abcde1", "first"));
  put(vm_row("abcde2", "second"));
  put(vm_row("abd3", "abcde1"));  // a name that is another's id
  put(vm_row("xyz", "abcd"));     // a name that is a prefix of ids
  EXPECT_EQ(store->resolve(Table::kVm, "abcde1").name, "first");
  EXPECT_EQ(store->resolve(Table::kVm, "abcd").id, "xyz");
  EXPECT_EQ(store->resolve(Table::kVm, "second").id, "abcde2");
  EXPECT_EQ(store->resolve(Table::kVm, "abd").id, "abd3");
  EXPECT_TRUE(contains(error_of_resolving("ab"), "NotFound: VM ab: not found"));
  EXPECT_TRUE(contains(error_of_resolving("secon"), "NotFound"));
  EXPECT_TRUE(contains(error_of_resolving(""), "NotFound"));
  try {
    static_cast<void>(store->resolve(Table::kVm, "abcde"));
    FAIL() << "two fit";
  } catch (const AmbiguousRef& error) {
    EXPECT_EQ(error.ref, "abcde");
    EXPECT_EQ(error.candidates, (std::vector<std::string>{"abcde1", "abcde2"}));
    EXPECT_TRUE(contains(error.what(), "abcde2 (second, qemu)"));
  }
}

TEST_F(StoreRecordsTest, ResolvesUnderOneHypervisor) {
  put(vm_row("abcde1", "web", "qemu"));
  put(vm_row("abcde2", "web", "firecracker"));
  EXPECT_EQ(store->resolve(Table::kVm, "web", "qemu").id, "abcde1");
  EXPECT_EQ(store->resolve(Table::kVm, "abcd", "firecracker").id, "abcde2");
  EXPECT_TRUE(contains(error_of_resolving("web"), "AmbiguousRef"));
  EXPECT_TRUE(contains(error_of_resolving("abcde1", "firecracker"), "NotFound"));
  EXPECT_TRUE(contains(error_of_resolving("web", "cloud-hypervisor"), "under cloud-hypervisor"));
}

TEST_F(StoreRecordsTest, PrefixesOfAnyBytes) {
  const std::string high("zz\xff\xff", 4);
  put(vm_row(high + "1", "a"));
  put(vm_row("zzz", "b"));
  EXPECT_EQ(store->resolve(Table::kVm, std::string("zz\xff", 3)).name, "a");
  EXPECT_TRUE(contains(error_of_resolving(std::string("\xff\xff\xff", 3)), "NotFound"));
  EXPECT_TRUE(contains(error_of_resolving(std::string("zz\0", 3)), "NotFound"));
  EXPECT_TRUE(contains(error_of_resolving("zz%"), "NotFound"));
  EXPECT_TRUE(contains(error_of_resolving("' OR 1=1 --"), "NotFound"));
}

TEST_F(StoreRecordsTest, NamesManyCandidatesButNotAll) {
  store->transact([](Transaction& transaction) {
    for (int i = 100; i < 150; ++i)
      transaction.put(Table::kVm, vm_row(fmt::format("same{}", i), fmt::format("n{}", i)));
  });
  try {
    static_cast<void>(store->resolve(Table::kVm, "same"));
    FAIL() << "fifty fit";
  } catch (const AmbiguousRef& error) {
    EXPECT_EQ(error.candidates.size(), 10U);
    EXPECT_EQ(error.candidates.front(), "same100");
  }
}

TEST_F(StoreRecordsTest, ListsByCreation) {
  put(vm_row("ccc1", "c"));
  put(vm_row("aaa1", "a", "firecracker"));
  put(vm_row("bbb1", "b"));
  auto changed = vm_row("ccc1", "c");
  changed.state = "running";
  put(changed);
  const auto ids = [&](std::string_view hypervisor, std::string_view state) {
    std::vector<std::string> all;
    for (const auto& row : store->list(Table::kVm, hypervisor, state)) all.push_back(row.id);
    return all;
  };
  using Ids = std::vector<std::string>;
  EXPECT_EQ(ids("", ""), (Ids{"ccc1", "aaa1", "bbb1"}));
  EXPECT_EQ(ids("qemu", ""), (Ids{"ccc1", "bbb1"}));
  EXPECT_EQ(ids("", "running"), (Ids{"ccc1"}));
  EXPECT_EQ(ids("firecracker", "running"), Ids{});
}

TEST_F(StoreRecordsTest, ChangeCounterRisesWithCommitsOfAnybody) {
  const auto before = store->change_counter();
  EXPECT_EQ(store->change_counter(), before);
  transition(*store, "aaaa1");
  const auto own = store->change_counter();
  EXPECT_GT(own, before);
  store->transact([](Transaction&) {});
  EXPECT_EQ(store->change_counter(), own);
  Child child([&] {
    transition(*open(), "aaaa2");
    return 0;
  });
  ASSERT_EQ(child.wait(), 0);
  EXPECT_GT(store->change_counter(), own);
}

TEST(StoreIdTest, IsRandomLowerCaseBase32) {
  std::vector<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    ids.push_back(make_id());
    EXPECT_EQ(ids.back().size(), 26U);
    EXPECT_EQ(ids.back().find_first_not_of("abcdefghijklmnopqrstuvwxyz234567"), std::string::npos);
  }
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace
}  // namespace cocoon::store
