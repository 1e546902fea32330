#pragma once
// Values of VMs that more than one file of the bindings converts.

#include <map>
#include <string>

#include <pybind11/pybind11.h>

#include "cocoon/engine/node.h"
#include "cocoon/engine/spec.h"
#include "cocoon/lifecycle/record.h"

namespace cocoon::bindings {

namespace py = pybind11;

// cocoon.VMState, or its string.
py::object to_python(lifecycle::VmState state);
lifecycle::VmState to_state(const py::handle& value);

// A mapping of str to str. Errors InvalidArgument naming `what`.
std::map<std::string, std::string> to_labels(std::string_view what, const py::handle& value);

}  // namespace cocoon::bindings
