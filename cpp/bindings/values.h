#pragma once
// Values of entries and ledgers on their way from and to Python: strictly typed, exact to the nanosecond.
// All of it requires the GIL.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

#include "cocoon/metering/entry.h"

namespace cocoon::bindings {

namespace py = pybind11;

template <std::size_t kSize>
struct TypeName {
  char text[kSize]{};
  constexpr TypeName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }
};

// An object whose Python type the signature tells. As an argument it may be anything: the binding refuses with
// InvalidArgument, where pybind11 would raise TypeError without naming the value.
template <TypeName kName>
class Typed : public py::object {
 public:
  using py::object::object;
  Typed(const py::object& any) : py::object(any) {}
  Typed(py::object&& any) : py::object(std::move(any)) {}
  // NOLINTNEXTLINE(readability-identifier-naming): pybind11 asks by this name
  static bool check_(py::handle value) { return value.ptr() != nullptr; }
};

using Text = Typed<"str">;
using MaybeText = Typed<"str | None">;
using Int = Typed<"int">;
using MaybeInt = Typed<"int | None">;
using Datetime = Typed<"datetime.datetime">;
using MaybeDatetime = Typed<"datetime.datetime | None">;
using Labels = Typed<"collections.abc.Mapping[str, str]">;
using FilePath = Typed<"pathlib.Path">;
using AnyPath = Typed<"str | os.PathLike[str]">;
using Anything = Typed<"object">;
using Bool = Typed<"bool">;
using MaybeBool = Typed<"bool | None">;
using MaybeAnyPath = Typed<"str | os.PathLike[str] | None">;
using MaybeFilePath = Typed<"pathlib.Path | None">;
using MaybeSize = Typed<"int | str | None">;
using Seconds = Typed<"float | datetime.timedelta">;
using MaybeSeconds = Typed<"float | datetime.timedelta | None">;
using Json = Typed<"dict[str, typing.Any]">;
using JsonRows = Typed<"list[dict[str, typing.Any]]">;

// a == b, and for another type what lets Python ask that one.
template <typename Value>
Bool equal(const Value& a, const Anything& b) {
  if (!py::isinstance<Value>(b)) {
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  }
  return py::bool_(a == b.template cast<const Value&>());
}

// cocoon.Kind and cocoon.Reason. Their members are looked up once.
Typed<"cocoon.enums.Kind"> to_python(metering::Kind kind);
Typed<"cocoon.enums.Reason | None"> to_python(const std::optional<metering::Reason>& reason);

// A str (also a StrEnum) as UTF-8. Errors InvalidArgument naming `what`.
std::string to_text(std::string_view what, const py::handle& value);

// Errors InvalidArgument naming `what`: no mapping, or a key that is no str.
using Items = std::vector<std::pair<std::string, py::object>>;
Items to_items(std::string_view what, const py::handle& value, std::string_view allowed);

// A mapping of str to str. Errors InvalidArgument naming `what`.
std::map<std::string, std::string> to_labels(std::string_view what, const py::handle& value);

// Several str. Errors InvalidArgument naming `what`.
std::vector<std::string> to_texts(std::string_view what, const py::handle& value);

// An int, or what has __index__, but no bool. Errors InvalidArgument naming `what` and the range.
std::int64_t to_integer(std::string_view what, const py::handle& value, std::int64_t least);

// A timezone-aware datetime, as ns since the epoch. Errors InvalidArgument naming `what`.
std::int64_t to_time(std::string_view what, const py::handle& value);
std::optional<std::int64_t> to_optional_time(std::string_view what, const py::handle& value);

// A number of seconds, or a timedelta, above 0. Errors InvalidArgument naming `what`.
std::int64_t to_duration(std::string_view what, const py::handle& value);

// As support's to_datetime, for tables: its parts are looked up once.
Datetime to_utc(std::int64_t ns);

std::int64_t now_ns();

}  // namespace cocoon::bindings

template <cocoon::bindings::TypeName kName>
struct pybind11::detail::handle_type_name<cocoon::bindings::Typed<kName>> {
  static constexpr auto name = const_name(kName.text);
};
