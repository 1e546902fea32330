// Exclusion between threads and processes, and the lock file that is replaced meanwhile.

#include <atomic>

#include <gtest/gtest.h>

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

TEST(FileLockTest, HeldUntilDestroyed) {
  const TempDir dir;
  const Path path = dir / "lock";
  EXPECT_FALSE(FileLock::is_held(path));
  EXPECT_FALSE(std::filesystem::exists(path)) << "asking makes no file";
  {
    const auto lock = FileLock::try_acquire(path);
    ASSERT_TRUE(lock);
    EXPECT_TRUE(FileLock::is_held(path));
    EXPECT_FALSE(FileLock::try_acquire(path)) << "not even for the same process";
    EXPECT_EQ(::fcntl(lock->fd(), F_GETFD), FD_CLOEXEC);
  }
  EXPECT_FALSE(FileLock::is_held(path));
  EXPECT_TRUE(FileLock::try_acquire(path));
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms(0600));
}

TEST(FileLockTest, OfAnExistingFileOnly) {
  const TempDir dir;
  const Path path = dir / "lock";
  EXPECT_FALSE(FileLock::try_acquire_existing(path));
  EXPECT_EQ(FileLock::look(path), FileLock::State::kAbsent);
  EXPECT_FALSE(std::filesystem::exists(path)) << "neither makes a file";
  put(path, "");
  EXPECT_EQ(FileLock::look(path), FileLock::State::kFree);
  const auto lock = FileLock::try_acquire_existing(path);
  ASSERT_TRUE(lock);
  EXPECT_EQ(FileLock::look(path), FileLock::State::kHeld);
  EXPECT_FALSE(FileLock::try_acquire_existing(path));
  std::filesystem::remove(path);
  EXPECT_FALSE(FileLock::try_acquire_existing(path)) << "a lock on a file without a name excludes nobody";
  EXPECT_THROW(FileLock::try_acquire_existing(dir.path()), StoreError) << "a folder is no missing file";
}

TEST(FileLockTest, InheritedDescriptorGoesOnHolding) {
  const TempDir dir;
  const Path path = dir / "lock";
  auto lock = FileLock::try_acquire(path);
  Fd inherited(::dup(lock->fd()));
  lock.reset();
  EXPECT_TRUE(FileLock::is_held(path));
  inherited.reset();
  EXPECT_FALSE(FileLock::is_held(path));
}

TEST(FileLockTest, ThreadsExcludeEachOther) {
  const TempDir dir;
  const Path path = dir / "lock";
  int counter = 0;  // unguarded but for the lock
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Cancel never;
      for (int i = 0; i < 100; ++i) {
        const FileLock lock = t % 2 == 0 ? FileLock::acquire(path) : FileLock::acquire(path, never);
        const int seen = counter;
        std::this_thread::yield();
        counter = seen + 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter, 400);
}

TEST(FileLockTest, ProcessesExcludeEachOtherAndADeathReleases) {
  const TempDir dir;
  const Path path = dir / "lock";
  ForkedChild holder([&] {
    const FileLock lock = FileLock::acquire(path);
    put(dir / "ready", "");
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return std::filesystem::exists(dir / "ready"); }));
  EXPECT_TRUE(FileLock::is_held(path));
  EXPECT_FALSE(FileLock::try_acquire(path));
  ::kill(holder.pid(), SIGKILL);
  const FileLock lock = FileLock::acquire(path);
  EXPECT_EQ(holder.wait(), -SIGKILL);
}

TEST(FileLockTest, ProbingNeverMakesAStarterFail) {
  const TempDir dir;
  const Path path = dir / "lock";
  std::atomic<bool> stop{false};
  std::vector<std::thread> probers;
  probers.reserve(3);
  for (int t = 0; t < 3; ++t) {
    probers.emplace_back([&] {
      while (!stop) FileLock::is_held(path);
    });
  }
  int refused = 0;
  for (int i = 0; i < 2000; ++i) refused += FileLock::try_acquire(path).has_value() ? 0 : 1;
  stop = true;
  for (std::thread& prober : probers) prober.join();
  EXPECT_EQ(refused, 0);
}

TEST(FileLockTest, StartersThatMeetProbersStillExcludeEachOther) {
  const TempDir dir;
  const Path path = dir / "lock";
  std::atomic<bool> stop{false};
  std::thread prober([&] {
    while (!stop) FileLock::is_held(path);
  });
  std::atomic<int> inside{0};
  std::atomic<int> violations{0};
  std::atomic<int> acquired{0};
  std::vector<std::thread> starters;
  starters.reserve(3);
  for (int t = 0; t < 3; ++t) {
    starters.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        const auto lock = FileLock::try_acquire(path);
        if (!lock) continue;
        ++acquired;
        if (++inside != 1) ++violations;
        std::this_thread::yield();
        --inside;
      }
    });
  }
  for (std::thread& starter : starters) starter.join();
  stop = true;
  prober.join();
  EXPECT_EQ(violations, 0);
  EXPECT_GT(acquired, 0);
}

// The waiter is in flock() or between two tries when the file is replaced; either way it must get the new file's lock.
void expect_waiter_gets_the_replaced_file(const std::function<FileLock(const Path&)>& acquire) {
  const TempDir dir;
  const Path path = dir / "lock";
  auto first = FileLock::try_acquire(path);
  std::atomic<bool> has_it{false};
  std::atomic<bool> let_go{false};
  std::thread waiter([&] {
    const FileLock lock = acquire(path);
    has_it = true;
    eventually([&] { return let_go.load(); });
  });
  // It has opened the file: two open ones in this process.
  const auto opened = [&] {
    int count = 0;
    for (const auto& [fd, target] : open_fds(::getpid())) count += target == path ? 1 : 0;
    return count == 2;
  };
  EXPECT_TRUE(eventually(opened));
  put(dir / "new", "");
  std::filesystem::rename(dir / "new", path);
  first.reset();
  EXPECT_TRUE(eventually([&] { return has_it.load(); }));
  EXPECT_TRUE(FileLock::is_held(path)) << "the lock is on the file that has the name now";
  let_go = true;
  waiter.join();
  EXPECT_FALSE(FileLock::is_held(path));
}

TEST(FileLockTest, ReplacedFileIsOpenedAnew) {
  expect_waiter_gets_the_replaced_file([](const Path& path) { return FileLock::acquire(path); });
}

TEST(FileLockTest, ReplacedFileIsOpenedAnewWithCancel) {
  expect_waiter_gets_the_replaced_file([](const Path& path) {
    Cancel never;
    return FileLock::acquire(path, never);
  });
}

TEST(FileLockTest, CancelEndsTheWait) {
  const TempDir dir;
  const Path path = dir / "lock";
  const auto held = FileLock::try_acquire(path);
  Cancel cancel([] { throw Cancelled(); });
  const auto start = steady_clock::now();
  EXPECT_THROW(FileLock::acquire(path, cancel), Cancelled);
  EXPECT_LT(steady_clock::now() - start, milliseconds(5000));
}

TEST(FileLockTest, ErrorsNameThePath) {
  const TempDir dir;
  try {
    FileLock::acquire(dir / "absent/lock");
    FAIL();
  } catch (const StoreError& error) {
    EXPECT_EQ(std::string(error.what()),
              "open lock file " + (dir / "absent/lock").string() + ": No such file or directory");
    EXPECT_EQ(error.path, dir / "absent/lock");
    EXPECT_EQ(error.code, ENOENT);
  }
  EXPECT_THROW(FileLock::try_acquire(dir.path()), StoreError);
}

}  // namespace
}  // namespace cocoon::system
