// Disks that are exchanged, and put back by whoever comes next, wherever the exchange stopped.

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>

#include "cocoon/engine/disk_exchange.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

namespace fs = std::filesystem;

class DiskExchangeTest : public testing::Test {
 protected:
  DiskExchangeTest() {
    std::string form = (fs::temp_directory_path() / "cd-XXXXXX").string();
    root_ = ::mkdtemp(form.data());
    for (const char* folder : {"vm", "data", "snapshot"}) fs::create_directory(root_ / folder);
    add("vm/cow.raw", "cow", "cow.raw");
    add("data/b.raw", "data", "disk-1.raw");
    add("data/base.raw", "layer", "");
    config_.disks.back().readonly = true;
    write("snapshot/cow.raw", "new cow");
    write("snapshot/disk-1.raw", "new data");
    saved_.dir = root_ / "snapshot";
    saved_.vm.config = config_;
    write("vm/cow.raw", "old cow");
    write("data/b.raw", "old data");
    write("data/base.raw", "base");
    ::chmod((root_ / "data/b.raw").c_str(), 0640);
  }
  ~DiskExchangeTest() override { fs::remove_all(root_); }

  void add(const char* path, const char* role, const char* file) {
    config_.disks.push_back({.path = (root_ / path).string(), .role = role});
    saved_.vm.disk_files.emplace_back(file);
  }
  void write(const fs::path& name, std::string_view text) { std::ofstream(root_ / name) << text; }
  std::string read(const fs::path& name) const {
    std::ifstream file(root_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::size_t leftovers() const {
    std::size_t count = 0;
    for (const auto& entry : fs::recursive_directory_iterator(root_))
      count += entry.path().string().find(".cocoon-") != std::string::npos;
    return count;
  }
  void expect(const std::string& which) {
    EXPECT_EQ(read("vm/cow.raw"), which + " cow");
    EXPECT_EQ(read("data/b.raw"), which + " data");
    EXPECT_EQ(read("data/base.raw"), "base");
  }

  fs::path root_;
  lifecycle::VmConfig config_;
  vmm::Saved saved_;
  system::Cancel never_;
};

TEST_F(DiskExchangeTest, StagedDisksTouchNothingAndGo) {
  {
    const DiskExchange staged(saved_, config_, never_);
    expect("old");
    EXPECT_EQ(leftovers(), 2U);
  }
  expect("old");
  EXPECT_EQ(leftovers(), 0U);
}

TEST_F(DiskExchangeTest, ExchangedDisksComeBackOrStay) {
  {
    DiskExchange disks(saved_, config_, never_);
    disks.run();
  }
  expect("new");
  EXPECT_EQ(fs::status(root_ / "data/b.raw").permissions(), fs::perms(0640)) << "a user's file stays as readable";
  DiskExchange::put_back(config_);
  expect("old");
  EXPECT_EQ(leftovers(), 0U);
  DiskExchange::put_back(config_);
  expect("old");
  {
    DiskExchange disks(saved_, config_, never_);
    disks.run();
  }
  DiskExchange::clean_up(config_);
  DiskExchange::put_back(config_);
  expect("new");
  EXPECT_EQ(leftovers(), 0U);
}

// Each state that a death between two renames leaves.
TEST_F(DiskExchangeTest, WhereverItStoppedTheOldDisksComeBack) {
  const std::vector<std::pair<const char*, const char*>> renames{
      {"vm/cow.raw", "vm/cow.raw.cocoon-old"},
      {"vm/cow.raw.cocoon-new", "vm/cow.raw"},
      {"data/b.raw", "data/b.raw.cocoon-old"},
      {"data/b.raw.cocoon-new", "data/b.raw"},
  };
  for (std::size_t died_after = 0; died_after <= renames.size(); ++died_after) {
    fs::copy_file(root_ / "snapshot/cow.raw", root_ / "vm/cow.raw.cocoon-new");
    fs::copy_file(root_ / "snapshot/disk-1.raw", root_ / "data/b.raw.cocoon-new");
    for (std::size_t i = 0; i < died_after; ++i) fs::rename(root_ / renames[i].first, root_ / renames[i].second);
    DiskExchange::put_back(config_);
    expect("old");
    EXPECT_EQ(leftovers(), 0U) << "after " << died_after;
  }
}

TEST_F(DiskExchangeTest, AFailedStagingLeavesNothing) {
  fs::remove(root_ / "snapshot/disk-1.raw");
  EXPECT_THROW(DiskExchange(saved_, config_, never_), StoreError);
  expect("old");
  EXPECT_EQ(leftovers(), 0U);
}

}  // namespace
}  // namespace cocoon::engine
