// Node, Backend, ReconcileReport: the engine in Python.

#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/support.h"
#include "bindings/vm.h"
#include "cocoon/engine/backend.h"
#include "cocoon/engine/node.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using engine::Backend;
using engine::Node;
using engine::ReconcileReport;
using engine::ReconcileRow;
using engine::VmView;

std::shared_ptr<Node> make_node(const py::object& root, const py::object& run_dir, const py::object& log_dir,
                                const py::object& recorder, const py::object& binaries,
                                const py::object& ledger_labels) {
  engine::NodeOptions options;
  options.root = from_path("root", root);
  if (!run_dir.is_none()) options.run_dir = from_path("run_dir", run_dir);
  if (!log_dir.is_none()) options.log_dir = from_path("log_dir", log_dir);
  if (recorder.is_none()) {
    options.recorder = std::make_shared<metering::NopRecorder>();
  } else if (!recorder.is(py::ellipsis())) {
    if (!py::isinstance<metering::Recorder>(recorder))
      throw InvalidArgument(fmt::format("recorder: {}, allowed: a Recorder, or None", std::string(py::repr(recorder))));
    options.recorder = recorder.cast<std::shared_ptr<metering::Recorder>>();
  }
  for (const auto& item : py::dict(binaries))
    options.binaries.emplace(item.first.cast<std::string>(), from_path("binaries", item.second));
  if (py::isinstance<py::str>(ledger_labels))
    throw InvalidArgument("ledger_labels: a str, allowed: a sequence of label keys");
  for (const auto& label : ledger_labels) options.ledger_labels.push_back(label.cast<std::string>());
  options.shim = from_path("shim", py::module_::import("cocoon._paths").attr("SHIM"));
  return blocking([&](system::Cancel&) { return std::make_shared<Node>(std::move(options)); });
}

// A backend keeps its node alive.
struct PyBackend {
  std::shared_ptr<Node> node;
  std::unique_ptr<Backend> backend;
};

std::shared_ptr<PyBackend> make_backend(std::shared_ptr<Node> node, const std::string& hypervisor,
                                        const py::object& binary, const py::object& socket_timeout,
                                        const py::object& stop_timeout, const py::object& terminate_grace) {
  engine::BackendOptions options;
  if (!binary.is_none()) options.binary = from_path("binary", binary);
  options.socket_timeout = to_milliseconds("socket_timeout", socket_timeout);
  options.stop_timeout = to_milliseconds("stop_timeout", stop_timeout);
  options.terminate_grace = to_milliseconds("terminate_grace", terminate_grace);
  auto result = std::make_shared<PyBackend>();
  result->backend = std::make_unique<Backend>(*node, hypervisor, std::move(options));
  result->node = std::move(node);
  return result;
}

std::vector<std::string> to_refs(const py::args& args) {
  std::vector<std::string> refs;
  for (const auto& ref : args) {
    if (!py::isinstance<py::str>(ref))
      throw InvalidArgument(fmt::format("ref: {}, allowed: a str", std::string(py::repr(ref))));
    refs.push_back(ref.cast<std::string>());
  }
  if (refs.empty()) throw InvalidArgument("refs: none, allowed: one or more ids, names or unique id prefixes");
  return refs;
}

engine::StopOptions to_stop_options(bool force, const py::object& timeout) {
  engine::StopOptions options{.force = force, .timeout = {}};
  if (!timeout.is_none()) options.timeout = to_milliseconds("timeout", timeout);
  return options;
}

py::dict to_dict(const ReconcileRow& row) {
  return py::dict("id"_a = row.id, "name"_a = row.name, "hypervisor"_a = row.hypervisor, "status"_a = row.status,
                  "record_state"_a = row.record_state, "ledger_state"_a = row.ledger_state,
                  "pid"_a = row.pid != 0 ? py::object(py::int_(row.pid)) : py::none(), "action"_a = row.action);
}

std::string report_html(const ReconcileReport& report) {
  const auto escape = py::module_::import("html").attr("escape");
  std::string html = fmt::format("<p>reconcile: {}</p><table><thead><tr>", report.ok ? "ok" : "not ok");
  bool has_head = false;
  std::string body;
  for (const auto& row : report.rows) {
    body += "<tr>";
    for (const auto& [key, value] : to_dict(row)) {
      if (!has_head) html += fmt::format("<th>{}</th>", key.cast<std::string>());
      const auto text = value.is_none() ? py::str("") : py::str(value);
      body += fmt::format("<td>{}</td>", escape(text).cast<std::string>());
    }
    has_head = true;
    body += "</tr>";
  }
  return html + "</tr></thead><tbody>" + body + "</tbody></table>";
}

void bind_backend(py::module_& m) {
  using Handle = std::shared_ptr<PyBackend>;
  py::class_<PyBackend, Handle>(m, "Backend", R"(One hypervisor on one node.

Get it from ``Node.backend``, or make it with timeouts (seconds or timedelta) and a binary of your own; the binary is
looked up when first needed, so the state verbs work without it.
Verbs for several references try all of them and return ids in order; they raise BulkError if any failed, and the
error itself for a single reference. Raises InvalidArgument for an unknown hypervisor.)",
                                py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_backend), "node"_a, "hypervisor"_a, py::kw_only(), "binary"_a = py::none(),
           "socket_timeout"_a = 5, "stop_timeout"_a = 30, "terminate_grace"_a = 5)
      .def_property_readonly("hypervisor", [](const PyBackend& b) { return std::string(b.backend->hypervisor()); })
      .def_property_readonly("node", [](const PyBackend& b) { return b.node; })
      .def_property_readonly("binary", [](const PyBackend& b) { return to_path(b.backend->binary().string()); },
                             "Raises VmmError if it is not there.")
      .def(
          "create",
          [](const PyBackend& b, const engine::VmSpec& config) {
            return blocking([&](system::Cancel& cancel) { return b.backend->create(config, cancel); });
          },
          "config"_a, "Makes a VM and opens its storage interval. Raises InvalidArgument, AlreadyExists, StoreError.")
      .def(
          "start",
          [](const PyBackend& b, const py::args& refs) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) { return b.backend->start(list, c); });
          },
          "Boots VMs and opens their compute intervals; a running one is left alone.\n\n"
          "Raises NotFound, InvalidState, Inconclusive, VmmError (with the last lines of its log), VmmTimeout.")
      .def(
          "stop",
          [](const PyBackend& b, const py::args& refs, bool force, const py::object& timeout) {
            return blocking([&, list = to_refs(refs), options = to_stop_options(force, timeout)](system::Cancel& c) {
              return b.backend->stop(list, options, c);
            });
          },
          py::kw_only(), "force"_a = false, "timeout"_a = py::none(),
          "Asks the guest to power off, waits ``timeout`` (default: stop_timeout), then ends the VMM; ``force`` kills.")
      .def(
          "restart",
          [](const PyBackend& b, const py::args& refs, bool force) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) {
              return b.backend->restart(list, {.force = force, .timeout = {}}, c);
            });
          },
          py::kw_only(), "force"_a = false, "Stops and starts.")
      .def(
          "delete",
          [](const PyBackend& b, const py::args& refs, bool force) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) { return b.backend->remove(list, force, c); });
          },
          py::kw_only(), "force"_a = false,
          "Removes VMs, their folders, and closes their intervals. A running one raises InvalidState unless ``force``,\n"
          "which kills it. The loser of a race raises NotFound.")
      .def(
          "inspect",
          [](const PyBackend& b, const std::string& ref) {
            return blocking([&](system::Cancel&) { return b.backend->inspect(ref); });
          },
          "ref"_a)
      .def(
          "list",
          [](const PyBackend& b, const py::object& state, const py::object& labels) {
            std::optional<lifecycle::VmState> wanted;
            if (!state.is_none()) wanted = to_state(state);
            return blocking([&, filter = to_labels("labels", labels)](system::Cancel&) {
              return b.backend->list(wanted, filter);
            });
          },
          py::kw_only(), "state"_a = py::none(), "labels"_a = py::dict(), "By creation; all of ``labels`` must match.")
      .def(
          "relabel",
          [](const PyBackend& b, const std::string& ref, const py::object& labels) {
            std::map<std::string, std::optional<std::string>> changes;
            for (const auto& item : py::dict(labels)) {
              auto& value = changes[item.first.cast<std::string>()];
              if (!item.second.is_none()) value = item.second.cast<std::string>();
            }
            return blocking([&](system::Cancel& c) { return b.backend->relabel(ref, changes, c); });
          },
          "ref"_a, "labels"_a,
          "Merges labels; None removes one. A change of a metered label closes and opens every open interval at one\n"
          "instant, so usage by label stays exact.")
      .def(
          "pause",
          [](const PyBackend& b, const std::string& ref) {
            blocking([&](system::Cancel& c) { b.backend->pause(ref, c); });
          },
          "ref"_a, "Stops the guest's clock; the compute interval stays open.")
      .def(
          "resume",
          [](const PyBackend& b, const std::string& ref) {
            blocking([&](system::Cancel& c) { b.backend->resume(ref, c); });
          },
          "ref"_a)
      .def(
          "console_path",
          [](const PyBackend& b, const std::string& ref) {
            return to_path(blocking([&](system::Cancel&) { return b.backend->console_path(ref); }).string());
          },
          "ref"_a, "A UNIX socket: the guest's serial console while it runs.")
      .def(
          "console_log_path",
          [](const PyBackend& b, const std::string& ref) {
            return to_path(blocking([&](system::Cancel&) { return b.backend->console_log_path(ref); }).string());
          },
          "ref"_a, "What the guest printed since it was started; the run before is beside it, with '.1'.")
      .def(
          "log_path",
          [](const PyBackend& b, const std::string& ref) {
            return to_path(blocking([&](system::Cancel&) { return b.backend->log_path(ref); }).string());
          },
          "ref"_a, "The VMM's own log since it was started; the run before is beside it, with '.1'.")
      .def(
          "mark_started",
          [](const PyBackend& b, const py::args& refs) {
            blocking([&, list = to_refs(refs)](system::Cancel& c) { b.backend->mark_started(list, c); });
          },
          "The state machine itself, for orchestration that owns the process side.")
      .def(
          "mark_stopped",
          [](const PyBackend& b, const py::args& refs) {
            blocking([&, list = to_refs(refs)](system::Cancel& c) { b.backend->mark_stopped(list, c); });
          },
          "For a VM whose process is dead. Raises InvalidState while its VMM is proven alive.")
      .def(
          "mark_error",
          [](const PyBackend& b, const std::string& ref) {
            blocking([&](system::Cancel&) { b.backend->mark_error(ref); });
          },
          "ref"_a, "Says nothing in the ledger: nobody proved the process dead.");
}

}  // namespace

void bind_node(py::module_& m) {
  py::class_<ReconcileReport>(m, "ReconcileReport", "Ledger, records and processes, three ways; a row for each VM.")
      .def_property_readonly("rows",
                             [](const ReconcileReport& r) {
                               py::list rows;
                               for (const auto& row : r.rows) rows.append(to_dict(row));
                               return rows;
                             })
      .def_readonly("ok", &ReconcileReport::ok)
      .def("_repr_html_", &report_html);

  py::class_<Node, std::shared_ptr<Node>>(m, "Node", R"(One root folder: store, ledger, VMs.

Cheap to open; many processes may open the same root. ``recorder`` left out means a FileRecorder at
``root/metering/ledger.jsonl``; None means no metering. ``ledger_labels`` names the labels that go into the ledger
(kept by the node; left out: as they were).
Raises StoreError: the root cannot be used, or its database is foreign, damaged or newer; InvalidArgument.)",
                                           py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_node), "root"_a, py::kw_only(), "run_dir"_a = py::none(), "log_dir"_a = py::none(),
           "recorder"_a = py::ellipsis(), "binaries"_a = py::dict(), "ledger_labels"_a = py::tuple())
      .def_property_readonly("id", &Node::id)
      .def_property_readonly("root", [](const Node& n) { return to_path(n.root().string()); })
      .def_property_readonly("recorder", &Node::recorder)
      .def_property_readonly("ledger",
                             [](const Node& n) {
                               auto* file = n.recorder()->file();
                               if (file == nullptr)
                                 throw LedgerError("ledger: this node's recorder is not a file, so there is none to read",
                                                   n.root().string());
                               return py::module_::import("cocoon._core").attr("Ledger")(to_path(file->path().string()));
                             },
                             "The ledger to read. Raises LedgerError if the recorder is not a file.")
      .def("backend",
           [](const std::shared_ptr<Node>& n, const std::string& hypervisor) {
             return make_backend(n, hypervisor, py::none(), py::int_(5), py::int_(30), py::int_(5));
           },
           "hypervisor"_a)
      .def("vms", [](const Node& n) { return blocking([&](system::Cancel&) { return n.vms(); }); },
           "All VMs, by creation.")
      .def("find",
           [](const Node& n, const std::string& ref) {
             return blocking([&](system::Cancel&) { return n.find(ref); });
           },
           "ref"_a, "Over all backends. Raises NotFound, AmbiguousRef.")
      .def("reconcile",
           [](Node& n, bool fix) {
             return blocking([&](system::Cancel& cancel) { return n.reconcile(fix, cancel); });
           },
           py::kw_only(), "fix"_a = false,
           "Compares ledger, records and processes; ``fix`` closes, adopts or kills through ordinary transitions.")
      .def_property_readonly("pending",
                             [](const Node& n) { return blocking([&](system::Cancel&) { return n.pending(); }); },
                             "Entries committed but not yet in the ledger.")
      .def("flush", [](Node& n) { blocking([&](system::Cancel&) { n.flush(); }); },
           "What was committed is in the ledger and on the disk. Raises LedgerError if it cannot be.")
      .def("close", [](Node& n) { blocking([&](system::Cancel&) { n.close(); }); })
      .def("__enter__", [](std::shared_ptr<Node> n) { return n; })
      .def("__exit__", [](Node& n, const py::args&) { blocking([&](system::Cancel&) { n.close(); }); });
  bind_backend(m);
}

}  // namespace cocoon::bindings
