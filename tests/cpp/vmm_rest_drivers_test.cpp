// Firecracker's and Cloud Hypervisor's drivers: configuration, command, and what they say and hear on the API socket.

#include <future>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/vmm/cloud_hypervisor.h"
#include "cocoon/vmm/firecracker.h"
#include "cocoon/vmm/rest.h"

#include "vmm_rest_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmConfig;
using lifecycle::VmRecord;
using nlohmann::json;
using Strings = std::vector<std::string>;

constexpr auto kTimeout = 20s;

class RestDriverTest : public ::testing::TestWithParam<std::string> {
 protected:
  RestDriverTest() : driver_(make_driver(GetParam())) {
    vm_.id = "abc";
    vm_.run_dir = (dir_.path() / "abc").string();
    vm_.log_dir = dir_.path().string();
    std::filesystem::create_directory(vm_.run_dir);
    vm_.config.name = "web-1";
    vm_.config.cpu = 2;
    vm_.config.mem_bytes = 64 << 20;
    vm_.config.kernel = dir_.file("kernel", "k").string();
  }
  [[nodiscard]] bool is_firecracker() const { return GetParam() == "firecracker"; }
  [[nodiscard]] std::string own_binary() const { return "/opt/" + GetParam() + "-1.2"; }

  std::string refusal(const VmConfig& config) {
    try {
      driver_->check(config);
      return "";
    } catch (const InvalidArgument& error) {
      return error.what();
    }
  }
  // What a healthy VMM that has not booted answers.
  [[nodiscard]] std::string healthy(const std::string& what) const {
    if (what == "GET /") {
      return json{{"id", "abc"}, {"state", "Not started"}, {"vmm_version", "1.17.0-dev"}}.dump();
    }
    if (what == "GET /api/v1/vmm.ping") return json{{"version", "54.0.0"}, {"pid", ::getpid()}}.dump();
    if (what == "GET /api/v1/vm.info") return refused(404, R"(["VM is not created"])");
    return kNoContent;
  }
  // Runs `call` against a VMM that answers so; the error's text, or "".
  template <typename Call>
  std::string error_of(const FakeApi::Answer& answer, const Call& call) {
    std::string text;
    {
      FakeApi api(driver_->api_socket(vm_), answer);
      try {
        call();
      } catch (const VmmError& error) {
        text = error.what();
        status_ = error.status;
        body_ = error.body;
      }
      heard_ = api.heard();
    }
    std::filesystem::remove(driver_->api_socket(vm_));
    return text;
  }

  TempDir dir_;
  std::unique_ptr<Driver> driver_;
  VmRecord vm_;
  system::Cancel cancel_;
  int status_ = 0;
  std::string body_;
  Strings heard_;
};

TEST_P(RestDriverTest, RefusesWhatItCannotDoByNameValueAndWhatIsAllowed) {
  EXPECT_EQ(refusal(vm_.config), "");
  const auto with = [&](auto&& change) {
    VmConfig config = vm_.config;
    change(config);
    return refusal(config);
  };
  const std::string& name = GetParam();
  const std::string most = is_firecracker() ? "32" : "254";
  EXPECT_EQ(with([](VmConfig& c) { c.cpu = 0; }), "cpu: 0, allowed for " + name + ": 1 to " + most);
  EXPECT_EQ(with([](VmConfig& c) { c.cpu = 255; }), "cpu: 255, allowed for " + name + ": 1 to " + most);
  EXPECT_EQ(with([](VmConfig& c) { c.mem_bytes = (64 << 20) + 4096; }),
            "memory: 67112960 bytes, allowed for " + name + ": whole MiB, at least 32");
  EXPECT_EQ(with([](VmConfig& c) { c.mem_bytes = 16 << 20; }),
            "memory: 16777216 bytes, allowed for " + name + ": whole MiB, at least 32");
  EXPECT_EQ(with([](VmConfig& c) { c.accelerator = "tcg"; }), "accelerator: 'tcg', allowed for " + name + ": kvm");
  EXPECT_NE(with([](VmConfig& c) { c.machine = "q35"; }).find("machine: 'q35', allowed for " + name),
            std::string::npos);
  EXPECT_NE(with([](VmConfig& c) { c.kernel = "/none"; }).find("kernel: '/none'"), std::string::npos);
  EXPECT_NE(with([](VmConfig& c) { c.cmdline = std::string(2048, 'x'); }).find("cmdline: 2048 bytes, at most "),
            std::string::npos);
  EXPECT_NE(with([&](VmConfig& c) { c.kernel = dir_.file("k\xff").string(); }).find("not UTF-8"), std::string::npos);
  EXPECT_NE(with([](VmConfig& c) {
              for (int i = 0; i < 30; ++i) c.disks.push_back({.path = "/none"});
            }).find("disks: 30, at most " + std::string(is_firecracker() ? "15" : "29") + " are allowed"),
            std::string::npos);
  const auto disk = dir_.file("disk", std::string(4096, '\0')).string();
  EXPECT_EQ(with([&](VmConfig& c) { c.disks = {{.path = disk, .format = "vhd"}}; }),
            "disk 0 format: 'vhd', allowed for " + name + ": raw" + (is_firecracker() ? "" : ", qcow2"));
  const std::string qcow2 = with([&](VmConfig& c) { c.disks = {{.path = disk, .format = "qcow2"}}; });
  EXPECT_EQ(qcow2, is_firecracker() ? "disk 0 format: 'qcow2', allowed for firecracker: raw" : "");
  const std::string serial = with([&](VmConfig& c) { c.disks = {{.path = disk, .serial = "s"}}; });
  EXPECT_EQ(serial.empty(), !is_firecracker());
  EXPECT_EQ(with([](VmConfig& c) { c.kernel = ""; }), "") << "it may be kept in the books, but not be started";
  vm_.config.kernel = "";
  EXPECT_THROW(static_cast<void>(driver_->command(vm_, own_binary())), InvalidArgument);
}

TEST_P(RestDriverTest, CommandIsKnownAgainByNameArgumentsAndFolder) {
  const Command command = driver_->command(vm_, own_binary());
  system::ProcessInfo process{.argv = command.argv, .cwd = vm_.run_dir};
  EXPECT_TRUE(driver_->owns(process, vm_.id, vm_.run_dir));
  EXPECT_FALSE(driver_->owns(process, "abd", dir_.path() / "abd"));
  EXPECT_FALSE(driver_->owns(process, vm_.id, dir_.path() / "other" / "abc"));
  process.cwd = dir_.path();
  EXPECT_FALSE(driver_->owns(process, vm_.id, vm_.run_dir));
  process.cwd = vm_.run_dir;
  process.argv[0] = "/usr/bin/vim";
  EXPECT_FALSE(driver_->owns(process, vm_.id, vm_.run_dir));
  EXPECT_THROW(static_cast<void>(driver_->command(vm_, "/usr/bin/vim")), InvalidArgument);
  EXPECT_THROW(static_cast<void>(driver_->command(vm_, own_binary())), StoreError) << "what it makes must not be there";
}

TEST_P(RestDriverTest, BootRefusesAnotherVmsVmmAndOneThatIsTooOld) {
  const auto boot_with = [&](const std::string& what, const json& change) {
    return error_of(
        [&](const std::string& asked) {
          std::string said = healthy(asked);
          if (asked != what) return said;
          json answer = json::parse(said);
          answer.update(change);
          return answer.dump();
        },
        [&] { driver_->boot(vm_, kTimeout, cancel_); });
  };
  if (is_firecracker()) {
    EXPECT_NE(boot_with("GET /", {{"id", "abd"}}).find("is not this VM's"), std::string::npos);
    EXPECT_EQ(heard_, Strings{"GET /"}) << "and nothing is said to it";
    for (const char* version : {"1.11.9", "0.99.0", "", "x", "1", "1.", "-1.20"}) {
      EXPECT_NE(boot_with("GET /", {{"vmm_version", version}}).find("allowed: 1.12 or newer"), std::string::npos)
          << version;
    }
    EXPECT_EQ(boot_with("GET /", {{"vmm_version", "1.12.0"}}), "");
    EXPECT_EQ(boot_with("GET /", {{"vmm_version", "2.0.0"}}), "");
  } else {
    // Ours is a process, but no Cloud Hypervisor.
    EXPECT_NE(boot_with("GET /api/v1/vmm.ping", json::object()).find("is not this VM's"), std::string::npos);
    EXPECT_EQ(heard_, Strings{"GET /api/v1/vmm.ping"}) << "and nothing is said to it";
    EXPECT_NE(boot_with("GET /api/v1/vmm.ping", {{"pid", "x"}}).find("returned no pid"), std::string::npos);
    EXPECT_NO_THROW(require_version("Cloud Hypervisor", "51.0.0", 51, 0));
    EXPECT_THROW(require_version("Cloud Hypervisor", "50.2.0", 51, 0), VmmError);
  }
}

TEST_P(RestDriverTest, OddAnswersAreErrorsThatSayWhatWasTriedOnWhichVm) {
  const auto state = [&] { static_cast<void>(driver_->guest_state(vm_, kTimeout, cancel_)); };
  const auto saying = [&](const std::string& text) {
    return error_of([text](const std::string&) { return text; }, state);
  };
  EXPECT_EQ(saying("").rfind("state of web-1: ", 0), 0U) << "it hung up";
  EXPECT_EQ(saying("raw:garbage\r\n\r\n").rfind("state of web-1: HTTP: ", 0), 0U);
  EXPECT_NE(saying("not json").find("expected a JSON object, received 'not json'"), std::string::npos);
  EXPECT_NE(saying("[]"), "");
  EXPECT_NE(saying("{}").find("'state'"), std::string::npos);
  EXPECT_NE(saying(R"({"state": 1})"), "");
  EXPECT_NE(saying(R"({"state": "Dancing"})").find("'Dancing', which is not known"), std::string::npos);
  EXPECT_EQ(body_, "Dancing");

  const auto reason = [&](int status, const std::string& body) {
    return error_of([&](const std::string&) { return refused(status, body); }, state);
  };
  EXPECT_NE(reason(400, R"({"fault_message": "no such thing"})").find(": refused with 400: no such thing"),
            std::string::npos);
  EXPECT_EQ(status_, 400);
  EXPECT_EQ(body_, R"({"fault_message": "no such thing"})");
  EXPECT_NE(reason(500, R"(["outer", "inner"])").find(": refused with 500: outer: inner"), std::string::npos);
  // What the parser itself says: not JSON, though it looks like it.
  EXPECT_NE(reason(400, "{ \"error\": \"bad\nAll previous requests will be dropped.\" }").find("bad All previous"),
            std::string::npos);
  EXPECT_NE(reason(500, "").find("no reason given"), std::string::npos);
  // Full until the time was up, or in the middle of the last attempt when that was over.
  const auto until_up = [&] { static_cast<void>(driver_->guest_state(vm_, 1s, cancel_)); };
  EXPECT_NE(error_of([](const std::string&) { return refused(503, ""); }, until_up).find("503"), std::string::npos);
}

TEST_P(RestDriverTest, AVmmThatHangsIsATimeoutAndCanBeGivenUp) {
  std::promise<void> over;
  auto until = over.get_future().share();
  FakeApi api(driver_->api_socket(vm_), [&](const std::string&) {
    until.wait();
    return std::string();
  });
  EXPECT_THROW(driver_->pause(vm_, 60ms, cancel_), VmmTimeout);
  cancel_.request();
  EXPECT_THROW(driver_->pause(vm_, kTimeout, cancel_), Cancelled);
  over.set_value();
}

INSTANTIATE_TEST_SUITE_P(All, RestDriverTest, ::testing::Values("firecracker", "cloud-hypervisor"),
                         [](const auto& i) { return i.param == "firecracker" ? "Firecracker" : "CloudHypervisor"; });

class FirecrackerTest : public RestDriverTest {};
class CloudHypervisorTest : public RestDriverTest {};
INSTANTIATE_TEST_SUITE_P(Only, FirecrackerTest, ::testing::Values("firecracker"));
INSTANTIATE_TEST_SUITE_P(Only, CloudHypervisorTest, ::testing::Values("cloud-hypervisor"));

TEST_P(FirecrackerTest, BootIsTheVendorsSequence) {
  vm_.config.initrd = "/initrd";
  vm_.config.cmdline = "quiet panic=9";
  vm_.config.disks = {{.path = "/base", .readonly = true, .role = "layer"},
                      {.path = vm_.run_dir + "/cow.raw", .role = "cow", .serial = "cocoon-cow"}};
  FakeApi api(driver_->api_socket(vm_), [&](const std::string& what) { return healthy(what); });
  driver_->boot(vm_, kTimeout, cancel_);
  EXPECT_EQ(api.heard(), (Strings{"GET /", "PUT /machine-config", "PUT /boot-source", "PUT /drives/disk0",
                                  "PUT /drives/disk1", "PUT /entropy", "PUT /vsock", "PUT /actions"}));
  EXPECT_EQ(api.body_of("PUT /machine-config"), (json{{"vcpu_count", 2}, {"mem_size_mib", 64}}));
  EXPECT_EQ(api.body_of("PUT /boot-source"), (json{{"kernel_image_path", vm_.config.kernel},
                                                   {"initrd_path", "/initrd"},
                                                   {"boot_args", "quiet panic=9 console=ttyS0 reboot=k"}}));
  EXPECT_EQ(api.body_of("PUT /drives/disk0"), (json{{"drive_id", "disk0"},
                                                    {"path_on_host", "disk0"},
                                                    {"is_root_device", false},
                                                    {"is_read_only", true},
                                                    {"cache_type", "Unsafe"}}));
  // Links in the run dir: what a snapshot holds is true of every clone.
  static_cast<void>(driver_->command(vm_, own_binary()));
  EXPECT_EQ(std::filesystem::read_symlink(system::Path(vm_.run_dir) / "disk0"), "/base");
  EXPECT_EQ(std::filesystem::read_symlink(system::Path(vm_.run_dir) / "disk1"), vm_.run_dir + "/cow.raw");
  EXPECT_EQ(api.body_of("PUT /drives/disk1")["cache_type"], "Writeback");
  EXPECT_EQ(api.body_of("PUT /vsock"), (json{{"guest_cid", 3}, {"uds_path", "vsock.uds"}}));
  EXPECT_EQ(api.body_of("PUT /actions"), (json{{"action_type", "InstanceStart"}}));
}

TEST_P(FirecrackerTest, IdsThatWouldMakeItPanicAreRefused) {
  for (const std::string& id : {std::string("a_b"), std::string(65, 'a'), std::string(), std::string("a b")}) {
    vm_.id = id;
    EXPECT_THROW(static_cast<void>(driver_->command(vm_, own_binary())), InvalidArgument) << id;
  }
}

TEST_P(CloudHypervisorTest, PauseAndResumeLookBeforeTheyAsk) {
  const auto last = [&](const std::string& state, bool pause) {
    const std::string error = error_of(
        [&](const std::string& what) {
          if (what == "GET /api/v1/vm.info" && !state.empty()) return json{{"state", state}}.dump();
          return healthy(what);
        },
        [&] { pause ? driver_->pause(vm_, kTimeout, cancel_) : driver_->resume(vm_, kTimeout, cancel_); });
    return error.empty() ? heard_.back() : "refused";
  };
  EXPECT_EQ(last("Running", true), "PUT /api/v1/vm.pause");
  EXPECT_EQ(last("Paused", true), "GET /api/v1/vm.info");
  EXPECT_EQ(last("Running", false), "GET /api/v1/vm.info");
  EXPECT_EQ(last("Paused", false), "PUT /api/v1/vm.resume");
  for (const char* state : {"", "Created", "Shutdown"}) {
    EXPECT_EQ(last(state, true), "refused") << state;
    EXPECT_EQ(last(state, false), "refused") << state;
  }
}

TEST_P(CloudHypervisorTest, NoBodyIsLongEnoughToKillIt) {
  for (int i = 0; i < 29; ++i) {
    const auto folder = dir_.path() / std::string(200, 'a') / std::string(200, static_cast<char>('a' + i % 26)) /
                        std::string(200, 'b') / std::string(200, 'c');
    std::filesystem::create_directories(folder);
    const auto disk = folder / std::to_string(i);
    std::ofstream(disk) << "x";
    vm_.config.disks.push_back({.path = disk.string()});
  }
  EXPECT_EQ(refusal(vm_.config), "") << "29 disks of 800 bytes each are fine";
  for (auto& disk : vm_.config.disks) {
    disk.role = "cow";  // not looked at
    disk.path = "/" + std::string(4000, 'x') + std::to_string(&disk - vm_.config.disks.data());
  }
  EXPECT_NE(refusal(vm_.config).find("at most 100000 are allowed"), std::string::npos);
}

TEST_P(CloudHypervisorTest, FirmwareTakesNoKernelLine) {
  vm_.config.machine = "firmware";
  EXPECT_EQ(refusal(vm_.config), "");
  vm_.config.cmdline = "quiet";
  EXPECT_EQ(refusal(vm_.config),
            "cmdline: 'quiet', allowed with machine 'firmware': none, the firmware finds them on a disk");
}

}  // namespace
}  // namespace cocoon::vmm
