#include "cocoon/vmm/kvm_probe.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::vmm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// The guest: 20 000 times round a loop of two instructions in real mode, then HLT.
constexpr std::uint16_t kLoops = 20'000;
constexpr std::array<std::uint8_t, 7> kProgram{
    0xb9, kLoops & 0xff, kLoops >> 8,  // mov cx, 20000
    0x49,                              // again: dec cx
    0x75, 0xfd,                        // jnz again
    0xf4,                              // hlt
};
constexpr std::uint64_t kCodeAddress = 0x1000;

// KVM_SET_SIGNAL_MASK. Linux's header gives C++ another number: its struct ends in an empty member, which has a size
// there, and an ioctl's number contains the size.
constexpr unsigned long kSetSignalMask = _IOW(KVMIO, 0x8b, std::uint32_t);

// On hardware the loop takes 10 to 30 us, with the entry and exit of a nested KVM a few 100 us. A KVM that interprets
// does one or two million instructions a second: 17 ms were measured, 40 ms are usual. The limit is in the middle, and
// held against the thread's CPU time, in which waiting for a busy host's processor does not count.
constexpr microseconds kLimit{2000};
constexpr microseconds kHopeless{4 * kLimit.count()};  // no use trying again
constexpr int kTries = 3;

class Mapping {
 public:
  Mapping(std::size_t size, int flags, int fd)
      : at_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0)), size_(size) {
    if (at_ == MAP_FAILED) throw std::runtime_error(system_message("mmap", errno));
  }
  ~Mapping() { ::munmap(at_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  [[nodiscard]] void* get() const { return at_; }

 private:
  void* at_;
  std::size_t size_;
};

template <typename... Argument>
int require_ioctl(const char* name, int fd, unsigned long request, Argument... argument) {
  const int result = ::ioctl(fd, request, argument...);
  if (result < 0) throw std::runtime_error(system_message(name, errno));
  return result;
}

microseconds thread_cpu_time() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return microseconds(time.tv_sec * 1'000'000 + time.tv_nsec / 1000);
}

class TinyGuest {
 public:
  explicit TinyGuest(int kvm)
      : vm_(require_ioctl("KVM_CREATE_VM", kvm, KVM_CREATE_VM, 0UL)),
        memory_(0x1000, MAP_PRIVATE | MAP_ANONYMOUS, -1),
        // Intel processors that cannot run real mode keep a task state segment there; the others take no notice.
        tss_(::ioctl(vm_.get(), KVM_SET_TSS_ADDR, 0xfffbd000UL)),
        vcpu_(make_vcpu()),
        run_(static_cast<std::size_t>(require_ioctl("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL)),
             MAP_SHARED, vcpu_.get()) {}

  // The CPU time of one run. Errors runtime_error: it did not get to its HLT.
  microseconds run() {
    kvm_sregs segments{};
    require_ioctl("KVM_GET_SREGS", vcpu_.get(), KVM_GET_SREGS, &segments);
    segments.cs.base = 0;
    segments.cs.selector = 0;
    require_ioctl("KVM_SET_SREGS", vcpu_.get(), KVM_SET_SREGS, &segments);
    kvm_regs registers{};
    registers.rip = kCodeAddress;
    registers.rflags = 2;  // bit 1 is always set
    require_ioctl("KVM_SET_REGS", vcpu_.get(), KVM_SET_REGS, &registers);

    const microseconds before = thread_cpu_time();
    require_ioctl("KVM_RUN", vcpu_.get(), KVM_RUN, 0UL);
    const microseconds took = thread_cpu_time() - before;
    const auto* state = static_cast<const kvm_run*>(run_.get());
    if (state->exit_reason != KVM_EXIT_HLT) {
      throw std::runtime_error(fmt::format("the guest ended with exit reason {}", state->exit_reason));
    }
    require_ioctl("KVM_GET_REGS", vcpu_.get(), KVM_GET_REGS, &registers);
    if ((registers.rcx & 0xffff) != 0 || registers.rip != kCodeAddress + kProgram.size()) {
      throw std::runtime_error("the guest did not do what its program says");
    }
    return took;
  }

  // Lets `signal`, which the calling thread blocks, end a run with EINTR. It stays pending: no handler is needed.
  void interrupted_by(int signal) {
    // struct kvm_signal_mask, whose last member has no size: the length, then the kernel's sigset_t.
    const std::uint32_t length = sizeof(std::uint64_t);
    const std::uint64_t blocked = ~(std::uint64_t{1} << (signal - 1));
    std::array<std::uint8_t, sizeof length + sizeof blocked> mask{};
    std::memcpy(mask.data(), &length, sizeof length);
    std::memcpy(mask.data() + sizeof length, &blocked, sizeof blocked);
    require_ioctl("KVM_SET_SIGNAL_MASK", vcpu_.get(), kSetSignalMask, mask.data());
  }

 private:
  system::Fd make_vcpu() {
    std::memcpy(memory_.get(), kProgram.data(), kProgram.size());
    kvm_userspace_memory_region region{};
    region.guest_phys_addr = kCodeAddress;
    region.memory_size = 0x1000;
    region.userspace_addr = reinterpret_cast<std::uint64_t>(memory_.get());
    require_ioctl("KVM_SET_USER_MEMORY_REGION", vm_.get(), KVM_SET_USER_MEMORY_REGION, &region);
    return system::Fd(require_ioctl("KVM_CREATE_VCPU", vm_.get(), KVM_CREATE_VCPU, 0UL));
  }

  system::Fd vm_;
  Mapping memory_;
  [[maybe_unused]] int tss_;
  system::Fd vcpu_;
  Mapping run_;
};

KvmStatus judge(int kvm, int signal) {
  TinyGuest guest(kvm);
  guest.interrupted_by(signal);
  microseconds best = microseconds::max();
  for (int i = 0; i < kTries; ++i) {
    best = std::min(best, guest.run());
    if (best <= kLimit || best > kHopeless) break;
  }
  if (best <= kLimit)
    return {.usable = true, .reason = fmt::format("KVM runs guests (self-test: {} us)", best.count())};
  return {.interprets = true,
          .reason = fmt::format("KVM here interprets its guests (self-test: {} us, on hardware under {} us)",
                                best.count(), kLimit.count())};
}

// In a thread of its own, whose signal mask is ours to change.
KvmStatus judge_in_time(int kvm, milliseconds give_up) {
  const int signal = SIGRTMIN + 1;
  KvmStatus status;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;

  sigset_t all;
  sigset_t old;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &old);  // inherited by the thread: no signal of the program's ends up there
  std::thread vcpu([&] {
    KvmStatus found;
    try {
      found = judge(kvm, signal);
    } catch (const std::exception& error) {
      found = {.reason = fmt::format("KVM's self-test failed: {}", error.what())};
    }
    const std::lock_guard lock(mutex);
    status = std::move(found);
    done = true;
    changed.notify_all();
  });
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);

  std::unique_lock lock(mutex);
  const bool in_time = changed.wait_for(lock, give_up, [&] { return done; });
  lock.unlock();
  // The signal stays pending in the thread, so it also ends a run that has yet to begin.
  if (!in_time) ::pthread_kill(vcpu.native_handle(), signal);
  vcpu.join();
  if (!in_time && !status.usable) {
    status.interprets = true;
    status.reason = fmt::format("KVM's self-test did not end within {} ms", give_up.count());
  }
  return status;
}

}  // namespace

KvmStatus probe_kvm(const system::Path& device, milliseconds give_up) {
  const system::Fd kvm(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  if (!kvm) return {.reason = system_message("open " + device.string(), errno)};
  const int version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0UL);
  if (version < 0) return {.reason = system_message(device.string() + " is no KVM device", errno)};
  if (version != KVM_API_VERSION) {
    return {.reason = fmt::format("{}: KVM API version {}, expected {}", device.string(), version, KVM_API_VERSION)};
  }
  return judge_in_time(kvm.get(), give_up);
}

const KvmStatus& kvm_status() {
  static const KvmStatus status = probe_kvm();
  return status;
}

}  // namespace cocoon::vmm
