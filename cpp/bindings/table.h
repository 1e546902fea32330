#pragma once
// cocoon.Table: the core's columns in Python.

#include <pybind11/pybind11.h>

#include "cocoon/ledger/table.h"

namespace cocoon::bindings {

namespace py = pybind11;

void bind_table(py::module_& m);

// The first rows as an HTML table, everything escaped.
std::string to_html(const ledger::Table& table);

}  // namespace cocoon::bindings
