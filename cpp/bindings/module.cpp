#include <pybind11/pybind11.h>

#include "bindings/bind.h"
#include "bindings/support.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The core of cocoon. Import from `cocoon`, not from here.";
  m.attr("__version__") = COCOON_VERSION;
  cocoon::bindings::register_errors();
  cocoon::bindings::start_logging();
  cocoon::bindings::bind_metering(m);
  cocoon::bindings::bind_ledger(m);
  cocoon::bindings::bind_vm(m);
  cocoon::bindings::bind_snapshot(m);
  cocoon::bindings::bind_gc(m);
  cocoon::bindings::bind_node(m);
}
