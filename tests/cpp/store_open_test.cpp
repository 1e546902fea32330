// Opening: what is made, what is kept, what is refused.

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include "store_test_support.h"

namespace cocoon::store {
namespace {

class StoreOpenTest : public StoreTest {
 protected:
  [[nodiscard]] std::string error_of_opening() const {
    return error_of([&] { static_cast<void>(open()); });
  }
  [[nodiscard]] fs::path database() const { return root / "db" / "meta.db"; }
  // Runs `sql` with SQLite alone.
  void run(const char* sql) const {
    fs::create_directories(root / "db");
    sqlite3* handle = nullptr;
    ASSERT_EQ(sqlite3_open(database().c_str(), &handle), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(handle, sql, nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(handle);
    sqlite3_close(handle);
  }
};

unsigned mode_of(const fs::path& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777U : 0;
}

TEST_F(StoreOpenTest, MakesEverythingPrivate) {
  const auto node = root / "a" / "node";
  const mode_t before = ::umask(0);
  MetaStore store({.root = node, .recorder = std::make_shared<metering::FileRecorder>(node / "l" / "ledger.jsonl")});
  transition(store, "aaaa1");
  ::umask(before);
  EXPECT_EQ(mode_of(node), 0700U);
  EXPECT_EQ(mode_of(node / "db"), 0700U);
  EXPECT_EQ(mode_of(node / "l"), 0750U);
  for (const char* name : {"db/meta.db", "db/meta.db-wal", "db/meta.db-shm", "db/store.lock", "db/ledger.lock",
                           "db/ledger.note", "l/ledger.jsonl"})
    EXPECT_EQ(mode_of(node / name), 0600U) << name;
}

TEST_F(StoreOpenTest, ANodeKeepsItsIds) {
  std::string node;
  std::string ledger_id;
  {
    const auto store = open();
    node = store->node_id();
    ledger_id = store->ledger_id();
    EXPECT_EQ(node.size(), 26U);
    EXPECT_EQ(ledger_id.size(), 26U);
    EXPECT_NE(node, ledger_id);
  }
  EXPECT_EQ(open()->node_id(), node);
  EXPECT_EQ(open()->ledger_id(), ledger_id);
}

TEST_F(StoreOpenTest, ManyProcessesMakeOneNode) {
  std::vector<Child> children;
  for (int i = 0; i < 8; ++i) {
    children.emplace_back([&, i] {
      const auto store = open();
      write_file(root / (fmt::format("id-{}", i)), store->node_id() + store->ledger_id());
      transition(*store, fmt::format("vm-{}", i));
      return 0;
    });
  }
  for (auto& child : children) EXPECT_EQ(child.wait(), 0);
  for (int i = 1; i < 8; ++i) EXPECT_EQ(read_file(root / (fmt::format("id-{}", i))), read_file(root / "id-0"));
  EXPECT_EQ(ledger_seqs(), count_up(8));
}

TEST_F(StoreOpenTest, MeteredLabelsAreKeptAndReplaced) {
  using Labels = std::vector<std::string>;
  const auto labels_of = [&](Labels wanted) {
    return MetaStore({.root = root, .metered_labels = std::move(wanted)}).metered_labels();
  };
  EXPECT_EQ(labels_of({}), Labels{});
  EXPECT_EQ(labels_of({"tenant", "cost \u00e4\u20ac\U0001f600", "tenant"}),
            (Labels{"cost \u00e4\u20ac\U0001f600", "tenant"}));
  EXPECT_EQ(labels_of({}), (Labels{"cost \u00e4\u20ac\U0001f600", "tenant"}));
  EXPECT_EQ(labels_of({"team"}), Labels{"team"});
  EXPECT_EQ(labels_of({}), Labels{"team"});

  Labels many;
  for (int i = 0; i < 17; ++i) many.push_back(fmt::format("label-{}", i));
  for (const auto& bad :
       {many, Labels{""}, Labels{std::string(64, 'x')}, Labels{"a\nb"}, Labels{"a\x7f"}, Labels{"\xc2\x85"},
        Labels{"\xc3"}, Labels{"\xc0\xaf"}, Labels{"\xed\xa0\x80"}, Labels{"\xf4\x90\x80\x80"}, Labels{"\xff"}})
    EXPECT_TRUE(contains(error_of([&] { labels_of(bad); }), "InvalidArgument: metered label"));
  many.pop_back();
  EXPECT_EQ(labels_of(many).size(), 16U);
  EXPECT_EQ(labels_of({std::string(63, 'x')}).front().size(), 63U);
}

TEST_F(StoreOpenTest, ARootThatIsAFile) {
  root /= "file";
  write_file(root, "");
  EXPECT_TRUE(contains(error_of_opening(), "StoreError: open node " + root.string() + ": Not a directory"));
  fs::remove(root);
  root = root.parent_path();  // so that it is removed too
}

TEST_F(StoreOpenTest, ADatabaseThatIsNone) {
  fs::create_directories(root / "db");
  write_file(database(), std::string(8192, 'x'));
  const auto error = error_of_opening();
  EXPECT_TRUE(contains(error, "StoreError"));
  EXPECT_TRUE(contains(error, database().string()));
  EXPECT_TRUE(contains(error, "file is not a database"));
  EXPECT_EQ(read_file(database()), std::string(8192, 'x'));
}

TEST_F(StoreOpenTest, ADatabaseThatIsAFolder) {
  fs::create_directories(database());
  EXPECT_TRUE(contains(error_of_opening(), "StoreError: open database " + database().string()));
}

TEST_F(StoreOpenTest, AForeignDatabaseIsLeftAsItIs) {
  run("CREATE TABLE cookies (name TEXT)");
  const auto before = read_file(database());
  const auto error = error_of_opening();
  EXPECT_TRUE(contains(error, "StoreError: open database " + database().string() + ": not a database of cocoon"));
  EXPECT_EQ(read_file(database()), before);
  run("DROP TABLE cookies; PRAGMA application_id = 7");
  EXPECT_TRUE(contains(error_of_opening(), "application id 0x7"));
}

TEST_F(StoreOpenTest, AnEmptyDatabaseIsANewOne) {
  run("PRAGMA journal_mode = WAL");  // where a first opener died
  EXPECT_EQ(error_of_opening(), "");
}

TEST_F(StoreOpenTest, ANewerSchemaIsRefused) {
  {
    transition(*open(), "aaaa1");
  }
  run("PRAGMA user_version = 7");
  EXPECT_TRUE(contains(error_of_opening(), "it has schema version 7, this engine knows versions up to 1"));
  run("PRAGMA user_version = 1");
  EXPECT_EQ(open()->list(Table::kVm).size(), 1U);
}

TEST_F(StoreOpenTest, ADamagedDatabase) {
  {
    transition(*open(), "aaaa1");
  }
  run("DELETE FROM meta WHERE key = 'node_id'");
  EXPECT_TRUE(contains(error_of_opening(), "damaged: it has no node_id"));
  auto bytes = read_file(database());
  std::fill(bytes.begin() + 100, bytes.end(), '\xee');
  write_file(database(), bytes);
  EXPECT_TRUE(contains(error_of_opening(), "StoreError"));
}

// Every folder, file and lock that may not be written, as a user who is not root.
TEST_F(StoreOpenTest, AFolderThatMayNotBeWritten) {
  {
    transition(*open(), "aaaa1");
  }
  const auto* nobody = ::getpwnam("nobody");
  if (::getuid() == 0 && nobody == nullptr) GTEST_SKIP() << "there is no user nobody to test as";
  if (::getuid() == 0) {
    for (const auto& item : fs::recursive_directory_iterator(root))
      ASSERT_EQ(::chown(item.path().c_str(), nobody->pw_uid, nobody->pw_gid), 0);
    ASSERT_EQ(::chown(root.c_str(), nobody->pw_uid, nobody->pw_gid), 0);
  }
  const auto error_for_user = [&] {
    const auto report = root / "metering" / "report";
    Child child([&] {
      if (::getuid() == 0 && (::setgid(nobody->pw_gid) != 0 || ::setuid(nobody->pw_uid) != 0)) return 2;
      write_file(report, error_of_opening());
      return 0;
    });
    EXPECT_EQ(child.wait(), 0);
    return read_file(report);
  };
  EXPECT_EQ(error_for_user(), "");

  fs::permissions(root / "db", fs::perms(0500));
  fs::remove(root / "db" / "store.lock");
  EXPECT_TRUE(contains(error_for_user(), (root / "db" / "store.lock").string() + ": Permission denied"));
  fs::permissions(root / "db", fs::perms(0700));
  EXPECT_EQ(error_for_user(), "");

  fs::permissions(database(), fs::perms(0400));
  EXPECT_TRUE(contains(error_for_user(), "StoreError: open database " + database().string() + ": it may only be read"));
  fs::permissions(database(), fs::perms(0000));
  EXPECT_TRUE(contains(error_for_user(), "StoreError: open database " + database().string()));
  fs::permissions(database(), fs::perms(0600));

  fs::rename(root / "db", root / "elsewhere");
  fs::permissions(root, fs::perms(0500));
  EXPECT_TRUE(contains(error_for_user(), (root / "db").string() + ": Permission denied"));
  fs::permissions(root, fs::perms(0700));
}

}  // namespace
}  // namespace cocoon::store
