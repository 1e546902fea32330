// GCReport: what gc found, and what became of it.

#include "cocoon/engine/gc.h"

#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/support.h"
#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using engine::GcItem;
using engine::GcReport;

py::dict to_dict(const GcItem& item) {
  py::dict row("module"_a = item.module, "what"_a = item.what, "id"_a = to_str(item.id),
               "path"_a = item.path.empty() ? py::object(py::none()) : py::object(to_path_str(item.path)),
               "reason"_a = to_str(item.reason), "bytes"_a = item.bytes);
  if (!item.error.empty()) row["error"] = to_str(item.error);
  return row;
}

py::list to_rows(const std::vector<GcItem>& items) {
  py::list rows;
  for (const auto& item : items) rows.append(to_dict(item));
  return rows;
}

}  // namespace

void bind_gc(py::module_& m) {
  py::class_<GcReport>(m, "GCReport", "What gc removed, or in a dry run would remove; a row for each thing.")
      .def_property_readonly(
          "removed", [](const GcReport& r) -> JsonRows { return to_rows(r.removed); },
          "Rows of module, what, id, path (None where there is none), reason, bytes (on the disk).")
      .def_property_readonly(
          "failed", [](const GcReport& r) -> JsonRows { return to_rows(r.failed); },
          "What could not be removed: the same rows with an error.")
      .def_readonly("kept", &GcReport::kept, "VMs and snapshots that stay.")
      .def_readonly("dry_run", &GcReport::dry_run)
      .def("_repr_html_", [](const py::object& self) -> py::str {
        return py::module_::import("cocoon._reports").attr("gc_html")(self);
      });
}

}  // namespace cocoon::bindings
