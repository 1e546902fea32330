#include "bindings/support.h"

#include <charconv>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>

#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;

struct LogLine {
  std::string logger;
  int level;
  std::string text;
};

// Where the core's warnings wait for the GIL. Never destroyed: threads may log until the process ends.
struct LogQueue {
  std::mutex mutex;
  std::deque<LogLine> lines;
};

LogQueue& log_queue() {
  static auto* queue = new LogQueue;
  return *queue;
}

int python_level(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
    case spdlog::level::debug:
      return 10;
    case spdlog::level::info:
      return 20;
    case spdlog::level::warn:
      return 30;
    case spdlog::level::err:
      return 40;
    case spdlog::level::critical:
    case spdlog::level::off:
    case spdlog::level::n_levels:
      return 50;
  }
  return 50;
}

class QueueSink final : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    constexpr std::size_t kMost = 1000;  // when nobody fetches them, the newest are worth more
    auto& queue = log_queue();
    const std::lock_guard guard(queue.mutex);
    queue.lines.push_back({std::string(message.logger_name.begin(), message.logger_name.end()),
                           python_level(message.level), std::string(message.payload.begin(), message.payload.end())});
    if (queue.lines.size() > kMost) queue.lines.pop_front();
  }
  void flush_() override {}
};

// Bits that a binary unit shifts by: "", "B", "K", "Ki", "KB", "KiB", …; -1 for anything else.
int shift_of(std::string_view unit) {
  if (unit.empty() || unit == "B") return 0;
  constexpr std::string_view kUnits = "KMGTP";
  const auto power = kUnits.find(unit.front());
  if (power == std::string_view::npos) return -1;
  unit.remove_prefix(1);
  return unit.empty() || unit == "i" || unit == "B" || unit == "iB" ? static_cast<int>(10 * (power + 1)) : -1;
}

std::string_view take_digits(std::string_view& text) {
  const auto digits = text.substr(0, text.find_first_not_of("0123456789"));
  text.remove_prefix(digits.size());
  return digits;
}

// "1.5G". In decimal digits, since a binary floating-point number would round. Nothing: not a whole number of bytes,
// or 2^62 and more.
std::optional<std::int64_t> parse_bytes(std::string_view text) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  const auto whole = take_digits(text);
  std::string fraction;
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    fraction = take_digits(text);
    if (fraction.empty()) return std::nullopt;
  }
  const int shift = shift_of(text);
  std::int64_t bytes = 0;
  const auto [end, problem] = std::from_chars(whole.data(), whole.data() + whole.size(), bytes);
  if (shift < 0 || problem != std::errc() || end != whole.data() + whole.size() || bytes >= kMost) return std::nullopt;
  for (int i = 0; i < shift; ++i) {
    int carry = 0;
    // NOLINTNEXTLINE(modernize-loop-convert): backwards
    for (auto digit = fraction.rbegin(); digit != fraction.rend(); ++digit) {
      const int doubled = 2 * (*digit - '0') + carry;
      *digit = static_cast<char>('0' + doubled % 10);
      carry = doubled / 10;
    }
    bytes = 2 * bytes + carry;
    if (bytes >= kMost) return std::nullopt;
  }
  if (fraction.find_first_not_of('0') != std::string::npos) return std::nullopt;
  return bytes;
}

}  // namespace

void start_logging() {
  const auto sink = std::make_shared<QueueSink>();
  for (const char* name :
       {"cocoon", "cocoon.metering", "cocoon.ledger", "cocoon.system", "cocoon.store", "cocoon.vmm", "cocoon.engine"}) {
    auto logger = std::make_shared<spdlog::logger>(name, sink);
    logger->set_level(spdlog::level::info);
    spdlog::drop(name);
    spdlog::register_logger(logger);
    if (std::string_view(name) == "cocoon") spdlog::set_default_logger(logger);
  }
}

void hand_over_logs() {
  std::deque<LogLine> lines;
  {
    auto& queue = log_queue();
    const std::lock_guard guard(queue.mutex);
    if (queue.lines.empty()) return;
    lines.swap(queue.lines);
  }
  // An error of a call may be on its way to the caller: logging must not disturb it, nor fail it.
  const py::error_scope kept;
  for (const auto& line : lines) {
    try {
      const auto logger = py::module_::import("logging").attr("getLogger")(to_str(line.logger));
      logger.attr("log")(line.level, "%s", to_str(line.text));
    } catch (py::error_already_set& error) {
      // Ctrl-C is the program's, not the handler's: it comes up again where Python runs next.
      if (error.matches(PyExc_KeyboardInterrupt)) {
        PyErr_SetInterrupt();
      } else {
        error.discard_as_unraisable("handing over cocoon's log");
      }
    }
  }
}

Interruptible::Interruptible() : cancel_([this] { poll(); }) {}
Interruptible::~Interruptible() = default;

void Interruptible::poll() {
  const py::gil_scoped_acquire held;
  if (PyErr_CheckSignals() == 0) return;
  kept_.emplace();
  cancel_.request();
}

void Interruptible::raise() {
  if (kept_) throw std::move(*kept_);
  PyErr_SetNone(PyExc_KeyboardInterrupt);
  throw py::error_already_set();
}

void Interruptible::fail() {
  const auto error = std::current_exception();
  try {
    std::rethrow_exception(error);
  } catch (const Cancelled&) {
    raise();
  } catch (const std::exception&) {
    if (!kept_) throw;
    PyException_SetContext(kept_->value().ptr(), to_python(error).release().ptr());
    raise();
  }
}

py::str to_str(std::string_view text) {
  auto* made = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace");
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(made);
}

py::str to_path_str(const std::string& path) {
  auto* made = PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(made);
}

std::string shown(const py::handle& value) {
  try {
    const py::object text = py::repr(value).attr("encode")("utf-8", "backslashreplace");
    return std::string(py::reinterpret_borrow<py::bytes>(text));
  } catch (const py::error_already_set&) {  // its own repr() fails, or it is an int of thousands of digits
    return fmt::format("<{}>", Py_TYPE(value.ptr())->tp_name);
  }
}

void refuse(std::string_view what, const py::handle& value, std::string_view allowed) {
  throw InvalidArgument(fmt::format("{}: {}, allowed: {}", what, shown(value), allowed));
}

py::object to_datetime(std::int64_t ns) {
  const auto datetime = py::module_::import("datetime");
  const auto utc = datetime.attr("timezone").attr("utc");
  std::int64_t micros = ns / 1000;
  if (ns % 1000 < 0) --micros;
  return datetime.attr("datetime")(1970, 1, 1, "tzinfo"_a = utc) +
         datetime.attr("timedelta")("microseconds"_a = micros);
}

py::object to_datetime(const std::optional<std::int64_t>& ns) { return ns ? to_datetime(*ns) : py::none(); }

py::object to_path(const std::string& path) { return py::module_::import("pathlib").attr("Path")(to_path_str(path)); }

std::string from_path(std::string_view what, const py::handle& value) {
  py::object bytes;
  try {
    bytes = py::module_::import("os").attr("fsencode")(value);
  } catch (const py::error_already_set&) {
    refuse(what, value, "a path as str or os.PathLike");
  }
  auto path = std::string(py::reinterpret_borrow<py::bytes>(bytes));
  if (path.find('\0') != std::string::npos) refuse(what, value, "a path without NUL");
  return path;
}

std::int64_t to_bytes(std::string_view what, const py::handle& value) {
  constexpr std::string_view kAllowed =
      "bytes as an int of 0 or more, or a string with a binary unit such as '512M', '1G', '10GiB'; less than 8 EiB";
  if (PyLong_Check(value.ptr()) != 0 && !py::isinstance<py::bool_>(value)) {
    int overflow = 0;
    const auto number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0 || number < 0) refuse(what, value, kAllowed);
    return number;
  }
  if (!py::isinstance<py::str>(value)) refuse(what, value, kAllowed);
  const auto bytes = parse_bytes(to_text(what, value));
  if (!bytes) refuse(what, value, kAllowed);
  return *bytes;
}

std::chrono::milliseconds to_milliseconds(std::string_view what, const py::handle& value) {
  constexpr std::string_view kAllowed = "seconds of 0 or more as a number, or a timedelta";
  auto seconds = py::reinterpret_borrow<py::object>(value);
  if (py::isinstance(value, py::module_::import("datetime").attr("timedelta")))
    seconds = value.attr("total_seconds")();
  else if (py::isinstance<py::bool_>(value) || (PyFloat_Check(value.ptr()) == 0 && PyLong_Check(value.ptr()) == 0))
    refuse(what, value, kAllowed);
  const double number = PyFloat_AsDouble(seconds.ptr());
  if (PyErr_Occurred() != nullptr) {  // an int beyond every double
    PyErr_Clear();
    refuse(what, value, kAllowed);
  }
  constexpr double kMost = 1e9;
  if (!std::isfinite(number) || number < 0 || number > kMost) refuse(what, value, kAllowed);
  return std::chrono::milliseconds(std::llround(number * 1000));
}

}  // namespace cocoon::bindings
