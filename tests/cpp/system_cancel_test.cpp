// Who may stop a wait, on which thread, and how often it is asked.

#include <stdexcept>

#include <gtest/gtest.h>

#include "cocoon/system/clock.h"

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

// Checks until it throws.
template <typename Thrown>
bool check_until_thrown(Cancel& cancel) {
  return eventually([&] {
    try {
      cancel.check();
      return false;
    } catch (const Thrown&) {
      return true;
    }
  });
}

TEST(CancelTest, RequestIsForEveryThreadAndForEver) {
  Cancel cancel;
  EXPECT_NO_THROW(cancel.check());
  std::thread([&] { cancel.request(); }).join();
  EXPECT_TRUE(cancel.requested());
  EXPECT_THROW(cancel.check(), Cancelled);
  EXPECT_THROW(cancel.check(), Cancelled);
  std::thread([&] { EXPECT_THROW(cancel.check(), Cancelled); }).join();
}

TEST(CancelTest, PollIsAskedOncePerSliceOnItsOwnThreadOnly) {
  const auto start = steady_clock::now();
  std::vector<std::thread::id> asked;
  Cancel cancel([&] { asked.push_back(std::this_thread::get_id()); });
  std::thread([&] {
    const auto end = steady_clock::now() + 2 * Cancel::kSlice;
    while (steady_clock::now() < end) cancel.check();
  }).join();
  EXPECT_TRUE(asked.empty());
  const auto end = steady_clock::now() + 3 * Cancel::kSlice;
  while (steady_clock::now() < end) cancel.check();
  EXPECT_GE(asked.size(), 1U);
  EXPECT_LE(asked.size(), static_cast<std::size_t>((steady_clock::now() - start) / Cancel::kSlice));
  for (const std::thread::id id : asked) EXPECT_EQ(id, std::this_thread::get_id());
}

TEST(CancelTest, WhatPollThrowsIsPassedOnAndCancelsTheOthers) {
  Cancel cancel([] { throw std::logic_error("KeyboardInterrupt"); });
  EXPECT_TRUE(check_until_thrown<std::logic_error>(cancel));
  EXPECT_TRUE(cancel.requested());
  EXPECT_THROW(cancel.check(), Cancelled);
}

TEST(CancelTest, PollMayRequest) {
  Cancel* self = nullptr;
  Cancel cancel([&] { self->request(); });
  self = &cancel;
  EXPECT_TRUE(check_until_thrown<Cancelled>(cancel));
}

TEST(ClockTest, TellsBothTimesAndTheBoot) {
  const Clock& clock = system_clock();
  const std::int64_t uptime = clock.uptime_ns();
  EXPECT_GT(uptime, 0);
  EXPECT_GE(clock.uptime_ns(), uptime);
  EXPECT_GT(clock.wall_ns(), 1'600'000'000'000'000'000);  // 2020
  EXPECT_EQ(clock.boot_id(), slurp("/proc/sys/kernel/random/boot_id").substr(0, 8));
  EXPECT_EQ(&clock, &system_clock());
}

}  // namespace
}  // namespace cocoon::system
