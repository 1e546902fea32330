// Programs under cocoon-shim: what they get, and what they do not.

#include <sched.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <atomic>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

std::vector<std::string> shell(const std::string& script) { return {"/bin/sh", "-c", script}; }

std::string error_of(const SpawnSpec& spec, const Path& shim = shim_path()) {
  try {
    const Program unexpected(spawn(shim, spec));
    return "none";
  } catch (const StoreError& error) {
    return error.what();
  }
}

TEST(SpawnTest, IdentityIsWhatProcSays) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  const auto info = find_process(program.pid());
  ASSERT_TRUE(info);
  EXPECT_EQ(info->identity, program.identity());
  EXPECT_EQ(info->argv, long_sleep());
  EXPECT_EQ(info->cwd, dir.path());
  EXPECT_EQ(std::to_string(info->identity.start_ticks), stat_fields(program.pid()).at(19));
  EXPECT_TRUE(slurp("/proc/sys/kernel/random/boot_id").starts_with(info->identity.boot_id));
}

TEST(SpawnTest, OutputAndErrorsAreAppendedToThePrivateLog) {
  const TempDir dir;
  SpawnSpec spec = spec_in(dir, shell("echo out; echo err >&2"));
  for (int round = 0; round < 2; ++round) {
    const Program program(spawn(shim_path(), spec));
    ASSERT_TRUE(eventually([&] { return gone(program.identity()); }));
  }
  EXPECT_EQ(slurp(dir / "log"), "out\nerr\nout\nerr\n");
  struct stat status{};
  ASSERT_EQ(::stat((dir / "log").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
}

TEST(SpawnTest, EnvironmentUmaskAndSessionAreItsOwn) {
  const TempDir dir;
  SpawnSpec spec = spec_in(dir, shell("umask; echo A=$A HOME=$HOME; read line; exit 0"));
  spec.environment = {"A=two words"};
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd in(ends[0]);
  Fd held(ends[1]);
  spec.stdin_fd = in.get();
  const Program program(spawn(shim_path(), spec));
  EXPECT_TRUE(eventually([&] { return slurp(dir / "log") == "0077\nA=two words HOME=\n"; })) << slurp(dir / "log");
  const std::string pid = std::to_string(program.pid());
  EXPECT_EQ(stat_fields(program.pid()).at(2), pid);  // process group
  EXPECT_EQ(stat_fields(program.pid()).at(3), pid);  // session
  EXPECT_EQ(stat_fields(program.shim().pid).at(3), std::to_string(program.shim().pid));
  held.reset();  // end of its stdin
  const auto record = wait_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->describe(), "status 0");
}

TEST(SpawnTest, NoDescriptorButItsOwnReachesTheProgram) {
  const TempDir dir;
  // Inheritable ones, as a host program may have.
  const Fd stray(::open("/dev/zero", O_RDONLY));
  const Fd high(::fcntl(stray.get(), F_DUPFD, 700));
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  const Fds expected = {{0, "/dev/null"}, {1, dir / "log"}, {2, dir / "log"}};
  EXPECT_TRUE(comes_to_hold(program.pid(), expected)) << ::testing::PrintToString(open_fds(program.pid()));
  // The shim keeps the folder of the exit file, and nothing else.
  EXPECT_TRUE(eventually([&] {
    const Fds kept = open_fds(program.shim().pid);
    return kept.size() == 1 && kept.begin()->second == dir.path();
  })) << ::testing::PrintToString(open_fds(program.shim().pid));
}

TEST(SpawnTest, PassedDescriptorsArriveInOrderWhateverTheirNumbers) {
  const TempDir dir;
  for (const char* name : {"a", "b", "in", "out", "lock"}) put(dir / name, "");
  const auto open_at = [&](const char* name) { return Fd(::open((dir / name).c_str(), O_RDWR | O_CLOEXEC)); };
  const Fd a = open_at("a");
  const Fd b = open_at("b");
  const Fd in = open_at("in");
  const Fd out = open_at("out");
  const Fd lock = open_at("lock");
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.stdin_fd = in.get();
  spec.stdout_fd = out.get();
  spec.lock_fd = lock.get();
  spec.pass_fds = {b.get(), a.get(), b.get(), lock.get(), in.get()};
  const Program program(spawn(shim_path(), spec));
  const Fds expected = {{0, dir / "in"}, {1, dir / "out"}, {2, dir / "log"},  {3, dir / "lock"}, {4, dir / "b"},
                        {5, dir / "a"},  {6, dir / "b"},   {7, dir / "lock"}, {8, dir / "in"}};
  EXPECT_TRUE(comes_to_hold(program.pid(), expected)) << ::testing::PrintToString(open_fds(program.pid()));
  EXPECT_EQ(::fcntl(a.get(), F_GETFD), FD_CLOEXEC) << "ours stay as they were";
}

TEST(SpawnTest, WorksInAProcessWithoutStandardDescriptors) {
  const TempDir dir;
  ForkedChild engine([&] {
    ::close_range(0, 2, 0);
    const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
    const Fds expected = {{0, "/dev/null"}, {1, dir / "log"}, {2, dir / "log"}};
    return comes_to_hold(program.pid(), expected) ? 0 : 1;
  });
  EXPECT_EQ(engine.wait(), 0);
}

TEST(SpawnTest, SignalsAreDefaultThereAndUntouchedHere) {
  const TempDir dir;
  ForkedChild engine([&] {
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGCHLD, SIG_IGN);
    ::signal(SIGRTMIN + 1, SIG_IGN);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR1);
    ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
    const std::string mask = status_value(::getpid(), "SigBlk");
    const std::string ignored = status_value(::getpid(), "SigIgn");
    const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
    const std::string none(16, '0');
    if (status_value(program.pid(), "SigBlk") != none || status_value(program.pid(), "SigIgn") != none) return 1;
    if (status_value(program.shim().pid, "SigIgn") != none) return 2;
    if (status_value(::getpid(), "SigBlk") != mask || status_value(::getpid(), "SigIgn") != ignored) return 3;
    program.kill();
    return wait_exit_record(dir / "exit") ? 0 : 4;
  });
  EXPECT_EQ(engine.wait(), 0);
}

TEST(SpawnTest, EnginesChildIsReapedAtOnce) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  const pid_t self = ::getpid();
  EXPECT_TRUE(scan_processes([&](const ProcessInfo& info) { return parent_of(info.identity.pid) == self; }).empty());
}

TEST(SpawnTest, LockIsHeldExactlyWhileTheProgramLives) {
  const TempDir dir;
  const Path lock_path = dir / "vm.lock";
  auto lock = FileLock::try_acquire(lock_path);
  ASSERT_TRUE(lock);
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.lock_fd = lock->fd();
  const Program program(spawn(shim_path(), spec));
  lock.reset();
  EXPECT_TRUE(FileLock::is_held(lock_path));
  EXPECT_FALSE(FileLock::try_acquire(lock_path));
  // With the shim stopped, only the program's death can release it.
  ASSERT_EQ(::kill(program.shim().pid, SIGSTOP), 0);
  EXPECT_TRUE(FileLock::is_held(lock_path));
  program.kill();
  EXPECT_FALSE(FileLock::is_held(lock_path));
  EXPECT_TRUE(FileLock::try_acquire(lock_path));
  ASSERT_EQ(::kill(program.shim().pid, SIGCONT), 0);
}

TEST(SpawnTest, OrphansOfTheProgramAreReapedByTheShim) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, shell("(sleep 1000 & echo $!); exec sleep 1001"))));
  ASSERT_TRUE(eventually([&] { return slurp(dir / "log").ends_with('\n'); }));
  const pid_t orphan = std::stoi(slurp(dir / "log"));
  EXPECT_TRUE(eventually([&] { return parent_of(orphan) == program.shim().pid; }));
  ::kill(orphan, SIGKILL);
  EXPECT_TRUE(eventually([&] { return !find_process(orphan); })) << "reaped, not a zombie";
  EXPECT_FALSE(gone(program.identity()));
  program.kill();
  ASSERT_TRUE(program.wait_shim());
  const auto record = find_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->identity, program.identity());
}

TEST(SpawnTest, EntersANetworkNamespace) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd made(ends[0]);
  Fd made_end(ends[1]);
  ForkedChild holder([&] {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char answer = ::unshare(CLONE_NEWNET) == 0 ? 'y' : 'n';
    if (::write(made_end.get(), &answer, 1) != 1) return 1;
    for (;;) ::pause();
  });
  made_end.reset();
  char answer = 'n';
  ASSERT_EQ(::read(made.get(), &answer, 1), 1);
  if (answer != 'y') GTEST_SKIP() << "making a network namespace needs CAP_SYS_ADMIN";

  const TempDir dir;
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.network_namespace = fmt::format("/proc/{}/ns/net", holder.pid());
  const Program program(spawn(shim_path(), spec));
  const auto namespace_of = [](pid_t pid) {
    return std::filesystem::read_symlink(fmt::format("/proc/{}/ns/net", pid)).string();
  };
  EXPECT_EQ(namespace_of(program.pid()), namespace_of(holder.pid()));
  EXPECT_NE(namespace_of(program.pid()), namespace_of(::getpid()));
  EXPECT_EQ(namespace_of(program.shim().pid), namespace_of(::getpid()));
}

TEST(SpawnTest, FailuresNameWhatFailedAndLeaveNothing) {
  const TempDir dir;
  SpawnSpec spec = spec_in(dir, {dir / "absent"});
  EXPECT_EQ(error_of(spec), "start " + (dir / "absent").string() + ": No such file or directory");

  put(dir / "plain", "no program");
  spec.argv = {dir / "plain"};
  EXPECT_EQ(error_of(spec), "start " + (dir / "plain").string() + ": Permission denied");
  std::filesystem::permissions(dir / "plain", std::filesystem::perms::owner_all);
  EXPECT_EQ(error_of(spec), "start " + (dir / "plain").string() + ": Exec format error");

  spec = spec_in(dir, long_sleep());
  spec.working_dir = dir / "nowhere";
  EXPECT_EQ(error_of(spec), "open folder " + (dir / "nowhere").string() + ": No such file or directory");
  spec = spec_in(dir, long_sleep());
  spec.output = dir / "nowhere/log";
  EXPECT_EQ(error_of(spec), "open log " + (dir / "nowhere/log").string() + ": No such file or directory");
  spec = spec_in(dir, long_sleep());
  spec.exit_file = dir / "nowhere/exit";
  EXPECT_EQ(error_of(spec), "open folder " + (dir / "nowhere").string() + ": No such file or directory");
  spec = spec_in(dir, long_sleep());
  spec.network_namespace = dir / "plain";
  EXPECT_EQ(error_of(spec),
            "start /bin/sleep: enter network namespace " + (dir / "plain").string() + ": Invalid argument");
  spec = spec_in(dir, long_sleep());
  spec.lock_fd = 9999;
  EXPECT_NE(error_of(spec).find("Bad file descriptor"), std::string::npos);
  spec = spec_in(dir, long_sleep());
  EXPECT_EQ(error_of(spec, dir / "no-shim"), "start " + (dir / "no-shim").string() + ": No such file or directory");
  EXPECT_EQ(error_of(spec, "/bin/false"), "start /bin/sleep: /bin/false died before it (status 1)");

  EXPECT_FALSE(std::filesystem::exists(dir / "exit"));
  // A shim that reports a failure may need a moment to end.
  const auto any_left = [&] {
    return !scan_processes([&](const ProcessInfo& info) {
              return info.cwd == dir.path() ||
                     std::find(info.argv.begin(), info.argv.end(), (dir / "absent").string()) != info.argv.end();
            }).empty();
  };
  EXPECT_TRUE(eventually([&] { return !any_left(); }));
}

TEST(SpawnTest, BrokenSpecsAreRefused) {
  const TempDir dir;
  EXPECT_THROW(spawn(shim_path(), spec_in(dir, {})), Error);
  EXPECT_THROW(spawn(shim_path(), spec_in(dir, {"sleep", "1"})), Error);
  EXPECT_THROW(spawn(shim_path(), spec_in(dir, {"/bin/sleep", std::string("1\0002", 3)})), Error);
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.pass_fds.assign(61, 1);
  EXPECT_THROW(spawn(shim_path(), spec), Error);
}

TEST(SpawnTest, ManyAtOnceFromManyThreadsShareNothing) {
  constexpr int kThreads = 8;
  constexpr int kEach = 8;
  const TempDir dir;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  std::vector<std::vector<ProcessIdentity>> made(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const Path run = dir / fmt::format("{}-{}", t, i);
        make_private_dirs(run);
        auto lock = FileLock::try_acquire(run / "vm.lock");
        SpawnSpec spec = spec_in(dir, long_sleep());
        spec.output = run / "log";
        spec.exit_file = run / "exit";
        spec.lock_fd = lock->fd();
        const ProcessIdentity identity = spawn(shim_path(), spec);
        lock.reset();
        made[static_cast<std::size_t>(t)].push_back(identity);
        const Fds expected = {{0, "/dev/null"}, {1, run / "log"}, {2, run / "log"}, {3, run / "vm.lock"}};
        if (!comes_to_hold(identity.pid, expected)) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  std::set<pid_t> pids;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kEach; ++i) {
      const Program program(made.at(static_cast<std::size_t>(t)).at(static_cast<std::size_t>(i)));
      const Path run = dir / fmt::format("{}-{}", t, i);
      pids.insert(program.pid());
      EXPECT_TRUE(FileLock::is_held(run / "vm.lock"));
      program.kill();
      EXPECT_TRUE(program.wait_shim());
      EXPECT_FALSE(FileLock::is_held(run / "vm.lock"));
      const auto record = find_exit_record(run / "exit");
      ASSERT_TRUE(record);
      EXPECT_EQ(record->identity, program.identity());
    }
  }
  EXPECT_EQ(pids.size(), std::size_t{kThreads} * kEach);
}

TEST(SpawnTest, ShimNeedsLittleMemoryAndAsksToBeSpared) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  std::istringstream rollup(slurp(fmt::format("/proc/{}/smaps_rollup", program.shim().pid)));
  int private_kb = 0;
  for (std::string line; std::getline(rollup, line);) {
    if (line.starts_with("Private_")) private_kb += std::stoi(words(line).at(1));
  }
  EXPECT_GT(private_kb, 0);
  EXPECT_LE(private_kb, 100);
  RecordProperty("shim_private_kb", private_kb);

  // Lowering one's own needs CAP_SYS_RESOURCE, and some hosts refuse it altogether.
  const auto adjustment = [](pid_t pid) { return words(slurp(fmt::format("/proc/{}/oom_score_adj", pid))).at(0); };
  ForkedChild trial([] {
    const Fd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
    return fd && ::write(fd.get(), "-1000", 5) == 5 ? 0 : 1;
  });
  const std::string ours = adjustment(::getpid());
  EXPECT_EQ(adjustment(program.shim().pid), trial.wait() == 0 ? "-1000" : ours);
  EXPECT_EQ(adjustment(program.pid()), ours);
}

}  // namespace
}  // namespace cocoon::system
