// GCReport: what gc found, and what became of it.

#include "cocoon/engine/gc.h"

#include <string>

#include <fmt/format.h>
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

std::string report_html(const GcReport& report) {
  std::string html = fmt::format("<p>gc: {} {}, {} kept, {} failed</p><table><thead><tr>", report.removed.size(),
                                 report.dry_run ? "to be removed" : "removed", report.kept, report.failed.size());
  for (const char* title : {"module", "what", "id", "reason", "bytes", "error"})
    html += fmt::format("<th>{}</th>", title);
  html += "</tr></thead><tbody>";
  for (const auto* items : {&report.removed, &report.failed})
    for (const auto& item : *items) {
      html += "<tr>";
      for (const auto& text : {item.module, item.what, item.id, item.reason, std::to_string(item.bytes), item.error})
        html += fmt::format("<td>{}</td>", escape_html(text));
      html += "</tr>";
    }
  return html + "</tbody></table>";
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
      .def("_repr_html_", &report_html);
}

}  // namespace cocoon::bindings
