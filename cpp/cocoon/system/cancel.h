#pragma once
// How a caller stops a call that waits. Every wait in the engine is cut into slices and asks between them.

#include <atomic>
#include <chrono>
#include <functional>

namespace cocoon::system {

class Cancel {
 public:
  // `poll` is asked by check() on the thread that made this object, at most every kSlice: it may throw, or call
  // request(). Empty: only request() cancels.
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
  unsigned long owner_;
};

}  // namespace cocoon::system
