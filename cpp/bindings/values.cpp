#include "bindings/values.h"

#include <time.h>

#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <pybind11/gil_safe_call_once.h>

#include "cocoon/error.h"

#include "bindings/support.h"

namespace cocoon::bindings {
namespace {

constexpr std::int64_t kNsPerSecond = 1'000'000'000;
constexpr std::size_t kKinds = 6;
constexpr std::size_t kReasons = 10;

template <typename Enum, std::size_t kCount>
std::array<py::object, kCount> members(const char* name) {
  const py::object type = py::module_::import("cocoon.enums").attr(name);
  std::array<py::object, kCount> found;
  for (std::size_t i = 0; i < kCount; ++i) {
    found[i] = type(std::string(to_string(static_cast<Enum>(i))));
  }
  return found;
}

struct Clockwork {
  py::object datetime;
  py::object timedelta;
  py::object epoch;
};

const Clockwork& clockwork() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Clockwork> storage;
  return storage
      .call_once_and_store_result([] {
        const py::module_ module = py::module_::import("datetime");
        const py::object utc = module.attr("timezone").attr("utc");
        return Clockwork{module.attr("datetime"), module.attr("timedelta"),
                         module.attr("datetime")(1970, 1, 1, 0, 0, 0, 0, utc)};
      })
      .get_stored();
}

// Of a timedelta, which holds days, seconds and microseconds: a float of its seconds would be rounded.
bool timedelta_ns(const py::handle& delta, std::int64_t& ns) {
  const auto days = delta.attr("days").cast<std::int64_t>();
  const auto seconds = delta.attr("seconds").cast<std::int64_t>();
  const auto micros = delta.attr("microseconds").cast<std::int64_t>();
  // From the first second of the range the micros lead back into it.
  const std::int64_t whole = days * 86'400 + seconds;
  const std::int64_t carry = whole < 0 ? 1 : 0;
  return !__builtin_mul_overflow(whole + carry, kNsPerSecond, &ns) &&
         !__builtin_add_overflow(ns, micros * 1'000 - carry * kNsPerSecond, &ns);
}

}  // namespace

Typed<"cocoon.enums.Kind"> to_python(metering::Kind kind) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::array<py::object, kKinds>> storage;
  auto& kinds = storage.call_once_and_store_result([] { return members<metering::Kind, kKinds>("Kind"); });
  return kinds.get_stored()[static_cast<std::size_t>(kind)];
}

Typed<"cocoon.enums.Reason | None"> to_python(const std::optional<metering::Reason>& reason) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::array<py::object, kReasons>> storage;
  if (!reason) {
    return py::none();
  }
  auto& reasons = storage.call_once_and_store_result([] { return members<metering::Reason, kReasons>("Reason"); });
  return reasons.get_stored()[static_cast<std::size_t>(*reason)];
}

std::string to_text(std::string_view what, const py::handle& value) {
  if (PyUnicode_Check(value.ptr()) == 0) {
    refuse(what, value, "a str");
  }
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();
    refuse(what, value, "a str without surrogates");
  }
  return {text, static_cast<std::size_t>(size)};
}

Items to_items(std::string_view what, const py::handle& value, std::string_view allowed) {
  Items items;
  try {
    for (const auto& item : value.attr("items")()) {
      if (!py::isinstance<py::tuple>(item) || py::len(item) != 2) {
        refuse(what, value, allowed);
      }
      const auto pair = py::reinterpret_borrow<py::tuple>(item);
      items.emplace_back(to_text(fmt::format("a key of {}", what), pair[0]), pair[1]);
    }
  } catch (const py::error_already_set& error) {
    // No items(), or nothing that can be iterated over. What a mapping of the caller's raises by itself is the
    // caller's.
    if (!error.matches(PyExc_AttributeError) && !error.matches(PyExc_TypeError)) {
      throw;
    }
    refuse(what, value, allowed);
  }
  return items;
}

std::map<std::string, std::string> to_labels(std::string_view what, const py::handle& value) {
  std::map<std::string, std::string> labels;
  for (const auto& [key, text] : to_items(what, value, "a mapping of str to str")) {
    labels.insert_or_assign(key, to_text(fmt::format("{}[{}]", what, shown(py::str(key))), text));
  }
  return labels;
}

std::vector<std::string> to_texts(std::string_view what, const py::handle& value) {
  std::vector<std::string> texts;
  if (py::isinstance<py::str>(value) || !py::isinstance<py::iterable>(value)) {
    refuse(what, value, "a sequence of str");
  }
  for (const auto& text : py::reinterpret_borrow<py::iterable>(value)) {
    texts.push_back(to_text(what, text));
  }
  return texts;
}

std::int64_t to_integer(std::string_view what, const py::handle& value, std::int64_t least) {
  const std::string allowed = fmt::format("an int from {} to {}", least, std::numeric_limits<std::int64_t>::max());
  if (PyBool_Check(value.ptr()) != 0 || PyIndex_Check(value.ptr()) == 0) {
    refuse(what, value, allowed);
  }
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) {
    throw py::error_already_set();
  }
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || result < least) {
    refuse(what, value, allowed);
  }
  return result;
}

std::int64_t to_time(std::string_view what, const py::handle& value) {
  const Clockwork& parts = clockwork();
  if (!py::isinstance(value, parts.datetime) || value.attr("utcoffset")().is_none()) {
    refuse(what, value, "a timezone-aware datetime");
  }
  std::int64_t ns = 0;
  if (!timedelta_ns(value - parts.epoch, ns)) {
    refuse(what, value, "a time from 1677-09-21 to 2262-04-11");
  }
  return ns;
}

std::optional<std::int64_t> to_optional_time(std::string_view what, const py::handle& value) {
  if (value.is_none()) {
    return std::nullopt;
  }
  return to_time(what, value);
}

std::int64_t to_duration(std::string_view what, const py::handle& value) {
  constexpr std::string_view kAllowed = "seconds above 0 as a number, or a timedelta";
  std::int64_t ns = 0;
  bool fits = true;
  if (py::isinstance(value, clockwork().timedelta)) {
    fits = timedelta_ns(value, ns);
  } else if (PyLong_Check(value.ptr()) != 0 && PyBool_Check(value.ptr()) == 0) {
    fits = !__builtin_mul_overflow(to_integer(what, value, 1), kNsPerSecond, &ns);
  } else if (PyFloat_Check(value.ptr()) != 0) {
    const double scaled = value.cast<double>() * 1e9;
    fits = std::isfinite(scaled) && std::abs(scaled) < 9e18;
    ns = fits ? std::llround(scaled) : 0;
  } else {
    refuse(what, value, kAllowed);
  }
  if (!fits || ns <= 0) {
    refuse(what, value, kAllowed);
  }
  return ns;
}

Datetime to_utc(std::int64_t ns) {
  const Clockwork& parts = clockwork();
  const std::int64_t micros = ns / 1'000 - (ns % 1'000 < 0 ? 1 : 0);
  return parts.epoch + parts.timedelta(0, 0, micros);
}

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return std::int64_t{now.tv_sec} * kNsPerSecond + now.tv_nsec;
}

}  // namespace cocoon::bindings
