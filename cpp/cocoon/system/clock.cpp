#include "cocoon/system/clock.h"

#include <time.h>

#include <algorithm>
#include <string_view>

#include "cocoon/error.h"
#include "cocoon/system/file.h"

namespace cocoon::system {
namespace {

constexpr std::int64_t kNsPerSecond = 1'000'000'000;
constexpr std::size_t kBootIdDigits = 8;

std::int64_t read_clock(clockid_t id) {
  timespec now{};
  ::clock_gettime(id, &now);  // fails for unknown clocks only; both are older than pidfds
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

std::string read_boot_id() {
  const Path path = "/proc/sys/kernel/random/boot_id";
  const std::string text = find_text(path, 256).value_or("");
  const std::string_view digits = std::string_view(text).substr(0, kBootIdDigits);
  const bool hex = std::all_of(digits.begin(), digits.end(),
                               [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (digits.size() != kBootIdDigits || !hex) {
    throw StoreError("read the kernel's boot id from " + path.string() + ": it does not begin with 8 hex digits",
                     path.string());
  }
  return std::string(digits);
}

class SystemClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t wall_ns() const override { return read_clock(CLOCK_REALTIME); }
  [[nodiscard]] std::int64_t uptime_ns() const override { return read_clock(CLOCK_BOOTTIME); }
  [[nodiscard]] std::string boot_id() const override {
    static const std::string id = read_boot_id();  // one boot, one id; a failure is tried again
    return id;
  }
};

}  // namespace

const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

}  // namespace cocoon::system
