#pragma once
// The guest that the simulator runs: it prints what a real little guest prints, counts seconds in its memory, and ends
// when it is asked to.
//
//   GUEST-UP, MEM <MiB>, CMDLINE <text>     when it boots
//   tick N                                  each second that it runs; N goes on after a restore
//   q r x z                                 typed: power off, reset, triple fault, toggle "ignore shutdown requests";
//                                           every byte is echoed
//   DOWN <why>, IGNORED <why>               what it makes of a shutdown request

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

namespace cocoon::simvmm {

using Clock = std::chrono::steady_clock;

enum class GuestEnd { kPowerOff, kReset, kTripleFault };

class Guest {
 public:
  // What of it a snapshot keeps.
  struct Memory {
    std::uint64_t ticks = 0;
    bool ignores_requests = false;
  };

  explicit Guest(std::chrono::milliseconds tick) : tick_(tick) {}

  void boot(std::uint64_t memory_mib, std::string_view command_line, bool ignores_requests);
  void restore(const Memory& memory) { memory_ = memory; }
  void run();
  void pause();
  [[nodiscard]] const Memory& memory() const { return memory_; }

  // Both wait while it is paused.
  void type(std::string_view bytes) { typed_ += bytes; }
  void request_shutdown(std::string_view why) { requests_.emplace_back(why); }
  // Not yet seen by the guest.
  [[nodiscard]] std::size_t pending_requests() const { return requests_.size(); }

  // When advance() has something to do; nothing while it is paused and waits for nothing.
  [[nodiscard]] std::optional<Clock::time_point> next() const;
  // Lets it do what is due. Says how it ended, if it did; then it runs no more.
  std::optional<GuestEnd> advance(Clock::time_point now);
  // What it printed since the last call.
  std::string take_output();

 private:
  std::chrono::milliseconds tick_;
  Memory memory_;
  std::optional<Clock::time_point> next_tick_;  // while it runs
  std::string typed_;
  std::deque<std::string> requests_;
  std::string output_;
};

}  // namespace cocoon::simvmm
