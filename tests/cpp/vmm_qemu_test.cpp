// The driver's calls: against a QMP server that says what it is told to, and against a real QEMU.

#include <fcntl.h>

#include <cstdlib>
#include <future>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/system/process.h"
#include "cocoon/system/socket.h"
#include "cocoon/vmm/qemu.h"

#include "vmm_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using nlohmann::json;

constexpr auto kTimeout = 60s;

// --- against a server of ours -----------------------------------------------------------------------------------

class QemuCallsTest : public ::testing::Test {
 protected:
  QemuCallsTest() {
    vm_.id = "abc";
    vm_.config.name = "web-1";
    vm_.run_dir = dir_.path().string();
    vm_.log_dir = dir_.path().string();
  }

  // Runs `call` against a QEMU in that state; returns the commands it got after the negotiation.
  template <typename Call>
  std::vector<std::string> commands(const std::string& status, Call&& call, const std::string& name = "cocoon-abc") {
    std::vector<std::string> heard;
    {
      FakeQmp server(qemu_.api_socket(vm_), [&](FakeClient& client) {
        client.greet();
        for (std::string line = client.hear(); !line.empty(); line = client.hear()) {
          const json request = json::parse(line);
          heard.push_back(request["execute"]);
          json answer{{"id", request["id"]}, {"return", json::object()}};
          if (heard.back() == "query-status") answer["return"]["status"] = status;
          if (heard.back() == "query-name") answer["return"]["name"] = name;
          client.say(answer.dump() + "\n");
        }
      });
      call();
    }
    std::filesystem::remove(qemu_.api_socket(vm_));
    return heard;
  }

  TempDir dir_;
  VmRecord vm_;
  Qemu qemu_;
  system::Cancel cancel_;
};

TEST_F(QemuCallsTest, EveryRunStateOfQemuHasAMeaning) {
  const std::vector<std::pair<std::string, GuestState>> states{
      {"prelaunch", GuestState::kNotBooted},  {"inmigrate", GuestState::kNotBooted},
      {"running", GuestState::kRunning},      {"suspended", GuestState::kRunning},
      {"paused", GuestState::kPaused},        {"io-error", GuestState::kPaused},
      {"debug", GuestState::kPaused},         {"watchdog", GuestState::kPaused},
      {"save-vm", GuestState::kPaused},       {"restore-vm", GuestState::kPaused},
      {"postmigrate", GuestState::kPaused},   {"finish-migrate", GuestState::kPaused},
      {"colo", GuestState::kPaused},          {"shutdown", GuestState::kEnded},
      {"guest-panicked", GuestState::kEnded}, {"internal-error", GuestState::kEnded},
  };
  for (const auto& [status, meaning] : states) {
    SCOPED_TRACE(status);
    commands(status, [&] { EXPECT_EQ(qemu_.guest_state(vm_, kTimeout, cancel_), meaning); });
  }
  commands("dancing", [&] {
    try {
      static_cast<void>(qemu_.guest_state(vm_, kTimeout, cancel_));
      ADD_FAILURE() << "accepted";
    } catch (const VmmError& error) {
      EXPECT_EQ(error.body, "dancing");
      EXPECT_EQ(std::string(error.what()).rfind("state of web-1: ", 0), 0U) << error.what();
    }
  });
}

TEST_F(QemuCallsTest, BootLetsAWaitingGuestRun) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(commands("prelaunch", [&] { qemu_.boot(vm_, kTimeout, cancel_); }),
            (Names{"query-name", "query-status", "cont"}));
}

TEST_F(QemuCallsTest, BootRefusesAnotherVmsQemuAndOneThatDoesNotWait) {
  for (const std::string status : {"running", "paused", "shutdown"}) {
    const auto heard = commands(status, [&] { EXPECT_THROW(qemu_.boot(vm_, kTimeout, cancel_), VmmError) << status; });
    EXPECT_EQ(heard.back(), "query-status");
  }
  const auto heard =
      commands("prelaunch", [&] { EXPECT_THROW(qemu_.boot(vm_, kTimeout, cancel_), VmmError); }, "cocoon-abcd");
  EXPECT_EQ(heard, std::vector<std::string>{"query-name"});
}

TEST_F(QemuCallsTest, PauseResumeAndPowerOffDependOnTheState) {
  struct Row {
    std::string status, pause, resume, power_off;  // the last command; "" refused
  };
  for (const Row& row : {Row{"running", "stop", "query-status", "system_powerdown"},
                         Row{"paused", "query-status", "cont", "system_powerdown"}, Row{"prelaunch", "", "", ""},
                         Row{"guest-panicked", "", "", ""}}) {
    SCOPED_TRACE(row.status);
    const auto last = [&](void (Qemu::*call)(const VmRecord&, std::chrono::milliseconds, system::Cancel&) const) {
      bool refused = false;
      const auto heard = commands(row.status, [&] {
        try {
          (qemu_.*call)(vm_, kTimeout, cancel_);
        } catch (const VmmError& error) {
          refused = true;
          EXPECT_EQ(error.body, row.status);
        }
      });
      return refused ? "" : heard.back();
    };
    EXPECT_EQ(last(&Qemu::pause), row.pause);
    EXPECT_EQ(last(&Qemu::resume), row.resume);
    EXPECT_EQ(last(&Qemu::request_power_off), row.power_off);
  }
}

TEST_F(QemuCallsTest, APausedGuestIsResumedToHearOfThePowerButton) {
  EXPECT_EQ(commands("paused", [&] { qemu_.request_power_off(vm_, kTimeout, cancel_); }),
            (std::vector<std::string>{"query-status", "cont", "system_powerdown"}));
}

TEST_F(QemuCallsTest, ErrorsSayWhatWasTriedOnWhichVmAndKeepTheirClass) {
  try {
    qemu_.quit(vm_, kTimeout, cancel_);
    ADD_FAILURE() << "nobody listened";
  } catch (const VmmTimeout& error) {
    ADD_FAILURE() << error.what();
  } catch (const VmmError& error) {
    EXPECT_EQ(std::string(error.what()).rfind("quit web-1: connect to ", 0), 0U) << error.what();
  }
  std::promise<void> over;
  FakeQmp server(qemu_.api_socket(vm_), [&](FakeClient&) { over.get_future().wait(); });
  EXPECT_THROW(qemu_.pause(vm_, 50ms, cancel_), VmmTimeout);
  cancel_.request();
  EXPECT_THROW(qemu_.pause(vm_, kTimeout, cancel_), Cancelled);
  over.set_value();
}

// --- against QEMU -----------------------------------------------------------------------------------------------

std::optional<system::Path> find_qemu() {
  const char* search = std::getenv("PATH");
  std::stringstream path(search == nullptr ? "" : search);
  for (std::string folder; std::getline(path, folder, ':');) {
    system::Path candidate = system::Path(folder) / Qemu().program();
    if (candidate.is_absolute() && ::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return std::nullopt;
}

class RealQemuTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto binary = find_qemu();
    if (!binary) GTEST_SKIP() << Qemu().program() << " is not installed";
    binary_ = *binary;
    // A name that needs every escape, and is longer than a socket's may be.
    const system::Path root = dir_.path() / ("a,b ,,c" + std::string(100, 'x'));
    std::filesystem::create_directories(root / "run");
    std::filesystem::create_directories(root / "log");
    vm_.id = "abcdefghijklmnopqrstuvwxyz";
    vm_.run_dir = (root / "run").string();
    vm_.log_dir = (root / "log").string();
    vm_.config.name = "web-1";
    vm_.config.cpu = 1;
    vm_.config.mem_bytes = 64 << 20;
    vm_.config.machine = GetParam();
    vm_.config.accelerator = "tcg";  // its guest must run everywhere
    vm_.config.kernel = dir_.file("kernel,1", tiny_kernel()).string();
  }
  void TearDown() override {
    if (process_) system::kill_now(*process_);
    // The shim, QEMU's parent, writes this last. Then nothing of ours is left in the folder.
    if (process_) {
      EXPECT_TRUE(eventually([&] { return exit().has_value(); }));
    }
  }

  void launch() {
    const Command command = qemu_.command(vm_, binary_);
    system::SpawnSpec spec;
    spec.argv = command.argv;
    spec.environment = command.environment;
    spec.working_dir = vm_.run_dir;
    spec.output = qemu_.log(vm_);
    spec.exit_file = system::Path(vm_.run_dir) / "exit";
    identity_ = system::spawn(COCOON_SHIM, spec);
    process_ = system::Pidfd::open(identity_);
    const bool up = eventually(
        [&] { return system::probe_socket(qemu_.api_socket(vm_), 1s) == system::SocketProbe::kLive || !alive(); });
    ASSERT_TRUE(up && alive()) << log();
  }
  bool alive() { return process_ && !process_->wait(0ms, cancel_); }
  [[nodiscard]] std::optional<system::ExitRecord> exit() const {
    return system::find_exit_record(system::Path(vm_.run_dir) / "exit");
  }
  std::string log() { return system::tail_text(qemu_.log(vm_), 20); }
  std::string printed() { return system::find_text(*qemu_.console_log(vm_), 1 << 20).value_or(""); }
  GuestState state() { return qemu_.guest_state(vm_, kTimeout, cancel_); }

  TempDir dir_;
  system::Path binary_;
  VmRecord vm_;
  Qemu qemu_;
  system::Cancel cancel_;
  system::ProcessIdentity identity_;
  std::optional<system::Pidfd> process_;
};

TEST_P(RealQemuTest, GuestDoesNotRunBeforeItIsBootedThenPausesResumesAndQuits) {
  launch();
  EXPECT_EQ(state(), GuestState::kNotBooted);
  EXPECT_EQ(printed(), "");
  EXPECT_THROW(qemu_.resume(vm_, kTimeout, cancel_), VmmError);
  EXPECT_EQ(state(), GuestState::kNotBooted);

  qemu_.boot(vm_, kTimeout, cancel_);
  EXPECT_EQ(state(), GuestState::kRunning);
  EXPECT_TRUE(eventually([&] { return printed().find("UP\n") != std::string::npos; })) << printed() << log();
  EXPECT_THROW(qemu_.boot(vm_, kTimeout, cancel_), VmmError);

  for (int i = 0; i < 2; ++i) {
    qemu_.pause(vm_, kTimeout, cancel_);
    EXPECT_EQ(state(), GuestState::kPaused);
  }
  for (int i = 0; i < 2; ++i) {
    qemu_.resume(vm_, kTimeout, cancel_);
    EXPECT_EQ(state(), GuestState::kRunning);
  }
  EXPECT_NO_THROW(qemu_.request_power_off(vm_, kTimeout, cancel_));  // this guest takes no notice

  qemu_.quit(vm_, kTimeout, cancel_);
  ASSERT_TRUE(process_->wait(kTimeout, cancel_));
  ASSERT_TRUE(eventually([&] { return exit().has_value(); }));
  EXPECT_EQ(exit()->describe(), "status 0") << log();
}

TEST_P(RealQemuTest, ConsoleIsASocketAndAGuestThatResetsEndsItsQemu) {
  launch();
  qemu_.boot(vm_, kTimeout, cancel_);
  ASSERT_TRUE(eventually([&] { return printed().find("UP\n") != std::string::npos; })) << printed() << log();
  {
    auto console = system::UnixStream::connect(qemu_.console(vm_), kTimeout);
    console.send("hello\n", kTimeout, cancel_);
    EXPECT_EQ(console.receive_line(kTimeout, cancel_), "hello");
  }
  {
    // A second one after the first has left; what the guest says is in the log all the time.
    auto console = system::UnixStream::connect(qemu_.console(vm_), kTimeout);
    console.send("again\nr", kTimeout, cancel_);
    EXPECT_EQ(console.receive_line(kTimeout, cancel_), "again");
    ASSERT_TRUE(process_->wait(kTimeout, cancel_));
  }
  EXPECT_NE(printed().find("hello\nagain\n"), std::string::npos) << printed();
  ASSERT_TRUE(eventually([&] { return exit().has_value(); }));
  EXPECT_EQ(exit()->describe(), "status 0") << log();
}

TEST_P(RealQemuTest, IsKnownAgainInTheProcessTableUntilItIsKilled) {
  launch();
  const auto mine = [&](const system::ProcessInfo& p) { return !p.zombie() && qemu_.owns(p, vm_.id, vm_.run_dir); };
  auto found = system::scan_processes(mine);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].identity, identity_);
  EXPECT_EQ(system::scan_processes([&](const auto& p) { return qemu_.owns(p, vm_.id, vm_.log_dir); }).size(), 0U);
  system::kill_now(*process_);
  EXPECT_EQ(system::scan_processes(mine).size(), 0U);
  // Each runtime file is one that QEMU had made, and that stands in the next one's way.
  for (const std::string& name : qemu_.runtime_files()) {
    EXPECT_TRUE(std::filesystem::is_socket(system::Path(vm_.run_dir) / name)) << name;
  }
}

TEST_P(RealQemuTest, OpensItsDisksByNamesInTheRunDirAndElsewhere) {
  const auto disk = [&](const system::Path& path) {
    std::ofstream(path) << std::string(1 << 20, '\0');
    return path.string();
  };
  vm_.config.disks = {{.path = disk(system::Path(vm_.run_dir) / "co,w.raw"), .role = "cow", .serial = "a,b"},
                      {.path = disk(dir_.path() / "base,.raw"), .readonly = true, .role = "layer"}};
  ASSERT_NO_THROW(qemu_.check(vm_.config));
  launch();
  EXPECT_NO_THROW(qemu_.boot(vm_, kTimeout, cancel_)) << log();
  EXPECT_EQ(state(), GuestState::kRunning);
}

TEST_P(RealQemuTest, AsManyDisksAsAreAllowed) {
  for (int i = 0; i < 20; ++i) {
    const auto path = dir_.file(fmt::format("disk{}", i), std::string(4096, '\0'));
    vm_.config.disks.push_back({.path = path.string()});
  }
  ASSERT_NO_THROW(qemu_.check(vm_.config));
  launch();
  EXPECT_NO_THROW(qemu_.boot(vm_, kTimeout, cancel_)) << log();
}

TEST_P(RealQemuTest, AsManyCpusAsAreAllowed) {
  vm_.config.cpu = 255;
  ASSERT_NO_THROW(qemu_.check(vm_.config));
  launch();
  EXPECT_EQ(state(), GuestState::kNotBooted);
}

TEST_P(RealQemuTest, DiskInUseIsAnErrorInItsLog) {
  const auto path = dir_.file("disk", std::string(1 << 20, '\0'));
  const system::Fd held(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  // As QEMU locks an image that may be written, see its block/file-posix.c: byte 201 says that sharing is refused.
  struct flock lock{};
  lock.l_type = F_RDLCK;
  lock.l_start = 201;
  lock.l_len = 1;
  ASSERT_EQ(::fcntl(held.get(), F_OFD_SETLK, &lock), 0);
  vm_.config.disks = {{.path = path.string()}};
  const Command command = qemu_.command(vm_, binary_);
  system::SpawnSpec spec{.argv = command.argv,
                         .working_dir = vm_.run_dir,
                         .output = qemu_.log(vm_),
                         .exit_file = system::Path(vm_.run_dir) / "exit"};
  process_ = system::Pidfd::open(system::spawn(COCOON_SHIM, spec));
  ASSERT_TRUE(eventually([&] { return exit().has_value(); }));
  EXPECT_EQ(exit()->describe(), "status 1");
  EXPECT_NE(log().find("write"), std::string::npos) << log();
}

INSTANTIATE_TEST_SUITE_P(Machines, RealQemuTest, ::testing::Values("microvm", "q35"),
                         [](const auto& machine) { return machine.param; });

}  // namespace
}  // namespace cocoon::vmm
