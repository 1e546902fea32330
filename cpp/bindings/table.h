#pragma once
// cocoon.Table: the core's columns in Python.

#include <pybind11/pybind11.h>

#include "cocoon/ledger/table.h"

namespace cocoon::bindings {

namespace py = pybind11;

void bind_table(py::module_& m);

}  // namespace cocoon::bindings
