#include "cocoon/vmm/kvm_probe.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::vmm {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

// mov cx, 20000; again: dec cx; jnz again; hlt
constexpr std::array<unsigned char, 7> kLoop{0xb9, 0x20, 0x4e, 0x49, 0x75, 0xfd, 0xf4};
constexpr std::uint64_t kGuestPage = 0x1000;
constexpr std::size_t kPageSize = 4096;

// 40 000 instructions: 10 to 20 µs on a processor that runs them, 40 ms where a KVM interprets a million in a second.
// Between the two there is room for a host that was busy all three times.
constexpr auto kLongest = 5ms;
constexpr int kTries = 3;

class Mapping {
 public:
  Mapping(std::size_t size, int flags, int fd)
      : memory_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0)), size_(size) {}
  ~Mapping() {
    if (*this) ::munmap(memory_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  explicit operator bool() const { return memory_ != MAP_FAILED; }
  [[nodiscard]] void* get() const { return memory_; }

 private:
  void* memory_;
  std::size_t size_;
};

KvmStatus no(std::string_view what) { return {.usable = false, .reason = system_message(std::string(what), errno)}; }

// One run of the loop; nullopt with `problem` set if the guest did not come to its hlt.
std::optional<Clock::duration> run_once(int kvm, std::string& problem) {
  const auto fail = [&](const char* what) {
    problem = system_message(what, errno);
    return std::nullopt;
  };
  const system::Fd vm(::ioctl(kvm, KVM_CREATE_VM, 0));
  if (!vm) return fail("KVM_CREATE_VM");
  const Mapping page(kPageSize, MAP_SHARED | MAP_ANONYMOUS, -1);
  if (!page) return fail("mmap of a guest page");
  std::memcpy(page.get(), kLoop.data(), kLoop.size());
  kvm_userspace_memory_region region{};
  region.guest_phys_addr = kGuestPage;
  region.memory_size = kPageSize;
  region.userspace_addr = reinterpret_cast<std::uint64_t>(page.get());
  if (::ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) return fail("KVM_SET_USER_MEMORY_REGION");
  const system::Fd cpu(::ioctl(vm.get(), KVM_CREATE_VCPU, 0));
  if (!cpu) return fail("KVM_CREATE_VCPU");
  const int size = ::ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < static_cast<int>(sizeof(kvm_run))) return fail("KVM_GET_VCPU_MMAP_SIZE");
  const Mapping shared(static_cast<std::size_t>(size), MAP_SHARED, cpu.get());
  if (!shared) return fail("mmap of a vCPU");
  auto* run = static_cast<kvm_run*>(shared.get());

  kvm_sregs segments{};
  if (::ioctl(cpu.get(), KVM_GET_SREGS, &segments) != 0) return fail("KVM_GET_SREGS");
  segments.cs.base = 0;
  segments.cs.selector = 0;
  if (::ioctl(cpu.get(), KVM_SET_SREGS, &segments) != 0) return fail("KVM_SET_SREGS");
  kvm_regs registers{};
  registers.rip = kGuestPage;
  registers.rflags = 2;  // the bit that is always set
  if (::ioctl(cpu.get(), KVM_SET_REGS, &registers) != 0) return fail("KVM_SET_REGS");

  const auto begin = Clock::now();
  while (::ioctl(cpu.get(), KVM_RUN, 0) != 0) {
    if (errno != EINTR && errno != EAGAIN) return fail("KVM_RUN");
    if (Clock::now() - begin > 1s) return fail("KVM_RUN");
  }
  const auto took = Clock::now() - begin;
  if (run->exit_reason != KVM_EXIT_HLT) {
    problem = fmt::format("a test guest ended with exit reason {} instead of its hlt", run->exit_reason);
    return std::nullopt;
  }
  return took;
}

KvmStatus probe() {
  const system::Fd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm) return no("open /dev/kvm");
  if (::ioctl(kvm.get(), KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return no("KVM_GET_API_VERSION");
  auto best = Clock::duration::max();
  for (int i = 0; i < kTries && best > kLongest; ++i) {
    std::string problem;
    const auto took = run_once(kvm.get(), problem);
    if (!took) return {.usable = false, .reason = std::move(problem)};
    best = std::min(best, *took);
  }
  const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(best).count();
  const bool usable = best <= kLongest;
  return {.usable = usable,
          .reason = fmt::format("a test guest of 40 000 instructions took {} µs{}", micros,
                                usable ? "" : ": this KVM interprets its guests")};
}

}  // namespace

const KvmStatus& kvm_status() {
  static const KvmStatus status = probe();
  return status;
}

}  // namespace cocoon::vmm
