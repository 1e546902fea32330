// What reconcile says of snapshots, and which folders a node takes for its own. The rest of it is in tests/py.

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/engine/node.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/snapshot/commit.h"

namespace cocoon::engine {
namespace {

namespace fs = std::filesystem;

class ReconcileTest : public testing::Test {
 protected:
  ReconcileTest() {
    std::string form = (fs::temp_directory_path() / "cr-XXXXXX").string();
    dir_ = ::mkdtemp(form.data());
    node_ = open("root");
  }
  ~ReconcileTest() override {
    node_.reset();
    fs::remove_all(dir_);
  }

  [[nodiscard]] std::unique_ptr<Node> open(const std::string& root, const std::string& run_dir = {}) const {
    NodeOptions options;
    options.root = dir_ / root;
    if (!run_dir.empty()) options.run_dir = dir_ / run_dir;
    options.shim = COCOON_SHIM;
    return std::make_unique<Node>(std::move(options));
  }

  [[nodiscard]] fs::path ledger() const { return dir_ / "root" / "metering" / "ledger.jsonl"; }

  std::string make(const std::string& name) {
    auto staging = node_->snapshots().begin({.name = name, .description = {}, .hypervisor = "qemu", .vm_id = {}});
    std::ofstream(staging.dir() / "memory") << "data";
    return node_->snapshots().publish(std::move(staging), never_).id;
  }

  // "<kind> <id> <status>, record: <state>, ledger: <state>, <action>" of each row.
  std::vector<std::string> rows(bool fix = false) {
    const auto report = node_->reconcile(fix, never_);
    EXPECT_EQ(report.ok, report.rows.empty());
    std::vector<std::string> said;
    for (const auto& row : report.rows)
      said.push_back(fmt::format("{} {} {}, record: {}, ledger: {}, {}", row.kind, row.id, row.status, row.record_state,
                                 row.ledger_state, row.action));
    return said;
  }

  // The one row that reconcile has, with fix or without; and the ledger stays as it is.
  void expect_reported(const std::string& row) {
    const auto size = fs::file_size(ledger());
    const std::vector<std::string> expected = {row};
    EXPECT_EQ(rows(), expected);
    EXPECT_EQ(rows(true), expected);
    EXPECT_EQ(fs::file_size(ledger()), size);
  }

  fs::path dir_;
  std::unique_ptr<Node> node_;
  system::Cancel never_;
};

TEST_F(ReconcileTest, SnapshotsThatAgreeHaveNoRow) {
  const auto id = make("a");
  make("b");
  const auto pending = node_->snapshots().begin({.name = "c", .description = {}, .hypervisor = {}, .vm_id = {}});
  EXPECT_EQ(rows(), std::vector<std::string>());
  node_->snapshots().remove(id, never_);
  EXPECT_EQ(rows(), std::vector<std::string>());
}

TEST_F(ReconcileTest, ASnapshotWhoseRecordIsGoneIsReportedAndNothingIsWritten) {
  const auto id = make("a");
  make("b");
  node_->store().transact([&](store::Transaction& transaction) { transaction.erase(store::Table::kSnapshot, id); });
  expect_reported(fmt::format("snapshot {} ledger-open-no-record, record: , ledger: open, ", id));
}

TEST_F(ReconcileTest, ASnapshotThatTheLedgerHasClosedIsReportedAndNothingIsWritten) {
  const auto id = make("a");
  const auto record = *node_->store().find(store::Table::kSnapshot, id);
  node_->snapshots().remove(id, never_);
  node_->store().transact([&](store::Transaction& transaction) { transaction.put(store::Table::kSnapshot, record); });
  expect_reported(fmt::format("snapshot {} record-open-ledger-closed, record: ready, ledger: closed, ", id));
}

TEST_F(ReconcileTest, APendingSnapshotThatTheLedgerHasOpenIsReported) {
  const auto id = make("b");
  node_->store().transact([&](store::Transaction& transaction) {
    auto row = *transaction.find(store::Table::kSnapshot, id);
    row.state = "pending";
    auto record = snapshot::record_from_row(row);
    record.pending = true;
    row.document = lifecycle::to_document(record);
    transaction.put(store::Table::kSnapshot, row);
  });
  EXPECT_EQ(rows(), (std::vector<std::string>{
                        fmt::format("snapshot {} record-closed-ledger-open, record: pending, ledger: open, ", id)}));
}

// ---------------------------------------------------------------- folders that nodes share

TEST_F(ReconcileTest, AFolderOutsideOfTheRootIsOurOwnOnlyIfNobodyElseMakesVmsThere) {
  const auto one = open("one", "run");
  const auto two = open("two", "run");
  fs::create_directories(one->run_dir());
  EXPECT_FALSE(one->owns(one->run_dir())) << "nobody has made a VM there";
  one->claim(one->run_dir());
  one->claim(one->run_dir());
  EXPECT_TRUE(one->owns(one->run_dir()));
  EXPECT_FALSE(two->owns(two->run_dir()));
  two->claim(two->run_dir());
  EXPECT_FALSE(one->owns(one->run_dir()));
  EXPECT_FALSE(two->owns(two->run_dir()));
  one->claim(one->run_dir());
  EXPECT_TRUE(node_->owns(node_->run_dir())) << "below the root";
  std::ifstream file(dir_ / "run" / ".cocoon-node");
  std::vector<std::string> named;
  for (std::string line; std::getline(file, line);) named.push_back(line);
  EXPECT_EQ(named, (std::vector<std::string>{one->id(), two->id()})) << "each once";
}

}  // namespace
}  // namespace cocoon::engine
