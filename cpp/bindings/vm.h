#pragma once
// Values of VMs that more than one file of the bindings converts.

#include <pybind11/pybind11.h>

#include "cocoon/engine/node.h"
#include "cocoon/engine/spec.h"
#include "cocoon/lifecycle/record.h"

#include "bindings/values.h"

namespace cocoon::bindings {

namespace py = pybind11;

// cocoon.VMState, or its string.
Typed<"cocoon.enums.VMState"> to_python(lifecycle::VmState state);
lifecycle::VmState to_state(const py::handle& value);

}  // namespace cocoon::bindings
