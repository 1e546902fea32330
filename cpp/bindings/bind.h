#pragma once
// One function per file of the bindings, called in order when the module is imported.

#include <pybind11/pybind11.h>

namespace cocoon::bindings {

void bind_metering(pybind11::module_& m);
void bind_ledger(pybind11::module_& m);
void bind_vm(pybind11::module_& m);
void bind_snapshot(pybind11::module_& m);
void bind_gc(pybind11::module_& m);
void bind_node(pybind11::module_& m);

}  // namespace cocoon::bindings
