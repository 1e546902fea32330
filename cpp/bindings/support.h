#pragma once
// What every file of the bindings needs: calls without the GIL, Ctrl-C, errors, logs, times, sizes and durations.

#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <pybind11/pybind11.h>

#include "cocoon/error.h"
#include "cocoon/system/cancel.h"

namespace cocoon::bindings {

namespace py = pybind11;

// The Python exception of one of our errors, with its attributes. Requires the GIL.
py::object to_python(const std::exception_ptr& error);
void register_errors();

// Warnings of the core reach Python's `logging` under the same logger names. They are queued when they happen, since a
// core lock may be held then, and handed over when the call that caused them returns. Requires the GIL.
void start_logging();
void hand_over_logs();

// The signal handlers of the main thread, asked while a call waits. What they raise is kept until the call has undone
// what it began.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  [[nodiscard]] system::Cancel& cancel() { return cancel_; }
  // Raises what was kept. Requires the GIL.
  [[noreturn]] void raise();

 private:
  void poll();

  system::Cancel cancel_;
  std::optional<py::error_already_set> kept_;
};

// Runs `call(cancel)` without the GIL. Every call that can block or take a core mutex goes through here.
template <typename Call>
auto blocking(Call&& call) {
  Interruptible interruptible;
  struct HandOver {
    ~HandOver() { hand_over_logs(); }
  } hand_over;
  try {
    const py::gil_scoped_release released;
    return std::forward<Call>(call)(interruptible.cancel());
  } catch (const Cancelled&) {
    interruptible.raise();
  }
}

// Timezone-aware UTC datetime (microseconds, rounded down).
py::object to_datetime(std::int64_t ns);
py::object to_datetime(const std::optional<std::int64_t>& ns);  // None

// pathlib.Path
py::object to_path(const std::string& path);
// str or os.PathLike. Errors InvalidArgument naming `what`.
std::string from_path(std::string_view what, const py::handle& value);

// Bytes: an int, or a string with a binary unit ("512M", "1G", "10GiB", "1.5G"). Errors InvalidArgument naming `what`.
std::int64_t to_bytes(std::string_view what, const py::handle& value);

// Seconds as a number, or a timedelta. Errors InvalidArgument naming `what`.
std::chrono::milliseconds to_milliseconds(std::string_view what, const py::handle& value);

}  // namespace cocoon::bindings
