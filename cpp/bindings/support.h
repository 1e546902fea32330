#pragma once
// What every file of the bindings needs: calls without the GIL, Ctrl-C, errors, logs, times, sizes and durations.

#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
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
  // A signal handler raised, and the call has not been told or could not stop any more.
  [[nodiscard]] bool interrupted() const { return kept_.has_value(); }
  // Raises what was kept. Requires the GIL.
  [[noreturn]] void raise();
  // To be called while an exception of the call is handled: raises what was kept, with the call's error as its context,
  // else that error. Requires the GIL.
  [[noreturn]] void fail();

 private:
  void poll();

  system::Cancel cancel_;
  std::optional<py::error_already_set> kept_;
};

// Runs `call(cancel)` without the GIL. Every call that can block or take a core mutex goes through here.
// What a signal handler raised meanwhile is raised however the call ends: its signal is spent and comes only once.
template <typename Call>
auto blocking(Call&& call) {
  Interruptible interruptible;
  struct HandOver {
    ~HandOver() { hand_over_logs(); }
  } hand_over;
  const auto run = [&] {
    try {
      const py::gil_scoped_release released;
      return std::forward<Call>(call)(interruptible.cancel());
    } catch (...) {
      interruptible.fail();
    }
  };
  using Result = decltype(run());
  if constexpr (std::is_void_v<Result>) {
    run();
    if (interruptible.interrupted()) interruptible.raise();
  } else {
    std::optional<Result> result(run());
    if (interruptible.interrupted()) {
      {
        const py::gil_scoped_release released;  // the end of a node waits for threads that may want the GIL
        result.reset();
      }
      interruptible.raise();
    }
    return *std::move(result);
  }
}

// Text of others as a str: bytes that are no UTF-8 as \xff, so that they never hide what the text says.
py::str to_str(std::string_view text);
// A path as a str, as the os module has it: os.fsencode() gives its bytes back.
py::str to_path_str(const std::string& path);
// repr(), whatever is in it.
std::string shown(const py::handle& value);

// Throws InvalidArgument: "{what}: {value}, allowed: {allowed}".
[[noreturn]] void refuse(std::string_view what, const py::handle& value, std::string_view allowed);

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
