#include "bindings/support.h"

#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>

#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

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

[[noreturn]] void refuse(std::string_view what, const py::handle& value, std::string_view allowed) {
  throw InvalidArgument(fmt::format("{}: {}, allowed: {}", what, std::string(py::repr(value)), allowed));
}

}  // namespace

void start_logging() {
  const auto sink = std::make_shared<QueueSink>();
  for (const char* name : {"cocoon", "cocoon.metering", "cocoon.ledger", "cocoon.system", "cocoon.store", "cocoon.vmm",
                           "cocoon.engine"}) {
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
  try {
    const auto get_logger = py::module_::import("logging").attr("getLogger");
    for (const auto& line : lines) get_logger(line.logger).attr("log")(line.level, "%s", line.text);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("handing over cocoon's log");
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

py::object to_datetime(std::int64_t ns) {
  const auto datetime = py::module_::import("datetime");
  const auto utc = datetime.attr("timezone").attr("utc");
  std::int64_t micros = ns / 1000;
  if (ns % 1000 < 0) --micros;
  return datetime.attr("datetime")(1970, 1, 1, "tzinfo"_a = utc) +
         datetime.attr("timedelta")("microseconds"_a = micros);
}

py::object to_datetime(const std::optional<std::int64_t>& ns) { return ns ? to_datetime(*ns) : py::none(); }

py::object to_path(const std::string& path) { return py::module_::import("pathlib").attr("Path")(path); }

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
      "bytes as an int of 0 or more, or a string with a binary unit such as '512M', '1G', '10GiB'";
  if (PyLong_Check(value.ptr()) != 0 && !py::isinstance<py::bool_>(value)) {
    int overflow = 0;
    const auto number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0 || number < 0) refuse(what, value, kAllowed);
    return number;
  }
  if (!py::isinstance<py::str>(value)) refuse(what, value, kAllowed);
  const auto text = value.cast<std::string>();
  std::size_t used = 0;
  long double number = 0;
  const bool has_digit = !text.empty() && text.front() >= '0' && text.front() <= '9';
  if (!has_digit || text.find_first_of("xXeEnN") != std::string::npos) refuse(what, value, kAllowed);
  try {
    number = std::stold(text, &used);
  } catch (const std::exception&) {
    refuse(what, value, kAllowed);
  }
  auto unit = text.substr(used);
  if (unit.size() > 1 && unit.back() == 'B') unit.pop_back();
  if (unit.size() > 1 && unit.back() == 'i') unit.pop_back();
  constexpr std::string_view kUnits = "BKMGTP";
  const auto power = unit.empty() ? 0 : kUnits.find(unit);
  if (power == std::string_view::npos || unit.size() > 1) refuse(what, value, kAllowed);
  const long double bytes = std::ldexp(number, static_cast<int>(10 * power));
  if (bytes != std::floor(bytes) || bytes >= std::ldexp(1.0L, 62)) refuse(what, value, kAllowed);
  return static_cast<std::int64_t>(bytes);
}

std::chrono::milliseconds to_milliseconds(std::string_view what, const py::handle& value) {
  constexpr std::string_view kAllowed = "seconds of 0 or more as a number, or a timedelta";
  py::object seconds = py::reinterpret_borrow<py::object>(value);
  if (py::isinstance(value, py::module_::import("datetime").attr("timedelta")))
    seconds = value.attr("total_seconds")();
  else if (py::isinstance<py::bool_>(value) || (PyFloat_Check(value.ptr()) == 0 && PyLong_Check(value.ptr()) == 0))
    refuse(what, value, kAllowed);
  const auto number = seconds.cast<double>();
  constexpr double kMost = 1e9;
  if (!std::isfinite(number) || number < 0 || number > kMost) refuse(what, value, kAllowed);
  return std::chrono::milliseconds(std::llround(number * 1000));
}

}  // namespace cocoon::bindings
