// The drivers of Firecracker and Cloud Hypervisor against the real ones, with a guest of 5 KB.

#include <string>

#include <gtest/gtest.h>

#include "cocoon/error.h"

#include "vmm_rest_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;
constexpr auto kTimeout = RealVmm::kTimeout;

class RealRestVmmTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string missing = RealVmm::missing(GetParam()); !missing.empty()) GTEST_SKIP() << missing;
    vmm_ = std::make_unique<RealVmm>(GetParam());
  }
  [[nodiscard]] bool is_firecracker() const { return GetParam() == "firecracker"; }
  [[nodiscard]] std::string disk(const system::Path& path, std::int64_t bytes = 1 << 20) const {
    std::ofstream(path) << "";
    std::filesystem::resize_file(path, static_cast<std::uintmax_t>(bytes));
    return path.string();
  }

  std::unique_ptr<RealVmm> vmm_;
};

TEST_P(RealRestVmmTest, GuestDoesNotRunBeforeItIsBootedThenPausesResumesAndPowersOff) {
  auto& driver = *vmm_->driver_;
  vmm_->launch();
  EXPECT_EQ(vmm_->state(), GuestState::kNotBooted);
  EXPECT_THROW(driver.pause(vmm_->vm_, kTimeout, vmm_->cancel_), VmmError);
  EXPECT_THROW(driver.resume(vmm_->vm_, kTimeout, vmm_->cancel_), VmmError);

  vmm_->boot();
  EXPECT_EQ(vmm_->state(), GuestState::kRunning);
  EXPECT_TRUE(vmm_->says("MEM 64")) << vmm_->log();
  EXPECT_TRUE(vmm_->says("CMDLINE hello console=ttyS0"));
  EXPECT_THROW(vmm_->boot(), VmmError);
  for (int i = 0; i < 2; ++i) {
    driver.pause(vmm_->vm_, kTimeout, vmm_->cancel_);
    EXPECT_EQ(vmm_->state(), GuestState::kPaused);
  }
  for (int i = 0; i < 2; ++i) {
    driver.resume(vmm_->vm_, kTimeout, vmm_->cancel_);
    EXPECT_EQ(vmm_->state(), GuestState::kRunning);
  }
  driver.request_power_off(vmm_->vm_, kTimeout, vmm_->cancel_);
  ASSERT_TRUE(vmm_->dies());
  EXPECT_EQ(vmm_->exit()->describe(), "status 0") << vmm_->log();
}

TEST_P(RealRestVmmTest, ConsoleHearsAndSpeaksAndIsReopened) {
  vmm_->launch();
  vmm_->boot();
  EXPECT_TRUE(vmm_->says("GUEST-UP")) << vmm_->log();
  vmm_->type("d");
  EXPECT_TRUE(vmm_->says("DIRTY"));
  vmm_->type("q");
  EXPECT_TRUE(vmm_->dies());
  EXPECT_EQ(vmm_->exit()->describe(), "status 0");
}

TEST_P(RealRestVmmTest, APausedGuestIsResumedToHearOfThePowerButtonAndNoGuestIsRefused) {
  const Driver& driver = *vmm_->driver_;
  vmm_->launch();
  EXPECT_THROW(driver.request_power_off(vmm_->vm_, kTimeout, vmm_->cancel_), VmmError) << "nothing was booted";
  vmm_->boot();
  ASSERT_TRUE(vmm_->says("GUEST-UP"));
  driver.pause(vmm_->vm_, kTimeout, vmm_->cancel_);
  driver.request_power_off(vmm_->vm_, kTimeout, vmm_->cancel_);
  EXPECT_TRUE(vmm_->says("DOWN "));
  EXPECT_TRUE(vmm_->dies());
}

TEST_P(RealRestVmmTest, GuestThatIgnoresTheRequestLivesOnUntilTheVmmIsEnded) {
  vmm_->launch();
  vmm_->boot();
  ASSERT_TRUE(vmm_->says("GUEST-UP"));
  vmm_->type("z");
  ASSERT_TRUE(vmm_->says("z"));
  vmm_->driver_->request_power_off(vmm_->vm_, kTimeout, vmm_->cancel_);
  EXPECT_FALSE(vmm_->process_->wait(500ms, vmm_->cancel_));
  if (vmm_->driver_->quit(vmm_->vm_, kTimeout, vmm_->cancel_)) {
    ASSERT_TRUE(vmm_->dies());
    EXPECT_EQ(vmm_->exit()->describe(), "status 0");
  } else {
    EXPECT_TRUE(is_firecracker()) << "which knows of no such call";
    system::terminate(*vmm_->process_, 5s, vmm_->cancel_);
    EXPECT_TRUE(vmm_->dies());
  }
}

TEST_P(RealRestVmmTest, TripleFaultEndsFirecrackerAndRestartsTheGuestUnderCloudHypervisor) {
  vmm_->launch();
  vmm_->boot();
  ASSERT_TRUE(vmm_->says("GUEST-UP"));
  vmm_->type("x");
  if (is_firecracker()) {
    ASSERT_TRUE(vmm_->dies());
    EXPECT_FALSE(vmm_->exit()->signalled);
  } else {
    EXPECT_TRUE(vmm_->says("GUEST-UP"));
    EXPECT_TRUE(vmm_->alive());
  }
}

TEST_P(RealRestVmmTest, StartsAgainInTheFoldersOfARunThatWasKilled) {
  for (int i = 0; i < 3; ++i) {
    vmm_->launch();
    vmm_->boot();
    EXPECT_EQ(vmm_->state(), GuestState::kRunning);
    vmm_->end();
    EXPECT_TRUE(std::filesystem::is_socket(vmm_->driver_->api_socket(vmm_->vm_))) << "which a killed one leaves behind";
    EXPECT_TRUE(std::filesystem::is_socket(*vmm_->driver_->vsock(vmm_->vm_)));
    EXPECT_TRUE(std::filesystem::exists(vmm_->driver_->console(vmm_->vm_)));
  }
}

TEST_P(RealRestVmmTest, AsManyDisksAndAsLongALineAsAreAllowed) {
  auto& config = vmm_->vm_.config;
  const int disks = is_firecracker() ? 15 : 29;
  for (int i = 0; i < disks; ++i) {
    const bool own = i == 1;
    config.disks.push_back({.path = disk(own ? vmm_->run_file("cow.raw") : vmm_->dir_.path() / std::to_string(i)),
                            .readonly = i == 0,
                            .role = own      ? "cow"
                                    : i == 0 ? "layer"
                                             : "data"});
  }
  config.cmdline = "";
  std::size_t length = 2047;
  for (; length > 0; --length) {
    config.cmdline = std::string(length, 'x');
    try {
      vmm_->driver_->check(config);
      break;
    } catch (const InvalidArgument&) {
      continue;
    }
  }
  EXPECT_GT(length, 1200U);
  vmm_->launch();
  ASSERT_NO_THROW(vmm_->boot()) << vmm_->log();
  EXPECT_TRUE(vmm_->says("CMDLINE " + config.cmdline + " console=ttyS0"));
}

TEST_P(RealRestVmmTest, VsockIsASocketInTheRunDir) {
  vmm_->launch();
  vmm_->boot();
  const auto path = vmm_->driver_->vsock(vmm_->vm_);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->parent_path(), vmm_->vm_.run_dir);
  EXPECT_EQ(system::probe_socket(*path, kTimeout), system::SocketProbe::kLive);
}

TEST_P(RealRestVmmTest, IsKnownAgainInTheProcessTableUntilItIsKilled) {
  vmm_->launch();
  const auto mine = [&](const system::ProcessInfo& p) {
    return !p.zombie() && vmm_->driver_->owns(p, vmm_->vm_.id, vmm_->vm_.run_dir);
  };
  std::vector<system::ProcessInfo> found;
  // A launcher that is a script is not yet the VMM.
  ASSERT_TRUE(eventually([&] {
    found = system::scan_processes(mine);
    return found.size() == 1;
  }));
  EXPECT_EQ(found[0].identity, vmm_->identity_);
  vmm_->end();
  EXPECT_EQ(system::scan_processes(mine).size(), 0U);
}

TEST_P(RealRestVmmTest, WhatItRefusesIsAnErrorInItsOwnWords) {
  auto& config = vmm_->vm_.config;
  config.kernel = vmm_->dir_.file("no kernel", "not an ELF file").string();
  vmm_->launch();
  try {
    vmm_->boot();
    FAIL() << "booted";
  } catch (const VmmError& error) {
    EXPECT_GE(error.status, 400);
    EXPECT_EQ(std::string(error.what()).rfind("boot web-1: PUT /", 0), 0U) << error.what();
    EXPECT_NE(error.body, "");
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealRestVmmTest, ::testing::Values("firecracker", "cloud-hypervisor"),
                         [](const auto& i) { return i.param == "firecracker" ? "Firecracker" : "CloudHypervisor"; });

class RealCloudHypervisorTest : public RealRestVmmTest {};
INSTANTIATE_TEST_SUITE_P(Only, RealCloudHypervisorTest, ::testing::Values("cloud-hypervisor"));

TEST_P(RealCloudHypervisorTest, BootsFirmware) {
  vmm_->vm_.config.machine = "firmware";  // the same ELF file: it is loaded as firmware is
  vmm_->vm_.config.cmdline = "";
  vmm_->driver_->check(vmm_->vm_.config);
  vmm_->launch();
  vmm_->boot();
  EXPECT_TRUE(vmm_->says("GUEST-UP")) << vmm_->log();
}

TEST_P(RealCloudHypervisorTest, ADiskThatAnotherOneWritesIsRefused) {
  vmm_->vm_.config.disks = {{.path = disk(vmm_->dir_.path() / "shared")}};
  vmm_->launch();
  vmm_->boot();
  RealVmm other(GetParam());
  other.vm_.config.disks = vmm_->vm_.config.disks;
  other.launch();
  EXPECT_THROW(other.boot(), VmmError);
}

}  // namespace
}  // namespace cocoon::vmm
