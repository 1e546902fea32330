#pragma once
// Values of entries and ledgers on their way from and to Python: strictly typed, exact to the nanosecond.
// All of it requires the GIL.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <pybind11/pybind11.h>

#include "cocoon/metering/entry.h"

namespace cocoon::bindings {

namespace py = pybind11;

// cocoon.Kind and cocoon.Reason. Their members are looked up once.
py::object to_python(metering::Kind kind);
py::object to_python(const std::optional<metering::Reason>& reason);  // None

// A str (also a StrEnum) as UTF-8. Errors InvalidArgument naming `what`.
std::string to_text(std::string_view what, const py::handle& value);

// An int, or what has __index__, but no bool. Errors InvalidArgument naming `what` and the range.
std::int64_t to_integer(std::string_view what, const py::handle& value, std::int64_t least);

// A timezone-aware datetime, as ns since the epoch. Errors InvalidArgument naming `what`.
std::int64_t to_time(std::string_view what, const py::handle& value);
std::optional<std::int64_t> to_optional_time(std::string_view what, const py::handle& value);

// A number of seconds, or a timedelta, above 0. Errors InvalidArgument naming `what`.
std::int64_t to_duration(std::string_view what, const py::handle& value);

// As support's to_datetime, for tables: its parts are looked up once.
py::object to_utc(std::int64_t ns);

std::int64_t now_ns();

// Text of others between tags.
std::string escape_html(std::string_view text);

}  // namespace cocoon::bindings
