// Saving and loading with the real Firecracker and Cloud Hypervisor.

#include <sys/stat.h>

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"

#include "vmm_rest_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
constexpr auto kTimeout = RealVmm::kTimeout;

std::int64_t bytes_on_disk(const system::Path& path) {
  struct stat status{};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return status.st_blocks * 512;
}

class RealSnapshotTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string missing = RealVmm::missing(GetParam()); !missing.empty()) GTEST_SKIP() << missing;
    source_ = std::make_unique<RealVmm>(GetParam());
    clone_ = std::make_unique<RealVmm>(GetParam());
    for (RealVmm* vmm : {source_.get(), clone_.get()}) {
      const system::Path disk = vmm->run_file("cow.raw");
      std::ofstream(disk) << std::string(1 << 20, '\0');
      vmm->vm_.config.disks = {{.path = disk.string(), .role = "cow"}};
    }
    source_->launch();
    source_->boot();
    ASSERT_TRUE(source_->says("tick 1")) << source_->log();
  }
  [[nodiscard]] bool is_firecracker() const { return GetParam() == "firecracker"; }
  [[nodiscard]] const char* memory_name() const { return is_firecracker() ? "memory" : "memory-ranges"; }

  std::unique_ptr<RealVmm> source_;
  std::unique_ptr<RealVmm> clone_;
};

TEST_P(RealSnapshotTest, SavedGuestIsSparseAndGoesOnInAFolderOfItsOwnBesideItsSource) {
  const Saved saved = source_->save("saved");
  EXPECT_EQ(source_->state(), GuestState::kPaused);
  EXPECT_EQ(saved.vm.state_files.back().size_bytes, 64 << 20);
  EXPECT_LT(bytes_on_disk(saved.dir / memory_name()), 8 << 20) << "what the guest never touched is no byte of a file";
  EXPECT_EQ(saved.vm.vmm_version, source_->driver_->version(source_->binary()));
  source_->driver_->resume(source_->vm_, kTimeout, source_->cancel_);

  ASSERT_NO_THROW(clone_->driver_->check_saved(saved, clone_->binary()));
  clone_->launch_saved(saved);
  clone_->load(saved);
  EXPECT_EQ(clone_->state(), GuestState::kRunning);
  std::filesystem::remove_all(saved.dir);
  EXPECT_TRUE(clone_->says("tick 3")) << "it counts on from where it was" << clone_->log();
  clone_->type("d");
  EXPECT_TRUE(clone_->says("DIRTY"));
  EXPECT_TRUE(source_->says("tick 3")) << "and so does its source";
  // Its disk is its own.
  const auto opened = [](const RealVmm& vmm, const system::Path& path) {
    for (const auto& link : std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", vmm.identity_.pid))) {
      std::error_code gone;
      if (std::filesystem::read_symlink(link, gone) == path) return true;
    }
    return false;
  };
  EXPECT_TRUE(opened(*clone_, clone_->run_file("cow.raw")));
  EXPECT_FALSE(opened(*clone_, source_->run_file("cow.raw")));
}

TEST_P(RealSnapshotTest, AGuestThatWasLoadedIsSavedWholeAgainAndAgain) {
  source_->type("d");  // more than its first pages
  ASSERT_TRUE(source_->says("DIRTY"));
  Saved saved = source_->save("saved");
  source_->end();
  std::unique_ptr<RealVmm> last = std::move(clone_);
  for (int round = 0; round < 3; ++round) {
    last->launch_saved(saved);
    last->load(saved);
    if (round == 1) last->type("d");
    ASSERT_TRUE(last->says("tick ")) << last->log();
    saved = last->save(fmt::format("again-{}", round));
    last->driver_->resume(last->vm_, kTimeout, last->cancel_);
    saved = last->save(fmt::format("twice-{}", round));
    last->end();
  }
  last->launch_saved(saved);
  last->load(saved);
  EXPECT_TRUE(last->says("tick "));
  last->driver_->request_power_off(last->vm_, kTimeout, last->cancel_);
  EXPECT_TRUE(last->dies());
}

TEST_P(RealSnapshotTest, ARunningGuestIsNotSaved) {
  const auto dir = source_->dir_.path() / "saved";
  std::filesystem::create_directory(dir);
  EXPECT_THROW(static_cast<void>(source_->driver_->save(source_->vm_, dir, kTimeout, source_->cancel_)), VmmError);
  EXPECT_EQ(source_->state(), GuestState::kRunning);
}

TEST_P(RealSnapshotTest, ALoadedGuestMayResetAfterItsSnapshotWasRemoved) {
  const Saved saved = source_->save("saved");
  clone_->launch_saved(saved);
  clone_->load(saved);
  std::filesystem::remove_all(saved.dir);
  ASSERT_TRUE(clone_->says("tick "));
  clone_->type("r");
  if (is_firecracker())
    EXPECT_TRUE(clone_->dies());
  else
    EXPECT_TRUE(clone_->says("GUEST-UP")) << clone_->log();
}

TEST_P(RealSnapshotTest, WhatCannotBeLoadedIsRefusedBeforeAnythingIsTouched) {
  const Saved good = source_->save("saved");
  const auto& driver = *clone_->driver_;
  const auto check = [&](const Saved& saved) { driver.check_saved(saved, clone_->binary()); };
  EXPECT_NO_THROW(check(good));
  Saved bad = good;
  bad.vm.vmm_version = "9.9.9";
  EXPECT_THROW(check(bad), InvalidArgument);
  bad = good;
  bad.vm.facts["host_cpu"] = "i386";
  EXPECT_THROW(check(bad), InvalidArgument);
  bad.vm.facts.clear();
  EXPECT_THROW(check(bad), CorruptSnapshot);
  bad = good;
  bad.vm.config.mem_bytes *= 2;
  EXPECT_THROW(check(bad), CorruptSnapshot) << "a memory file that is too short: one of the two would give it zeros";
  bad = good;
  bad.vm.state_files.pop_back();
  EXPECT_THROW(check(bad), CorruptSnapshot);
  if (!is_firecracker()) {
    bad = good;
    bad.vm.config.disks.clear();
    EXPECT_THROW(check(bad), CorruptSnapshot);
    std::ofstream(good.dir / "config.json") << "[]";
    EXPECT_THROW(check(good), CorruptSnapshot);
  }
}

TEST_P(RealSnapshotTest, ALoadThatFailsIsAnErrorWithTheReason) {
  const Saved saved = source_->save("saved");
  source_->end();
  std::filesystem::resize_file(saved.dir / (is_firecracker() ? "vmstate" : "state.json"), 100);
  clone_->launch_saved(saved);
  try {
    clone_->load(saved);
    FAIL() << "loaded";
  } catch (const VmmError& error) {
    EXPECT_TRUE(is_firecracker()) << error.what();
    EXPECT_EQ(error.status, 400);
    EXPECT_NE(error.body, "") << "though it ends by itself, what it said is kept";
    EXPECT_TRUE(clone_->dies());
  } catch (const CorruptSnapshot&) {
    EXPECT_FALSE(is_firecracker()) << "which does not let us look into it";
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealSnapshotTest, ::testing::Values("firecracker", "cloud-hypervisor"),
                         [](const auto& i) { return i.param == "firecracker" ? "Firecracker" : "CloudHypervisor"; });

class CloudHypervisorMemoryTest : public RealSnapshotTest {};
INSTANTIATE_TEST_SUITE_P(Only, CloudHypervisorMemoryTest, ::testing::Values("cloud-hypervisor"));

TEST_P(CloudHypervisorMemoryTest, IsMappedAndNeverWritten) {
  const Saved saved = source_->save("saved");
  const auto before = system::find_text(saved.dir / "memory-ranges", 128 << 20);
  clone_->launch_saved(saved);
  clone_->load(saved);
  const auto maps = system::find_text(fmt::format("/proc/{}/maps", clone_->identity_.pid), 1 << 20).value_or("");
  EXPECT_NE(maps.find("memory.base"), std::string::npos) << maps;
  clone_->type("d");
  EXPECT_TRUE(clone_->says("DIRTY"));
  EXPECT_TRUE(system::find_text(saved.dir / "memory-ranges", 128 << 20) == before);
}

TEST_P(CloudHypervisorMemoryTest, IsReadWhereTheStateIsNotAsWeKnowIt) {
  Saved saved = source_->save("saved");
  std::string text = *system::find_text(saved.dir / "state.json", 16 << 20);
  json state = json::parse(text);
  json manager = json::parse(state["snapshots"]["memory-manager"]["snapshot_data"]["state"].get<std::string>());
  manager["guest_ram_mappings"][0]["size"] = (64 << 20) + 4096;
  state["snapshots"]["memory-manager"]["snapshot_data"]["state"] = manager.dump();
  std::ofstream(saved.dir / "state.json") << state.dump();
  clone_->launch_saved(saved);
  try {
    clone_->load(saved);
    EXPECT_EQ(clone_->state(), GuestState::kRunning);
  } catch (const VmmError& error) {
    EXPECT_NE(error.status, 0) << error.what();
    EXPECT_EQ(clone_->state(), GuestState::kNotBooted) << "and it lives, to be told otherwise";
  }
  const auto maps = system::find_text(fmt::format("/proc/{}/maps", clone_->identity_.pid), 1 << 20).value_or("");
  EXPECT_EQ(maps.find("memory.base"), std::string::npos) << "not mapped";
}

}  // namespace
}  // namespace cocoon::vmm
