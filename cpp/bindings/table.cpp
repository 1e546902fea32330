#include "bindings/table.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "cocoon/ledger/arrow.h"
#include "cocoon/metering/entry.h"

#include "bindings/support.h"
#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using ledger::Column;
using ledger::ColumnType;
using ledger::Table;

constexpr const char* kStreamCapsule = "arrow_array_stream";  // as the PyCapsule interface names it

py::object labels_of(std::string_view json) { return py::module_::import("json").attr("loads")(to_str(json)); }

py::object value_at(const Column& column, std::size_t row) {
  if (column.is_null(row)) {
    return py::none();
  }
  switch (column.type()) {
    case ColumnType::kText:
    case ColumnType::kSymbol:
      return to_str(column.text(row));
    case ColumnType::kInteger:
      return py::int_(column.integer(row));
    case ColumnType::kReal:
      return py::float_(column.real(row));
    case ColumnType::kBoolean:
      return py::bool_(column.integer(row) != 0);
    case ColumnType::kTime:
      return to_utc(column.integer(row));
    case ColumnType::kLabels:
      return labels_of(column.text(row));
  }
  return py::none();
}

py::list values_of(const Column& column) {
  py::list values(column.size());
  for (std::size_t row = 0; row < column.size(); ++row) {
    values[row] = value_at(column, row);
  }
  return values;
}

// Times as exact integers: a datetime has microseconds.
py::list integers_of(const Column& column) {
  py::list values(column.size());
  for (std::size_t row = 0; row < column.size(); ++row) {
    values[row] = column.is_null(row) ? py::object(py::none()) : py::object(py::int_(column.integer(row)));
  }
  return values;
}

Typed<"list[dict[str, typing.Any]]"> to_pylist(const Table& table) {
  std::vector<py::str> names;
  for (const Column& column : table.columns()) {
    names.push_back(to_str(column.name()));
  }
  py::list rows(table.rows());
  for (std::size_t row = 0; row < table.rows(); ++row) {
    py::dict one;
    for (std::size_t i = 0; i < names.size(); ++i) {
      one[names[i]] = value_at(table.columns()[i], row);
    }
    rows[row] = std::move(one);
  }
  return rows;
}

py::object pandas_column(const py::module_& pandas, const py::module_& numpy, const Column& column) {
  switch (column.type()) {
    case ColumnType::kText:
    case ColumnType::kSymbol:
    case ColumnType::kLabels:
      return pandas.attr("Series")(values_of(column), "dtype"_a = "object");
    case ColumnType::kReal:
      return pandas.attr("Series")(values_of(column), "dtype"_a = "float64");
    case ColumnType::kBoolean:
      return pandas.attr("Series")(values_of(column), "dtype"_a = "bool");
    case ColumnType::kInteger:
      return pandas.attr("Series")(values_of(column), "dtype"_a = column.null_count() == 0 ? "int64" : "Int64");
    case ColumnType::kTime: {
      // numpy's "not a time" is the least integer; through a float, nanoseconds would be lost.
      py::list values(column.size());
      for (std::size_t row = 0; row < column.size(); ++row) {
        values[row] = column.is_null(row) ? std::numeric_limits<std::int64_t>::min() : column.integer(row);
      }
      const py::object times = numpy.attr("array")(values, "dtype"_a = "int64").attr("view")("datetime64[ns]");
      return pandas.attr("Series")(times).attr("dt").attr("tz_localize")("UTC");
    }
  }
  return py::none();
}

Typed<"typing.Any"> to_pandas(const Table& table) {
  const py::module_ pandas = py::module_::import("pandas");
  const py::module_ numpy = py::module_::import("numpy");
  py::dict columns;
  for (const Column& column : table.columns()) {
    columns[to_str(column.name())] = pandas_column(pandas, numpy, column);
  }
  return pandas.attr("DataFrame")(columns);
}

py::object polars_column(const py::module_& polars, const Column& column) {
  const auto series = [&](const py::object& values, const py::object& type) {
    return polars.attr("Series")(to_str(column.name()), values, "dtype"_a = type);
  };
  switch (column.type()) {
    case ColumnType::kText:
    case ColumnType::kSymbol:
      return series(values_of(column), polars.attr("String"));
    case ColumnType::kInteger:
      return series(values_of(column), polars.attr("Int64"));
    case ColumnType::kReal:
      return series(values_of(column), polars.attr("Float64"));
    case ColumnType::kBoolean:
      return series(values_of(column), polars.attr("Boolean"));
    case ColumnType::kTime:
      return series(integers_of(column), polars.attr("Int64")).attr("cast")(polars.attr("Datetime")("ns", "UTC"));
    case ColumnType::kLabels: {
      // As an Arrow map is there: a list of pairs.
      py::list values(column.size());
      for (std::size_t row = 0; row < column.size(); ++row) {
        py::list pairs;
        if (!column.is_null(row)) {
          for (const auto& item : py::dict(labels_of(column.text(row)))) {
            pairs.append(py::dict("key"_a = item.first, "value"_a = item.second));
          }
        }
        values[row] = column.is_null(row) ? py::object(py::none()) : py::object(pairs);
      }
      const py::object text = polars.attr("String");
      const py::object pair = polars.attr("Struct")(py::dict("key"_a = text, "value"_a = text));
      return series(values, polars.attr("List")(pair));
    }
  }
  return py::none();
}

Typed<"typing.Any"> to_polars(const Table& table) {
  const py::module_ polars = py::module_::import("polars");
  py::list columns;
  for (const Column& column : table.columns()) {
    columns.append(polars_column(polars, column));
  }
  return polars.attr("DataFrame")(columns);
}

void release_capsule(PyObject* capsule) {
  auto* const stream = static_cast<ArrowArrayStream*>(PyCapsule_GetPointer(capsule, kStreamCapsule));
  if (stream->release != nullptr) stream->release(stream);  // nobody took it
  delete stream;
}

Typed<"typing.Any"> to_arrow(const std::shared_ptr<Table>& table, const Typed<"typing.Any">& /*requested_schema*/) {
  auto stream = std::make_unique<ArrowArrayStream>();
  ledger::export_stream(table, *stream);
  PyObject* const capsule = PyCapsule_New(stream.get(), kStreamCapsule, &release_capsule);
  if (capsule == nullptr) {
    stream->release(stream.get());
    throw py::error_already_set();
  }
  stream.release();  // NOLINT(bugprone-unused-return-value): the capsule has it
  return py::reinterpret_steal<py::object>(capsule);
}

py::object text_at(const Column& column, std::size_t row) {
  if (!column.is_null(row)) {
    if (column.type() == ColumnType::kTime) return py::str(metering::format_time(column.integer(row)));
    if (column.type() == ColumnType::kLabels) return to_str(column.text(row));
  }
  return value_at(column, row);
}

Typed<"list[list[typing.Any]]"> head(const Table& table, std::size_t rows) {
  py::list shown;
  for (std::size_t row = 0; row < std::min(table.rows(), rows); ++row) {
    py::list cells;
    for (const Column& column : table.columns()) {
      cells.append(text_at(column, row));
    }
    shown.append(cells);
  }
  return shown;
}

}  // namespace

void bind_table(py::module_& m) {
  m.def("_arrow_exports", [] { return ledger::arrow_exports(); }, "What was handed out as Arrow and not released yet.");
  py::class_<Table, std::shared_ptr<Table>>(
      m, "Table", R"(Columns. An immutable value; null is None. Times in data frames have nanoseconds.

Whatever reads Arrow takes it without a copy: pyarrow.table(t), polars.DataFrame(t), duckdb over either.)")
      .def_property_readonly(
          "column_names", [](const Table& t)->Typed<"list[str]"> {
            py::list names;
            for (const Column& column : t.columns()) {
              names.append(to_str(column.name()));
            }
            return names;
          })
      .def("__len__", &Table::rows)
      .def("to_pylist", &to_pylist, "One dict per row.")
      .def("__arrow_c_stream__", &to_arrow, "requested_schema"_a = py::none(),
           "The Arrow PyCapsule interface: one batch, in the table's own buffers.")
      .def("to_pandas", &to_pandas, "A pandas.DataFrame. Raises ImportError where pandas is not installed.")
      .def("to_polars", &to_polars, "A polars.DataFrame. Raises ImportError where polars is not installed.")
      .def("_head", &head, "rows"_a, "The first rows as text, for people; times with all their digits.")
      .def("_repr_html_",
           [](const py::object& self) -> py::str {
             return py::module_::import("cocoon._reports").attr("table_html")(self);
           })
      .def("__repr__", [](const Table& t) {
        std::string names;
        for (const Column& column : t.columns()) {
          names += fmt::format("{}{}", names.empty() ? "" : ", ", column.name());
        }
        return fmt::format("<Table of {} rows: {}>", t.rows(), names);
      });
}

}  // namespace cocoon::bindings
