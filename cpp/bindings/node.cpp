// Node, Backend, ReconcileReport: the engine in Python.

#include "cocoon/engine/node.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "cocoon/engine/backend.h"

#include "bindings/bind.h"
#include "bindings/snapshot.h"
#include "bindings/support.h"
#include "bindings/vm.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using engine::Backend;
using engine::Node;
using engine::ReconcileReport;
using engine::ReconcileRow;
using engine::VmView;

// What a parameter says in its signature when it may be left out and None means something else.
using RecorderOrNone = Typed<"cocoon._core.Recorder | None">;
using PathsByName = Typed<"collections.abc.Mapping[str, str | os.PathLike[str]]">;
using Changes = Typed<"collections.abc.Mapping[str, str | None]">;
using Refs = py::Args<Text>;

std::shared_ptr<Node> make_node(const AnyPath& root, const MaybeAnyPath& run_dir, const MaybeAnyPath& log_dir,
                                const RecorderOrNone& recorder, const PathsByName& binaries,
                                const Typed<"collections.abc.Iterable[str]">& ledger_labels,
                                const Typed<"int | str">& rotate_bytes) {
  engine::NodeOptions options;
  options.root = from_path("root", root);
  if (!run_dir.is_none()) options.run_dir = from_path("run_dir", run_dir);
  if (!log_dir.is_none()) options.log_dir = from_path("log_dir", log_dir);
  if (recorder.is_none()) {
    options.recorder = std::make_shared<metering::NopRecorder>();
  } else if (!recorder.is(py::ellipsis())) {
    if (!py::isinstance<metering::Recorder>(recorder)) refuse("recorder", recorder, "a Recorder, or None");
    options.recorder = recorder.cast<std::shared_ptr<metering::Recorder>>();
  }
  for (const auto& [hypervisor, binary] : to_items("binaries", binaries, "a mapping of hypervisors to paths"))
    options.binaries.emplace(hypervisor, from_path(fmt::format("binaries[{}]", shown(py::str(hypervisor))), binary));
  options.ledger_labels = to_texts("ledger_labels", ledger_labels);
  options.rotate_bytes = static_cast<std::uint64_t>(to_bytes("rotate_bytes", rotate_bytes));
  options.shim = from_path("shim", py::module_::import("cocoon._paths").attr("SHIM"));
  return blocking([&](system::Cancel&) { return std::make_shared<Node>(std::move(options)); });
}

// A backend keeps its node alive.
struct PyBackend {
  std::shared_ptr<Node> node;
  std::unique_ptr<Backend> backend;
};

std::shared_ptr<PyBackend> make_backend(std::shared_ptr<Node> node, const Text& hypervisor, const MaybeAnyPath& binary,
                                        const Seconds& socket_timeout, const Seconds& stop_timeout,
                                        const Seconds& terminate_grace) {
  engine::BackendOptions options;
  if (!binary.is_none()) options.binary = from_path("binary", binary);
  options.socket_timeout = to_milliseconds("socket_timeout", socket_timeout);
  options.stop_timeout = to_milliseconds("stop_timeout", stop_timeout);
  options.terminate_grace = to_milliseconds("terminate_grace", terminate_grace);
  auto result = std::make_shared<PyBackend>();
  result->backend = std::make_unique<Backend>(*node, to_text("hypervisor", hypervisor), std::move(options));
  result->node = std::move(node);
  return result;
}

std::vector<std::string> to_refs(const Refs& args) {
  std::vector<std::string> refs;
  for (const auto& ref : args) refs.push_back(to_text("ref", ref));
  if (refs.empty()) throw InvalidArgument("refs: none, allowed: one or more ids, names or unique id prefixes");
  return refs;
}

engine::StopOptions to_stop_options(bool force, const MaybeSeconds& timeout) {
  engine::StopOptions options{.force = force, .timeout = {}};
  if (!timeout.is_none()) options.timeout = to_milliseconds("timeout", timeout);
  return options;
}

py::dict to_dict(const ReconcileRow& row) {
  return py::dict("kind"_a = row.kind, "id"_a = to_str(row.id), "name"_a = to_str(row.name),
                  "hypervisor"_a = row.hypervisor, "status"_a = row.status, "record_state"_a = row.record_state,
                  "ledger_state"_a = row.ledger_state,
                  "pid"_a = row.pid != 0 ? py::object(py::int_(row.pid)) : py::none(), "action"_a = to_str(row.action));
}

using NodeClass = py::class_<Node, std::shared_ptr<Node>>;
using BackendClass = py::class_<PyBackend, std::shared_ptr<PyBackend>>;

BackendClass declare_backend(py::module_& m) {
  // NOLINTNEXTLINE(modernize-return-braced-init-list): the constructor is explicit
  return BackendClass(m, "Backend", R"(One hypervisor on one node.

Get it from ``Node.backend``, or make it with timeouts (seconds or timedelta) and a binary of your own; the binary is
looked up when first needed, so the state verbs work without it.
Verbs for several references try all of them and return ids in order; they raise BulkError if any failed, and the
error itself for a single reference. Raises InvalidArgument for an unknown hypervisor.)",
                      py::release_gil_before_calling_cpp_dtor());
}

void bind_backend(BackendClass& backend) {
  backend
      .def(py::init(&make_backend), py::arg("node").none(false), "hypervisor"_a, py::kw_only(), "binary"_a = py::none(),
           "socket_timeout"_a = 5, "stop_timeout"_a = 30, "terminate_grace"_a = 5)
      .def_property_readonly("hypervisor", [](const PyBackend& b) { return std::string(b.backend->hypervisor()); })
      .def_property_readonly("node", [](const PyBackend& b) { return b.node; })
      .def_property_readonly(
          "binary", [](const PyBackend& b) -> FilePath { return to_path(b.backend->binary().string()); },
          "Raises VmmError if it is not there.")
      .def(
          "create",
          [](const PyBackend& b, const engine::VmSpec& config) {
            return blocking([&](system::Cancel& cancel) { return b.backend->create(config, cancel); });
          },
          "config"_a, "Makes a VM and opens its storage interval. Raises InvalidArgument, AlreadyExists, StoreError.")
      .def(
          "start",
          [](const PyBackend& b, const Refs& refs) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) { return b.backend->start(list, c); });
          },
          "Boots VMs and opens their compute intervals; a running one is left alone.\n\n"
          "Raises NotFound, InvalidState, Inconclusive, VmmError (with the last lines of its log), VmmTimeout.")
      .def(
          "stop",
          [](const PyBackend& b, const Refs& refs, bool force, const MaybeSeconds& timeout) {
            return blocking([&, list = to_refs(refs), options = to_stop_options(force, timeout)](system::Cancel& c) {
              return b.backend->stop(list, options, c);
            });
          },
          py::kw_only(), "force"_a = false, "timeout"_a = py::none(),
          "Asks the guest to power off, waits ``timeout`` (default: stop_timeout), then ends the VMM; ``force`` kills.")
      .def(
          "restart",
          [](const PyBackend& b, const Refs& refs, bool force) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) {
              return b.backend->restart(list, {.force = force, .timeout = {}}, c);
            });
          },
          py::kw_only(), "force"_a = false, "Stops and starts.")
      .def(
          "delete",
          [](const PyBackend& b, const Refs& refs, bool force) {
            return blocking([&, list = to_refs(refs)](system::Cancel& c) { return b.backend->remove(list, force, c); });
          },
          py::kw_only(), "force"_a = false,
          "Removes VMs, their folders, and closes their intervals. A running one raises InvalidState unless "
          "``force``,\n"
          "which kills it. The loser of a race raises NotFound.")
      .def(
          "inspect",
          [](const PyBackend& b, const Text& ref) {
            return blocking([&, id = to_text("ref", ref)](system::Cancel&) { return b.backend->inspect(id); });
          },
          "ref"_a)
      .def(
          "list",
          [](const PyBackend& b, const Typed<"cocoon.enums.VMState | str | None">& state, const Labels& labels) {
            std::optional<lifecycle::VmState> wanted;
            if (!state.is_none()) wanted = to_state(state);
            return blocking(
                [&, filter = to_labels("labels", labels)](system::Cancel&) { return b.backend->list(wanted, filter); });
          },
          py::kw_only(), "state"_a = py::none(), "labels"_a = py::dict(), "By creation; all of ``labels`` must match.")
      .def(
          "relabel",
          [](const PyBackend& b, const Text& ref, const Changes& labels) {
            std::map<std::string, std::optional<std::string>> changes;
            for (const auto& [key, value] : to_items("labels", labels, "a mapping of str to str, or to None")) {
              auto& change = changes[key];
              if (!value.is_none()) change = to_text(fmt::format("labels[{}]", shown(py::str(key))), value);
            }
            return blocking(
                [&, id = to_text("ref", ref)](system::Cancel& c) { return b.backend->relabel(id, changes, c); });
          },
          "ref"_a, "labels"_a,
          "Merges labels; None removes one. A change of a metered label closes and opens every open interval at one\n"
          "instant, so usage by label stays exact.")
      .def(
          "pause",
          [](const PyBackend& b, const Text& ref) {
            blocking([&, id = to_text("ref", ref)](system::Cancel& c) { b.backend->pause(id, c); });
          },
          "ref"_a, "Stops the guest's clock; the compute interval stays open.")
      .def(
          "resume",
          [](const PyBackend& b, const Text& ref) {
            blocking([&, id = to_text("ref", ref)](system::Cancel& c) { b.backend->resume(id, c); });
          },
          "ref"_a)
      .def(
          "snapshot",
          [](const PyBackend& b, const Text& ref, const Text& name, const Text& description) {
            const engine::SnapshotOptions options{.name = to_text("name", name),
                                                  .description = to_text("description", description)};
            return blocking(
                [&, id = to_text("ref", ref)](system::Cancel& c) { return b.backend->snapshot(id, options, c); });
          },
          "ref"_a, py::kw_only(), "name"_a = "", "description"_a = "",
          "Memory, devices and disks of a running VM at one moment; the guest goes on at once.\n\n"
          "Raises AlreadyExists for the name, InvalidState if no guest runs.")
      .def(
          "clone",
          [](const PyBackend& b, const Text& snapshot, const engine::VmSpec& config) {
            return blocking(
                [&, id = to_text("snapshot", snapshot)](system::Cancel& c) { return b.backend->clone(id, config, c); });
          },
          "snapshot"_a, "config"_a,
          "A new VM that goes on where the snapshot's stopped; any number at once. What ``config`` leaves out is the\n"
          "snapshot's, but for labels; cpu, memory and storage cannot differ. Kernel, initrd and command line count\n"
          "from its next start.\n\n"
          "Raises InvalidArgument, AlreadyExists, CorruptSnapshot; then nothing is left of it.")
      .def(
          "restore",
          [](const PyBackend& b, const Text& ref, const Text& snapshot) {
            return blocking([&, id = to_text("ref", ref), from = to_text("snapshot", snapshot)](system::Cancel& c) {
              return b.backend->restore(id, from, c);
            });
          },
          "ref"_a, "snapshot"_a,
          "The VM goes back to a snapshot, whatever it does now, and takes its cpu, memory and storage.\n\n"
          "What can be refused is refused before anything is touched. After a later failure it has its old disks and\n"
          "is in error.")
      .def(
          "hibernate",
          [](const PyBackend& b, const Text& ref) {
            return blocking([&, id = to_text("ref", ref)](system::Cancel& c) { return b.backend->hibernate(id, c); });
          },
          "ref"_a,
          "Keeps a running VM's memory in a snapshot of its own and ends its VMM. A failure leaves it running.")
      .def(
          "wake",
          [](const PyBackend& b, const Text& ref) {
            return blocking([&, id = to_text("ref", ref)](system::Cancel& c) { return b.backend->wake(id, c); });
          },
          "ref"_a,
          "A hibernated VM goes on, and the snapshot that kept its memory goes. A failure leaves it hibernated.")
      .def(
          "console_path",
          [](const PyBackend& b, const Text& ref) -> FilePath {
            return to_path(blocking([&, id = to_text("ref", ref)](system::Cancel&) {
                             return b.backend->console_path(id);
                           }).string());
          },
          "ref"_a,
          "The guest's serial console while it runs: a UNIX socket, or (firecracker) a fifo that takes the input "
          "while\n"
          "console_log_path has the output.")
      .def(
          "console_log_path",
          [](const PyBackend& b, const Text& ref) -> FilePath {
            return to_path(blocking([&, id = to_text("ref", ref)](system::Cancel&) {
                             return b.backend->console_log_path(id);
                           }).string());
          },
          "ref"_a,
          "What the guest printed since it was started; the run before is beside it, with '.1'.\n\n"
          "Raises InvalidArgument for cloud-hypervisor, which writes none.")
      .def(
          "log_path",
          [](const PyBackend& b, const Text& ref) -> FilePath {
            return to_path(
                blocking([&, id = to_text("ref", ref)](system::Cancel&) { return b.backend->log_path(id); }).string());
          },
          "ref"_a, "The VMM's own log since it was started; the run before is beside it, with '.1'.")
      .def(
          "mark_started",
          [](const PyBackend& b, const Refs& refs) {
            blocking([&, list = to_refs(refs)](system::Cancel& c) { b.backend->mark_started(list, c); });
          },
          "The state machine itself, for orchestration that owns the process side.")
      .def(
          "mark_stopped",
          [](const PyBackend& b, const Refs& refs) {
            blocking([&, list = to_refs(refs)](system::Cancel& c) { b.backend->mark_stopped(list, c); });
          },
          "For a VM whose process is dead. Raises InvalidState while its VMM is proven alive.")
      .def(
          "mark_error",
          [](const PyBackend& b, const Text& ref) {
            blocking([&, id = to_text("ref", ref)](system::Cancel&) { b.backend->mark_error(id); });
          },
          "ref"_a, "Says nothing in the ledger: nobody proved the process dead.");
}

void bind_report(py::module_& m) {
  py::class_<ReconcileReport>(
      m, "ReconcileReport",
      "Ledger, records and processes, three ways; a row for each VM, for each snapshot that does not agree, and for a "
      "ledger that cannot be read.")
      .def_property_readonly("rows",
                             [](const ReconcileReport& r) -> JsonRows {
                               py::list rows;
                               for (const auto& row : r.rows) rows.append(to_dict(row));
                               return rows;
                             })
      .def_readonly("ok", &ReconcileReport::ok)
      .def("_repr_html_", [](const py::object& self) -> py::str {
        return py::module_::import("cocoon._reports").attr("reconcile_html")(self);
      });
}

NodeClass declare_node(py::module_& m) {
  // NOLINTNEXTLINE(modernize-return-braced-init-list): the constructor is explicit
  return NodeClass(m, "Node", R"(One root folder: store, ledger, VMs.

Cheap to open; many processes may open the same root. ``recorder`` left out means a FileRecorder at
``root/metering/ledger.jsonl``; None means no metering. ``ledger_labels`` names the labels that go into the ledger
(kept by the node; left out: as they were). A ledger of ``rotate_bytes`` is rotated after the entry that made it so
long; 0: never.
Raises StoreError: the root cannot be used, or its database is foreign, damaged or newer; InvalidArgument.)",
                   py::release_gil_before_calling_cpp_dtor());
}

// What is known of a node that is closed already: nothing.
std::uint64_t settled_of(const Node& node) {
  try {
    return node.settled();
  } catch (const StoreError&) {
    return 0;
  }
}

void bind_methods(NodeClass& node) {
  node.def(py::init(&make_node), "root"_a, py::kw_only(), "run_dir"_a = py::none(), "log_dir"_a = py::none(),
           "recorder"_a = py::ellipsis(), "binaries"_a = py::dict(), "ledger_labels"_a = py::tuple(),
           "rotate_bytes"_a = 0)
      .def_property_readonly("id", &Node::id)
      .def_property_readonly("root", [](const Node& n) -> FilePath { return to_path(n.root().string()); })
      .def_property_readonly("recorder", &Node::recorder)
      .def_property_readonly(
          "snapshots", [](std::shared_ptr<Node> n) { return PyLocalFile{std::move(n)}; }, "The node's snapshot store.")
      .def_property_readonly(
          "ledger", [](const Node& n)->Typed<"cocoon._core.Ledger"> {
            auto* file = n.recorder()->file();
            if (file == nullptr)
              throw LedgerError("ledger: this node's recorder is not a file, so there is none to read",
                                n.root().string());
            const std::uint64_t expected = blocking([&](system::Cancel&) { return settled_of(n); });
            return py::module_::import("cocoon._core")
                .attr("Ledger")
                .attr("_of_node")(to_path(file->path().string()), expected, n.id());
          },
          "The ledger to read, rotated parts included. Raises LedgerError if the recorder is not a file.")
      .def(
          "backend",
          [](const std::shared_ptr<Node>& n, const Text& hypervisor) {
            return make_backend(n, hypervisor, MaybeAnyPath(py::none()), py::int_(5), py::int_(30), py::int_(5));
          },
          "hypervisor"_a)
      .def(
          "vms", [](const Node& n) { return blocking([&](system::Cancel&) { return n.vms(); }); },
          "All VMs, by creation.")
      .def(
          "find",
          [](const Node& n, const Text& ref) {
            return blocking([&, id = to_text("ref", ref)](system::Cancel&) { return n.find(id); });
          },
          "ref"_a, "Over all backends. Raises NotFound, AmbiguousRef.")
      .def(
          "reconcile",
          [](Node& n, bool fix) { return blocking([&](system::Cancel& cancel) { return n.reconcile(fix, cancel); }); },
          py::kw_only(), "fix"_a = false,
          "Compares ledger, records and processes; ``fix`` closes, adopts or kills through ordinary transitions.")
      .def(
          "gc",
          [](Node& n, bool dry_run, const MaybeInt& keep_last, const MaybeSeconds& max_age,
             const MaybeSize& max_bytes) {
            engine::GcOptions options{.dry_run = dry_run, .keep_last = {}, .max_age = {}, .max_bytes = {}};
            if (!keep_last.is_none()) options.keep_last = to_integer("keep_last", keep_last, 0);
            if (!max_age.is_none())
              options.max_age = std::chrono::duration_cast<std::chrono::seconds>(to_milliseconds("max_age", max_age));
            if (!max_bytes.is_none()) options.max_bytes = to_bytes("max_bytes", max_bytes);
            return blocking([&](system::Cancel& cancel) { return n.gc(options, cancel); });
          },
          py::kw_only(), "dry_run"_a = false, "keep_last"_a = py::none(), "max_age"_a = py::none(),
          "max_bytes"_a = py::none(),
          R"(Removes what dead processes left: placeholders, folders, processes, staging, locks; closes dead VMs' intervals.

Also the snapshots that any of these gives up: all but the ``keep_last`` newest; those unused for ``max_age``; the
longest unused until the others have at most ``max_bytes`` in all. What is in use or being made stays. May run at any
time, in many processes at once. ``dry_run`` only says what would go.)")
      .def_property_readonly(
          "pending", [](const Node& n) { return blocking([&](system::Cancel&) { return n.pending(); }); },
          "Entries committed but not yet in the ledger.")
      .def(
          "flush", [](Node& n) { blocking([&](system::Cancel&) { n.flush(); }); },
          "What was committed is in the ledger and on the disk. Raises LedgerError if it cannot be.")
      .def(
          "rotate_ledger",
          [](Node& n) -> MaybeFilePath {
            const auto part = blocking([&](system::Cancel&) { return n.rotate_ledger().string(); });
            return part.empty() ? py::object(py::none()) : py::object(to_path(part));
          },
          R"(The ledger becomes a packed part, ``ledger.<first>-<last>.jsonl.zst``, and the next entry begins a new file.

Returns the part, or None if there was nothing in the ledger. Raises LedgerError.)")
      .def("close", [](Node& n) { blocking([&](system::Cancel&) { n.close(); }); })
      .def("__enter__", [](std::shared_ptr<Node> n) { return n; })
      .def("__exit__", [](Node& n, const py::Args<Anything>&) { blocking([&](system::Cancel&) { n.close(); }); });
}

}  // namespace

void bind_node(py::module_& m) {
  bind_report(m);
  // Both before the methods of either: their signatures name each other.
  auto node = declare_node(m);
  auto backend = declare_backend(m);
  bind_methods(node);
  bind_backend(backend);
}

}  // namespace cocoon::bindings
