#pragma once
// How a caller stops a call that waits. Every wait in the engine is cut into slices and asks between them.

#include <atomic>
#include <chrono>
#include <functional>

namespace cocoon::system {

class Cancel {
 public:
  // `poll` is asked by check() on the thread that made this object, at most every kSlice: it may throw, or call
  // request(). Calls shorter than a slice never ask. Empty: only request() cancels.
  explicit Cancel(std::function<void()> poll = {});

  static constexpr std::chrono::milliseconds kSlice{40};  // Ctrl-C must act within 100 ms

  void request() { requested_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool requested() const { return requested_.load(std::memory_order_relaxed); }

  // Errors   Cancelled when it was requested; whatever `poll` throws (which also requests it for other threads).
  // Threads  any; `poll` runs only on the thread that made this object.
  void check();

 private:
  std::atomic<bool> requested_{false};
  std::function<void()> poll_;
  unsigned long owner_;                              // pthread_t
  std::chrono::steady_clock::time_point polled_at_;  // used on the owner's thread only
};

// Waits, in slices, asking `cancel` between them. For polling; nothing in the engine waits without a deadline.
void pause_for(std::chrono::nanoseconds duration, Cancel& cancel);

}  // namespace cocoon::system
