// Programs that are asked a short question: what they answer, and that none outlives the asking.

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace std::chrono_literals;
using namespace testing;

ProgramEnd run(const std::string& script, std::chrono::milliseconds timeout = 30s) {
  Cancel never;
  return run_program({"/bin/sh", "-c", script}, timeout, never);
}

TEST(RunProgramTest, BothOutputsAndTheEndAreTold) {
  const auto end = run("echo out; echo err >&2; exit 3");
  EXPECT_EQ(end.output, "out\nerr\n");
  EXPECT_FALSE(end.signalled);
  EXPECT_EQ(end.status, 3);
  const auto killed = run("kill -9 $$");
  EXPECT_TRUE(killed.signalled);
  EXPECT_EQ(killed.status, 9);
}

TEST(RunProgramTest, ItReadsNothingAndSeesAShortEnvironment) {
  ::setenv("COCOON_TEST_SECRET", "x", 1);
  EXPECT_EQ(run("read line; echo \"[$line]$COCOON_TEST_SECRET\"; test -n \"$PATH\" && echo $LANG").output,
            "[]\nC.UTF-8\n");
  ::unsetenv("COCOON_TEST_SECRET");
}

TEST(RunProgramTest, LongOutputIsCut) { EXPECT_EQ(run("head -c 1000000 /dev/zero").output.size(), 65536U); }

TEST(RunProgramTest, OneThatDoesNotEndIsKilledWithWhatItStarted) {
  const TempDir dir;
  const auto pids = (dir / "pids").string();
  EXPECT_THROW(run("sleep 1000 & echo $$ $! >" + pids + "; wait", 300ms), VmmTimeout);
  std::istringstream words(slurp(pids));
  for (pid_t pid = 0; words >> pid;) {
    EXPECT_TRUE(eventually([&] {
      const auto found = find_process(pid);
      return !found || found->zombie();
    }));
  }
}

TEST(RunProgramTest, OneThatClosesItsOutputIsWaitedFor) {
  const auto end = run("exec >/dev/null 2>&1; sleep 0.1; exit 5");
  EXPECT_EQ(end.status, 5);
}

TEST(RunProgramTest, AChildThatKeepsTheOutputOpenDoesNotHoldItsParentsEnd) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(run("sleep 5 & echo done").output, "done\n");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 4s);
}

TEST(RunProgramTest, ARequestEndsIt) {
  Cancel cancel;
  std::jthread later([&] { cancel.request(); });
  EXPECT_THROW(run_program({"/bin/sleep", "1000"}, 30s, cancel), Cancelled);
}

TEST(RunProgramTest, AProgramThatIsNotThereIsNamed) {
  Cancel never;
  try {
    run_program({"/nowhere/program"}, 1s, never);
    FAIL();
  } catch (const StoreError& error) {
    EXPECT_STREQ(error.what(), "start /nowhere/program: No such file or directory");
  }
}

}  // namespace
}  // namespace cocoon::system
