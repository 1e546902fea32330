// The line a shim writes when its program has died, and the files that are not such a line.

#include <sys/stat.h>

#include <algorithm>
#include <chrono>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/system/clock.h"

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

TEST(ExitRecordTest, TellsTheStatusOfAnExit) {
  const TempDir dir;
  const std::int64_t wall_before = system_clock().wall_ns();
  const std::int64_t uptime_before = system_clock().uptime_ns();
  const Program program(spawn(shim_path(), spec_in(dir, {"/bin/sh", "-c", "exit 3"})));
  const auto record = wait_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->identity, program.identity());
  EXPECT_FALSE(record->signalled);
  EXPECT_EQ(record->status, 3);
  EXPECT_EQ(record->describe(), "status 3");
  EXPECT_GE(record->uptime_ns, uptime_before);
  EXPECT_LE(record->uptime_ns, system_clock().uptime_ns());
  EXPECT_GE(record->wall_ns, wall_before);
  EXPECT_LE(record->wall_ns, system_clock().wall_ns());
  struct stat status{};
  ASSERT_EQ(::stat((dir / "exit").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
}

TEST(ExitRecordTest, TellsTheSignalAndTheMomentOfAKill) {
  std::vector<std::int64_t> delays;
  for (int round = 0; round < 7; ++round) {
    const TempDir dir;
    const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
    const auto process = Pidfd::open(program.identity());
    ASSERT_TRUE(process);
    const std::int64_t killed_at = system_clock().uptime_ns();
    ASSERT_TRUE(process->signal(SIGKILL));
    const auto record = wait_exit_record(dir / "exit");
    ASSERT_TRUE(record);
    EXPECT_TRUE(record->signalled);
    EXPECT_EQ(record->describe(), "signal 9 (Killed)");
    EXPECT_GE(record->uptime_ns, killed_at);
    delays.push_back(record->uptime_ns - killed_at);
  }
  std::sort(delays.begin(), delays.end());
  RecordProperty("median_delay_us", static_cast<int>(delays[delays.size() / 2] / 1000));
  EXPECT_LT(delays.front(), 5'000'000);  // the best: the others may have met a loaded machine
}

TEST(ExitRecordTest, CoreDumpIsASignalToo) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, {"/bin/sh", "-c", "ulimit -c 0; kill -ABRT $$"})));
  const auto record = wait_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->describe(), "signal 6 (Aborted)");
}

TEST(ExitRecordTest, NewDeathReplacesAnOlderOne) {
  const TempDir dir;
  put(dir / "exit", std::string(200, 'x'));
  const Program program(spawn(shim_path(), spec_in(dir, {"/bin/true"})));
  const auto record = wait_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->identity, program.identity());
}

TEST(ExitRecordTest, ShimKilledFirstLeavesTheProgramAloneAndNoRecord) {
  const TempDir dir;
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  ASSERT_NE(program.shim().pid, 0);
  kill_now(Pidfd::open(program.shim()).value());
  EXPECT_FALSE(gone(program.identity()));
  EXPECT_NE(parent_of(program.pid()), program.shim().pid);
  program.kill();
  EXPECT_TRUE(gone(program.identity()));
  EXPECT_FALSE(std::filesystem::exists(dir / "exit"));
}

TEST(ExitRecordTest, EngineKilledAfterTheSpawnLosesNothing) {
  const TempDir dir;
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd said(ends[0]);
  const Fd say(ends[1]);
  ForkedChild engine([&] {
    const ProcessIdentity identity = spawn(shim_path(), spec_in(dir, long_sleep()));
    const std::string line = fmt::format("{} {} {}\n", identity.pid, identity.start_ticks, identity.boot_id);
    if (::write(say.get(), line.data(), line.size()) < 0) return 1;
    for (;;) ::pause();
  });
  char text[128] = {};
  ASSERT_GT(::read(said.get(), text, sizeof text - 1), 0);
  const std::vector<std::string> fields = words(text);
  const Program program({std::stoi(fields.at(0)), std::stoull(fields.at(1)), fields.at(2)});
  ASSERT_NE(program.shim().pid, 0);
  ::kill(engine.pid(), SIGKILL);
  EXPECT_EQ(engine.wait(), -SIGKILL);
  EXPECT_FALSE(gone(program.identity()));
  EXPECT_FALSE(gone(program.shim()));
  program.kill();
  ASSERT_TRUE(program.wait_shim());
  const auto record = find_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->identity, program.identity());
}

TEST(ExitRecordTest, FollowsItsFolderWhenThatIsRenamed) {
  const TempDir dir;
  make_private_dirs(dir / "run");
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.exit_file = dir / "run/exit";
  const Program program(spawn(shim_path(), spec));
  std::filesystem::rename(dir / "run", dir / "moved");
  program.kill();
  ASSERT_TRUE(program.wait_shim());
  EXPECT_TRUE(find_exit_record(dir / "moved/exit"));
}

TEST(ExitRecordTest, ShimEndsQuietlyWhenItsFolderIsGone) {
  const TempDir dir;
  make_private_dirs(dir / "run");
  SpawnSpec spec = spec_in(dir, long_sleep());
  spec.exit_file = dir / "run/exit";
  const Program program(spawn(shim_path(), spec));
  remove_tree(dir / "run");
  program.kill();
  EXPECT_TRUE(program.wait_shim());
  EXPECT_FALSE(std::filesystem::exists(dir / "run"));
}

TEST(ExitRecordTest, ShimNeitherFollowsALinkNorWaitsOnAFifo) {
  const TempDir dir;
  put(dir / "precious", "kept");
  std::filesystem::create_symlink(dir / "precious", dir / "exit");
  {
    const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
    program.kill();
    ASSERT_TRUE(program.wait_shim());
  }
  EXPECT_EQ(slurp(dir / "precious"), "kept");
  EXPECT_FALSE(find_exit_record(dir / "exit"));
  remove_file(dir / "exit");
  ASSERT_EQ(::mkfifo((dir / "exit").c_str(), 0600), 0);
  const Program program(spawn(shim_path(), spec_in(dir, long_sleep())));
  program.kill();
  EXPECT_TRUE(program.wait_shim());
}

TEST(ExitRecordTest, ReadsItsOwnFormOnly) {
  const TempDir dir;
  const std::string good = "4711 98765 123000 456000 2 9 0a1b2c3d\n";
  put(dir / "exit", good);
  const auto record = find_exit_record(dir / "exit");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->identity, (ProcessIdentity{4711, 98765, "0a1b2c3d"}));
  EXPECT_EQ(record->uptime_ns, 123000);
  EXPECT_EQ(record->wall_ns, 456000);

  std::vector<std::string> bad = {
      "",
      "\n",
      good + good,
      good + "\n",
      " " + good,
      "4711 98765 123000 456000 2 9 0a1b2c3d",
      "4711 98765 123000 456000 2 9 0a1b2c3d \n",
      "4711  98765 123000 456000 2 9 0a1b2c3d\n",
      "4711 98765 123000 456000 2 9 0A1B2C3D\n",
      "4711 98765 123000 456000 2 9 0a1b2c3\n",
      "4711 98765 123000 456000 2 9\n",
      "-4711 98765 123000 456000 2 9 0a1b2c3d\n",
      "+4711 98765 123000 456000 2 9 0a1b2c3d\n",
      "0 98765 123000 456000 2 9 0a1b2c3d\n",
      "4711 0 123000 456000 2 9 0a1b2c3d\n",
      "4711 98765 -1 456000 2 9 0a1b2c3d\n",
      "4711 98765 99999999999999999999 456000 2 9 0a1b2c3d\n",
      "99999999999 98765 123000 456000 2 9 0a1b2c3d\n",
      "4711 98765 123000 456000 4 9 0a1b2c3d\n",
      "4711 98765 123000 456000 0 9 0a1b2c3d\n",
      "4711 98765 123000 456000 1 256 0a1b2c3d\n",
      "4711 98765 123000 456000 2 0 0a1b2c3d\n",
      "4711 98765 123000 456000 2 65 0a1b2c3d\n",
      std::string(400, '1'),
  };
  for (std::size_t cut = 0; cut < good.size(); ++cut) bad.push_back(good.substr(0, cut));
  for (const std::string& text : bad) {
    put(dir / "exit", text);
    EXPECT_FALSE(find_exit_record(dir / "exit")) << text;
  }
}

TEST(ExitRecordTest, OtherKindsOfFilesAndOwnersAreNotBelieved) {
  const TempDir dir;
  EXPECT_FALSE(find_exit_record(dir / "absent"));
  EXPECT_FALSE(find_exit_record(dir.path()));
  put(dir / "real", "4711 98765 123000 456000 2 9 0a1b2c3d\n");
  ASSERT_TRUE(find_exit_record(dir / "real"));
  std::filesystem::create_symlink(dir / "real", dir / "link");
  EXPECT_FALSE(find_exit_record(dir / "link"));
  ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_FALSE(find_exit_record(dir / "fifo"));
  if (::geteuid() != 0) GTEST_SKIP() << "giving a file away needs root";
  ASSERT_EQ(::chown((dir / "real").c_str(), 65534, 65534), 0);
  EXPECT_FALSE(find_exit_record(dir / "real"));
}

}  // namespace
}  // namespace cocoon::system
