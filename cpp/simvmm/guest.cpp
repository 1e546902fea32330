#include "simvmm/guest.h"

#include <utility>

#include <fmt/format.h>

namespace cocoon::simvmm {

void Guest::boot(std::uint64_t memory_mib, std::string_view command_line, bool ignores_requests) {
  memory_ = {.ticks = 0, .ignores_requests = ignores_requests};
  typed_.clear();
  requests_.clear();
  output_ += fmt::format("GUEST-UP\nMEM {}\nCMDLINE {}\n", memory_mib, command_line);
  run();
}

void Guest::run() {
  if (!next_tick_) next_tick_ = Clock::now() + tick_;
}

void Guest::pause() { next_tick_.reset(); }

std::optional<Clock::time_point> Guest::next() const {
  if (!next_tick_) return std::nullopt;
  return typed_.empty() && requests_.empty() ? next_tick_ : Clock::time_point::min();
}

std::optional<GuestEnd> Guest::advance(Clock::time_point now) {
  if (!next_tick_) return std::nullopt;
  if (now >= *next_tick_) {
    output_ += fmt::format("tick {}\n", ++memory_.ticks);
    // A process that was stopped for long does not make up for it.
    *next_tick_ += tick_;
    if (*next_tick_ <= now) next_tick_ = now + tick_;
  }
  const auto ended = [this](GuestEnd end) {
    pause();
    return end;
  };
  for (const char c : std::exchange(typed_, {})) {
    output_ += c;
    if (c == 'q') {
      output_ += "\nDOWN q\n";
      return ended(GuestEnd::kPowerOff);
    }
    if (c == 'r') return ended(GuestEnd::kReset);
    if (c == 'x') return ended(GuestEnd::kTripleFault);
    if (c == 'z') memory_.ignores_requests = !memory_.ignores_requests;
  }
  for (const std::string& why : std::exchange(requests_, {})) {
    if (!memory_.ignores_requests) {
      output_ += fmt::format("\nDOWN {}\n", why);
      return ended(GuestEnd::kPowerOff);
    }
    output_ += fmt::format("\nIGNORED {}\n", why);
  }
  return std::nullopt;
}

std::string Guest::take_output() { return std::exchange(output_, {}); }

}  // namespace cocoon::simvmm
