#pragma once
// A node's root with a store, its ledger and a LocalFile, as snapshot tests need them.

#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/metering/entry.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/snapshot/local_file.h"
#include "cocoon/store/meta_store.h"

#include "store_test_support.h"

namespace cocoon::snapshot {

using store::Child;
using store::contains;
using store::error_of;
namespace fs = std::filesystem;

class SnapshotTest : public store::StoreTest {
 protected:
  SnapshotTest() : store(open()), snapshots(std::make_unique<LocalFile>(*store, root)) {}

  // Kind and snapshot of each line: "snap.storage.start <id> 12".
  [[nodiscard]] std::vector<std::string> entries() const {
    store->flush();
    std::vector<std::string> all;
    if (!fs::exists(ledger)) return all;
    for (const auto& line : store::lines_of(store::read_file(ledger))) {
      const auto entry = metering::from_json(line);
      if (entry.kind == metering::Kind::kSnapStorageStart || entry.kind == metering::Kind::kSnapStorageStop)
        all.push_back(
            fmt::format("{} {} {}", metering::to_string(entry.kind), entry.snapshot_id, entry.shape.storage_bytes));
    }
    return all;
  }

  // A complete one with one file.
  SnapshotRecord make(const std::string& name = "", const std::string& bytes = "data") const {
    auto staging = snapshots->begin({.name = name, .hypervisor = "qemu"});
    store::write_file(staging.dir() / "memory", bytes);
    return snapshots->publish(std::move(staging), never);
  }

  // Another process dies while it makes one of this name.
  void abandon(const std::string& name) {
    Child child([&] {
      const auto own = open();
      LocalFile theirs(*own, root);
      const auto staging = theirs.begin({.name = name});
      store::write_file(staging.dir() / "memory", "data");
      ::kill(::getpid(), SIGKILL);
      return 1;
    });
    EXPECT_EQ(child.wait(), 128 + SIGKILL);
  }

  // Nothing is left of any snapshot but what `ids` name.
  void expect_nothing_but(const std::vector<std::string>& ids) const {
    std::vector<std::string> folders;
    for (const auto& name : system::list_dir(snapshots->folder()))
      if (name.front() != '.') folders.push_back(name);
    auto sorted = ids;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(folders, sorted);
    EXPECT_EQ(system::list_dir(snapshots->locks_folder()), sorted);
    EXPECT_EQ(system::list_dir(snapshots->staging_folder()), std::vector<std::string>());
    EXPECT_EQ(store->list(store::Table::kSnapshot).size(), ids.size());
  }

  std::unique_ptr<store::MetaStore> store;
  std::unique_ptr<LocalFile> snapshots;
  mutable system::Cancel never;
};

}  // namespace cocoon::snapshot
