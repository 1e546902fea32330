#include "cocoon/system/cancel.h"

#include <pthread.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "cocoon/error.h"

namespace cocoon::system {

Cancel::Cancel(std::function<void()> poll)
    : poll_(std::move(poll)), owner_(::pthread_self()), polled_at_(std::chrono::steady_clock::now()) {}

void Cancel::check() {
  if (requested()) throw Cancelled();
  if (!poll_ || owner_ != ::pthread_self()) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - polled_at_ < kSlice) return;
  polled_at_ = now;
  try {
    poll_();
  } catch (...) {
    request();
    throw;
  }
  if (requested()) throw Cancelled();
}

void pause_for(std::chrono::nanoseconds duration, Cancel& cancel) {
  const auto end = std::chrono::steady_clock::now() + duration;
  for (;;) {
    cancel.check();
    const auto left = end - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds::zero()) return;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(left, Cancel::kSlice));
  }
}

}  // namespace cocoon::system
