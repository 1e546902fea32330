// Identity, the /proc scan, and signals that cannot go astray.

#include <sys/prctl.h>

#include <atomic>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

TEST(ProcessTest, FindsItself) {
  const auto info = find_process(::getpid());
  ASSERT_TRUE(info);
  EXPECT_EQ(info->identity.pid, ::getpid());
  EXPECT_EQ(info->cwd, std::filesystem::current_path());
  std::string joined;
  for (const std::string& argument : info->argv) joined += argument + '\0';
  EXPECT_EQ(joined, slurp("/proc/self/cmdline"));
  EXPECT_FALSE(info->zombie());
}

TEST(ProcessTest, NoSuchProcessIsNoError) {
  EXPECT_FALSE(find_process(0));
  EXPECT_FALSE(find_process(-1));
  EXPECT_FALSE(find_process(1 << 30));  // above the kernel's limit, 2^22
  ForkedChild child([] { return 0; });
  const pid_t pid = child.pid();
  child.wait();
  EXPECT_FALSE(find_process(pid));
}

TEST(ProcessTest, NameWithSpacesAndParenthesesDoesNotConfuse) {
  const TempDir dir;
  const Path odd = dir / "a) Z 1 (b";
  std::filesystem::copy_file("/bin/sleep", odd);
  const Program program(spawn(shim_path(), spec_in(dir, {odd, "1000"})));
  const auto info = find_process(program.pid());
  ASSERT_TRUE(info);
  EXPECT_EQ(info->identity, program.identity());
  EXPECT_FALSE(info->zombie());
}

TEST(ProcessTest, EmptyArgumentsAreKept) {
  const TempDir dir;
  const std::vector<std::string> argv = {"/bin/sh", "-c", "sleep 1000; :", "", "x", ""};
  const Program program(spawn(shim_path(), spec_in(dir, argv)));
  EXPECT_EQ(find_process(program.pid()).value().argv, argv);
  // The shell's sleep is the shim's to reap, but ours to end.
  std::vector<ProcessInfo> children;
  ASSERT_TRUE(eventually([&] {
    children = scan_processes([&](const ProcessInfo& info) {
      return info.cwd == dir.path() && info.argv == std::vector<std::string>{"sleep", "1000"};
    });
    return children.size() == 1;
  }));
  program.kill();
  if (const auto child = Pidfd::open(children[0].identity)) kill_now(*child);
}

TEST(ProcessTest, LongArgumentsAreReadWhole) {
  const TempDir dir;
  std::vector<std::string> argv = {"/bin/sh", "-c", "read line", std::string(4096 - 24, 'a'),
                                   std::string(100'000, 'b')};
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd in(ends[0]);
  const Fd held(ends[1]);
  for (std::size_t size = 4060; size < 4080; ++size) {  // around the buffer's first size
    argv[3].assign(size, 'a');
    SpawnSpec spec = spec_in(dir, argv);
    spec.stdin_fd = in.get();
    const Program program(spawn(shim_path(), spec));
    EXPECT_EQ(find_process(program.pid()).value().argv, argv);
    argv.resize(4);
  }
}

TEST(ProcessTest, ZombieIsFoundAndIsDead) {
  ForkedChild child([] { return 0; });
  ASSERT_TRUE(eventually([&] { return find_process(child.pid()).value().zombie(); }));
  const ProcessInfo info = find_process(child.pid()).value();
  EXPECT_TRUE(info.argv.empty());
  EXPECT_TRUE(info.cwd.empty());
  EXPECT_FALSE(Pidfd::open(info.identity));
}

TEST(ProcessTest, DeletedFolderKeepsItsName) {
  const TempDir dir;
  make_private_dirs(dir / "run");
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.working_dir = dir / "run";
  const Program program(spawn(shim_path(), spec));
  remove_tree(dir / "run");
  EXPECT_EQ(find_process(program.pid()).value().cwd, dir / "run");
}

TEST(ProcessTest, FolderThatMayNotBeReadIsEmpty) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  const pid_t root = ::getpid();
  ForkedChild other([&] {
    if (::setresuid(65534, 65534, 65534) != 0) return 2;
    const auto info = find_process(root);
    return info && info->cwd.empty() && !info->argv.empty() ? 0 : 1;
  });
  EXPECT_EQ(other.wait(), 0);
}

TEST(ProcessTest, ScanFindsExactlyWhatIsWanted) {
  const TempDir dir;
  std::vector<std::unique_ptr<Program>> programs;
  std::set<pid_t> expected;
  for (int i = 0; i < 3; ++i) {
    programs.push_back(std::make_unique<Program>(spawn(shim_path(), spec_in(dir, long_sleep()))));
    expected.insert(programs.back()->pid());
  }
  std::set<pid_t> found;
  bool saw_itself = false;
  for (const ProcessInfo& info : scan_processes([&](const ProcessInfo& info) {
         saw_itself |= info.identity.pid == ::getpid();
         return info.cwd == dir.path() && info.argv == long_sleep();
       })) {
    found.insert(info.identity.pid);
    EXPECT_EQ(find_process(info.identity.pid).value().identity, info.identity);
  }
  EXPECT_EQ(found, expected);
  EXPECT_TRUE(saw_itself);
}

TEST(ProcessTest, ScanSurvivesProcessesThatComeAndGo) {
  ForkedChild churn([] {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::signal(SIGCHLD, SIG_IGN);
    for (;;) {
      const pid_t pid = ::fork();
      if (pid == 0) ::_exit(0);
    }
    return 0;
  });
  for (int i = 0; i < 50; ++i) {
    EXPECT_NO_THROW(scan_processes([](const ProcessInfo&) { return true; }));
  }
}

TEST(PidfdTest, OtherIdentityIsNeverOpened) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  ProcessIdentity reused = program.identity();
  ++reused.start_ticks;
  EXPECT_FALSE(Pidfd::open(reused));
  ProcessIdentity other_boot = program.identity();
  other_boot.boot_id = other_boot.boot_id == "00000000" ? "11111111" : "00000000";
  EXPECT_FALSE(Pidfd::open(other_boot));
  EXPECT_FALSE(Pidfd::open({}));
  EXPECT_FALSE(Pidfd::open({1 << 30, 1, program.identity().boot_id}));
  EXPECT_FALSE(gone(program.identity()));
  EXPECT_TRUE(Pidfd::open(program.identity()));
}

TEST(PidfdTest, ThreadIdIsNoProcess) {
  std::atomic<pid_t> tid{0};
  std::atomic<bool> stop{false};
  std::thread thread([&] {
    tid = ::gettid();
    while (!stop) std::this_thread::yield();
  });
  ASSERT_TRUE(eventually([&] { return tid != 0; }));
  const auto info = find_process(tid);  // the kernel does show /proc/TID
  EXPECT_FALSE(Pidfd::open(info ? info->identity : ProcessIdentity{tid, 1, ""}));
  stop = true;
  thread.join();
}

TEST(PidfdTest, WaitsForDeathOrTheTime) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  const auto process = Pidfd::open(program.identity());
  ASSERT_TRUE(process);
  Cancel never;
  const auto start = steady_clock::now();
  EXPECT_FALSE(process->wait(milliseconds(50), never));
  EXPECT_GE(steady_clock::now() - start, milliseconds(50));
  EXPECT_FALSE(process->wait(milliseconds(0), never));
  EXPECT_TRUE(process->signal(SIGKILL));
  EXPECT_TRUE(process->wait(kPatience, never));
  EXPECT_TRUE(process->wait(milliseconds(0), never));
  EXPECT_FALSE(process->signal(SIGTERM));
  EXPECT_NO_THROW(kill_now(*process));
  EXPECT_NO_THROW(terminate(*process, milliseconds(0), never));
}

TEST(PidfdTest, SignalNotPermittedIsAnError) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  ForkedChild other([&] {
    if (::setresuid(65534, 65534, 65534) != 0) return 2;
    const auto process = Pidfd::open(program.identity());
    if (!process) return 3;
    try {
      process->signal(SIGKILL);
    } catch (const Error& error) {
      return std::string(error.what()) == "send SIGKILL to a process: Operation not permitted" ? 0 : 4;
    }
    return 1;
  });
  EXPECT_EQ(other.wait(), 0);
  EXPECT_FALSE(gone(program.identity()));
}

TEST(PidfdTest, TerminateIsGentleFirst) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  Cancel never;
  terminate(Pidfd::open(program.identity()).value(), kPatience, never);
  ASSERT_TRUE(program.wait_shim());
  EXPECT_EQ(find_exit_record(dir / "exit").value().describe(), "signal 15 (Terminated)");
}

TEST(PidfdTest, TerminateEscalatesWhenIgnored) {
  const TempDir dir;
  const Program program(
      spawn(shim_path(), spec_in(dir, {"/bin/sh", "-c", "trap '' TERM; echo ready; exec sleep 1000"})));
  ASSERT_TRUE(eventually([&] { return slurp(dir / "log") == "ready\n"; }));
  Cancel never;
  terminate(Pidfd::open(program.identity()).value(), milliseconds(30), never);
  ASSERT_TRUE(program.wait_shim());
  EXPECT_EQ(find_exit_record(dir / "exit").value().describe(), "signal 9 (Killed)");
}

TEST(PidfdTest, CancelInterruptsTheWaitSoon) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  const auto process = Pidfd::open(program.identity());
  ASSERT_TRUE(process);
  auto best = milliseconds::max();
  for (int round = 0; round < 3; ++round) {
    Cancel cancel;
    std::atomic<steady_clock::time_point> requested{steady_clock::time_point()};
    const pid_t waiter = ::gettid();
    std::thread thread([&] {
      EXPECT_TRUE(falls_asleep(waiter));
      requested = steady_clock::now();
      cancel.request();
    });
    EXPECT_THROW(process->wait(kPatience, cancel), Cancelled);
    const auto noticed = steady_clock::now();
    thread.join();
    best = std::min(best, std::chrono::duration_cast<milliseconds>(noticed - requested.load()));
  }
  EXPECT_LT(best, milliseconds(100));
  EXPECT_FALSE(gone(program.identity()));
}

}  // namespace
}  // namespace cocoon::system
