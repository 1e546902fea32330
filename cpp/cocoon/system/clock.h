#pragma once
// The host's two clocks, behind an interface so that tests can step them.

#include <cstdint>
#include <string>

namespace cocoon::system {

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual std::int64_t wall_ns() const = 0;    // CLOCK_REALTIME, since the epoch
  [[nodiscard]] virtual std::int64_t uptime_ns() const = 0;  // CLOCK_BOOTTIME: goes on through suspend, never stepped
  [[nodiscard]] virtual std::string boot_id() const = 0;     // first 8 hex digits of the kernel's boot id
};

// Threads  any. One instance serves the process: system_clock().
const Clock& system_clock();

}  // namespace cocoon::system
