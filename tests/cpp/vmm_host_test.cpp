// What this host can do: KVM's self-test and the time stamp counter.

#include <time.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/vmm/host_tsc.h"
#include "cocoon/vmm/kvm_probe.h"

#include "vmm_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;

TEST(KvmProbeTest, MissingDeviceSaysSo) {
  const KvmStatus status = probe_kvm("/nowhere/kvm");
  EXPECT_FALSE(status.usable || status.interprets);
  EXPECT_EQ(status.reason, "open /nowhere/kvm: No such file or directory");
}

TEST(KvmProbeTest, ForbiddenDeviceSaysSo) {
  if (::geteuid() == 0) GTEST_SKIP() << "root opens every file";
  const TempDir dir;
  const auto path = dir.file("kvm");
  std::filesystem::permissions(path, std::filesystem::perms::none);
  EXPECT_EQ(probe_kvm(path).reason, "open " + path.string() + ": Permission denied");
}

TEST(KvmProbeTest, OtherFilesAreNoKvm) {
  const TempDir dir;
  for (const auto& path : {dir.file("kvm"), system::Path("/dev/null")}) {
    const KvmStatus status = probe_kvm(path);
    EXPECT_FALSE(status.usable || status.interprets);
    EXPECT_NE(status.reason.find("is no KVM device"), std::string::npos) << status.reason;
  }
}

TEST(KvmProbeTest, DecidesQuicklyWithAReasonAndLeavesNoDescriptorOrSignalBehind) {
  const auto descriptors = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  const auto before = descriptors();
  sigset_t mask_before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask_before);
  const auto start = std::chrono::steady_clock::now();
  const KvmStatus status = probe_kvm();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
  EXPECT_FALSE(status.reason.empty());
  EXPECT_EQ(status.interprets, status.reason.find("interprets") != std::string::npos ||
                                   status.reason.find("did not end") != std::string::npos);
  EXPECT_EQ(descriptors(), before);
  sigset_t mask_after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask_after);
  for (int signal = 1; signal < SIGRTMAX; ++signal) {
    EXPECT_EQ(::sigismember(&mask_before, signal), ::sigismember(&mask_after, signal)) << signal;
  }
  RecordProperty("kvm", status.reason);
}

TEST(KvmProbeTest, RunThatDoesNotEndInTimeIsInterrupted) {
  if (::access("/dev/kvm", R_OK | W_OK) != 0) GTEST_SKIP() << "there is no /dev/kvm to open";
  const auto start = std::chrono::steady_clock::now();
  const KvmStatus status = probe_kvm("/dev/kvm", 0ms);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
  // A KVM on hardware can be quicker than the interruption.
  EXPECT_TRUE(status.usable || status.reason == "KVM's self-test did not end within 0 ms") << status.reason;
}

TEST(KvmProbeTest, ManyThreadsGetOneAnswer) {
  std::vector<const KvmStatus*> answers(4);
  std::vector<std::thread> threads;
  threads.reserve(answers.size());
  for (auto& answer : answers) threads.emplace_back([&answer] { answer = &kvm_status(); });
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(std::all_of(answers.begin(), answers.end(), [&](const auto* a) { return a == answers[0]; }));
}

TEST(HostTscTest, IsTheRateAtWhichTheCounterRuns) {
#if defined(__x86_64__)
  const auto now = [] {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC_RAW, &time);
    return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
  };
  ASSERT_GT(host_tsc_khz(), 100'000);
  EXPECT_EQ(host_tsc_khz() % 1000, 0);
  // Over 50 ms, once more where the machine was too busy to read both clocks at one moment.
  double error = 1;
  for (int i = 0; i < 5 && error > 0.002; ++i) {
    const double start = now();
    const std::uint64_t first = __builtin_ia32_rdtsc();
    while (now() - start < 50e6) {
    }
    const std::uint64_t last = __builtin_ia32_rdtsc();
    const double khz = static_cast<double>(last - first) / (now() - start) * 1e6;
    error = std::abs(khz / static_cast<double>(host_tsc_khz()) - 1);
  }
  EXPECT_LT(error, 0.002);
#else
  EXPECT_EQ(host_tsc_khz(), 0);
#endif
}

}  // namespace
}  // namespace cocoon::vmm
