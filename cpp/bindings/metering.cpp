// Shape, Entry and the recorders in Python.

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "cocoon/metering/entry.h"
#include "cocoon/metering/recorder.h"

#include "bindings/bind.h"
#include "bindings/support.h"
#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using metering::CaptureRecorder;
using metering::Entry;
using metering::FileRecorder;
using metering::NopRecorder;
using metering::Recorder;
using metering::Shape;

using ShapeState = py::typing::Tuple<std::int64_t, std::int64_t, std::int64_t>;
using EntryState = py::typing::Tuple<std::string>;

Shape make_shape(const Int& cpu, const Int& mem_bytes, const Int& storage_bytes) {
  return {to_integer("cpu", cpu, 0), to_integer("mem_bytes", mem_bytes, 0),
          to_integer("storage_bytes", storage_bytes, 0)};
}

// As the keyword arguments that make it.
std::string repr(const Shape& shape) {
  std::string parts;
  const auto part = [&](std::string_view name, std::int64_t value) {
    if (value != 0) {
      parts += fmt::format("{}{}={}", parts.empty() ? "" : ", ", name, value);
    }
  };
  part("cpu", shape.cpu);
  part("mem_bytes", shape.mem_bytes);
  part("storage_bytes", shape.storage_bytes);
  return fmt::format("Shape({})", parts);
}

void bind_shape(py::module_& m) {
  py::class_<Shape>(m, "Shape", R"(What is billed: vCPUs, and bytes of memory and of storage. An immutable value.

Raises InvalidArgument: a number that is negative or does not fit in 63 bits.)")
      .def(py::init(&make_shape), py::kw_only(), "cpu"_a = 0, "mem_bytes"_a = 0, "storage_bytes"_a = 0)
      .def_readonly("cpu", &Shape::cpu)
      .def_readonly("mem_bytes", &Shape::mem_bytes)
      .def_readonly("storage_bytes", &Shape::storage_bytes)
      .def("__eq__", &equal<Shape>, py::is_operator())
      .def("__hash__", [](const Shape& s) { return py::hash(py::make_tuple(s.cpu, s.mem_bytes, s.storage_bytes)); })
      .def("__repr__", &repr)
      .def(py::pickle([](const Shape& s) -> ShapeState { return py::make_tuple(s.cpu, s.mem_bytes, s.storage_bytes); },
                      [](const ShapeState& state) {
                        return make_shape(py::object(state[0]), py::object(state[1]), py::object(state[2]));
                      }));
}

std::int64_t to_emitted_at(const py::handle& value) {
  if (value.is_none()) {
    return now_ns();
  }
  if (PyIndex_Check(value.ptr()) != 0) {
    return to_integer("emitted_at", value, std::numeric_limits<std::int64_t>::min());
  }
  return to_time("emitted_at", value);
}

std::optional<std::uint64_t> to_seq(std::string_view what, const py::handle& value) {
  if (value.is_none()) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(to_integer(what, value, 1));
}

std::optional<std::int64_t> to_uptime(std::string_view what, const py::handle& value) {
  if (value.is_none()) {
    return std::nullopt;
  }
  return to_integer(what, value, 0);
}

Entry make_entry(const Text& kind, const Text& vm_id, const Text& snapshot_id, const Text& source_snapshot_id,
                 const MaybeText& reason, const Text& hypervisor, const Shape& shape,
                 const Typed<"datetime.datetime | int | None">& emitted_at, const MaybeInt& seq,
                 const MaybeInt& interval, const Labels& labels, const MaybeDatetime& ended_at,
                 const MaybeInt& ended_uptime_ns, const Text& evidence, const MaybeDatetime& alive_until,
                 const Text& boot_id, const MaybeInt& uptime_ns) {
  Entry entry;
  entry.kind = metering::parse_kind(to_text("kind", kind));
  entry.vm_id = to_text("vm_id", vm_id);
  entry.snapshot_id = to_text("snapshot_id", snapshot_id);
  entry.source_snapshot_id = to_text("source_snapshot_id", source_snapshot_id);
  if (!reason.is_none()) {
    entry.reason = metering::parse_reason(to_text("reason", reason));
  }
  entry.hypervisor = to_text("hypervisor", hypervisor);
  entry.shape = shape;
  entry.emitted_at_ns = to_emitted_at(emitted_at);
  entry.seq = to_seq("seq", seq);
  entry.interval = to_seq("interval", interval);
  entry.labels = to_labels("labels", labels);
  entry.ended_at_ns = to_optional_time("ended_at", ended_at);
  entry.ended_uptime_ns = to_uptime("ended_uptime_ns", ended_uptime_ns);
  entry.evidence = to_text("evidence", evidence);
  entry.alive_until_ns = to_optional_time("alive_until", alive_until);
  entry.boot_id = to_text("boot_id", boot_id);
  entry.uptime_ns = to_uptime("uptime_ns", uptime_ns);
  metering::check(entry);
  return entry;
}

Entry entry_from_json(const Typed<"str | bytes">& line) {
  if (py::isinstance<py::bytes>(line)) {
    return metering::from_json(std::string_view(py::reinterpret_borrow<py::bytes>(line)));
  }
  if (!py::isinstance<py::str>(line)) {
    refuse("line", line, "str or bytes");
  }
  return metering::from_json(to_text("line", line));
}

Labels read_only(const std::map<std::string, std::string>& labels) {
  return {py::module_::import("types").attr("MappingProxyType")(py::cast(labels))};
}

MaybeDatetime to_utc_or_none(const std::optional<std::int64_t>& ns) {
  return ns ? py::object(to_utc(*ns)) : py::object(py::none());
}

void bind_entry(py::module_& m) {
  py::class_<Entry>(m, "Entry", R"(One entry of the ledger. An immutable value.

``emitted_at`` is a timezone-aware datetime, nanoseconds since the epoch, or None for now. Every time is there as a
datetime and, exact, in nanoseconds: ``emitted_at_ns``.
Raises InvalidArgument, naming the field, its value and what is allowed.)")
      .def(py::init(&make_entry), "kind"_a, py::kw_only(), "vm_id"_a = "", "snapshot_id"_a = "",
           "source_snapshot_id"_a = "", "reason"_a = py::none(), "hypervisor"_a = "", "shape"_a = Shape{},
           "emitted_at"_a = py::none(), "seq"_a = py::none(), "interval"_a = py::none(), "labels"_a = py::dict(),
           "ended_at"_a = py::none(), "ended_uptime_ns"_a = py::none(), "evidence"_a = "", "alive_until"_a = py::none(),
           "boot_id"_a = "", "uptime_ns"_a = py::none())
      .def_property_readonly("kind", [](const Entry& e) { return to_python(e.kind); })
      .def_readonly("vm_id", &Entry::vm_id)
      .def_readonly("snapshot_id", &Entry::snapshot_id)
      .def_readonly("source_snapshot_id", &Entry::source_snapshot_id)
      .def_property_readonly("reason", [](const Entry& e) { return to_python(e.reason); })
      .def_readonly("hypervisor", &Entry::hypervisor)
      .def_property_readonly("shape", [](const Entry& e) { return e.shape; })
      .def_property_readonly("emitted_at", [](const Entry& e) { return to_utc(e.emitted_at_ns); })
      .def_readonly("emitted_at_ns", &Entry::emitted_at_ns)
      .def_readonly("seq", &Entry::seq)
      .def_readonly("interval", &Entry::interval)
      .def_property_readonly("labels", [](const Entry& e) { return read_only(e.labels); })
      .def_property_readonly("ended_at", [](const Entry& e) { return to_utc_or_none(e.ended_at_ns); })
      .def_readonly("ended_at_ns", &Entry::ended_at_ns)
      .def_readonly("ended_uptime_ns", &Entry::ended_uptime_ns)
      .def_readonly("evidence", &Entry::evidence)
      .def_property_readonly("alive_until", [](const Entry& e) { return to_utc_or_none(e.alive_until_ns); })
      .def_readonly("alive_until_ns", &Entry::alive_until_ns)
      .def_readonly("boot_id", &Entry::boot_id)
      .def_readonly("uptime_ns", &Entry::uptime_ns)
      .def(
          "to_json", [](const Entry& e) { return metering::to_json(e); }, "The ledger line, without its newline.")
      .def_static("from_json", &entry_from_json, "line"_a,
                  "Reads a line of a ledger, in any layout. Raises InvalidArgument.")
      .def("__eq__", &equal<Entry>, py::is_operator())
      .def("__hash__", [](const Entry& e) { return py::hash(py::str(metering::to_json(e))); })
      .def("__repr__",
           [](const Entry& e) {
             return fmt::format("Entry.from_json({})", std::string(py::repr(py::str(metering::to_json(e)))));
           })
      .def(py::pickle([](const Entry& e) -> EntryState { return py::make_tuple(metering::to_json(e)); },
                      [](const EntryState& state) { return entry_from_json(py::object(state[0])); }));
}

// A recorder written in Python. The trampoline keeps its Python half alive while only C++ holds it.
class PyRecorder final : public Recorder, public py::trampoline_self_life_support {
 public:
  void emit(const Entry& entry) override {
    const py::gil_scoped_acquire held;
    const py::function own = py::get_override(static_cast<const Recorder*>(this), "emit");
    if (!own) {
      throw Error("Recorder: emit is not overridden");
    }
    try {
      own(Entry(entry));
    } catch (py::error_already_set& error) {
      // Whoever catches it may do so without the GIL and in another thread: only the words go on.
      const std::string message = fmt::format("the recorder's emit raised {}", error.what());
      // Ctrl-C is the program's, not the recorder's: it comes up again where Python runs next. Last, since what() does.
      if (error.matches(PyExc_KeyboardInterrupt)) {
        PyErr_SetInterrupt();
      }
      throw Error(message);
    }
  }
  [[nodiscard]] bool calls_out() const override { return true; }
};

// Not through blocking(): it neither waits nor can be interrupted, and this is measured against a bare write(2).
template <typename Kind>
void emit(Kind& recorder, const Entry& entry) {
  {
    const py::gil_scoped_release released;
    recorder.emit(entry);
  }
  hand_over_logs();
}

void bind_file_recorder(py::module_& m) {
  py::classh<FileRecorder, Recorder>(m, "FileRecorder", py::is_final(), py::release_gil_before_calling_cpp_dtor(),
                                     R"(Appends entries to a file, one JSON line each.

``emit`` returns once the line is in the kernel, ``flush`` once it is on the disk. A line that cannot be written is
kept in memory, with one warning, and written before the next one.)")
      .def(py::init([](const AnyPath& path) {
             std::string file = from_path("path", path);
             if (file.empty()) {
               throw InvalidArgument("path: '', allowed: the path of a file");
             }
             return std::make_shared<FileRecorder>(std::move(file));
           }),
           "path"_a)
      .def("emit", &emit<FileRecorder>, "entry"_a)
      .def_property_readonly("path", [](const FileRecorder& r) -> FilePath { return to_path(r.path().string()); })
      .def(
          "flush", [](FileRecorder& r) { blocking([&](system::Cancel&) { r.flush(); }); },
          "Writes what was kept, and syncs the file. Raises LedgerError if it cannot.")
      .def(
          "close", [](FileRecorder& r) { blocking([&](system::Cancel&) { r.close(); }); },
          "Writes what was kept, and closes the file; a later emit opens it again. Raises LedgerError if it cannot.")
      .def("__repr__", [](const FileRecorder& r) {
        return fmt::format("FileRecorder({})", std::string(py::repr(to_path_str(r.path().string()))));
      });
}

void bind_recorders(py::module_& m) {
  py::classh<Recorder, PyRecorder>(m, "Recorder", R"(Where a node's entries go. Subclass it and override ``emit``.

``emit`` is called in the order of ``seq``, at least once per entry, outside any transaction. If it raises, the node
logs that and offers the entry again.)")
      .def(py::init<>())
      .def(
          "emit",
          [](Recorder& self, const Entry& entry) {
            if (dynamic_cast<PyRecorder*>(&self) != nullptr) {
              PyErr_SetString(PyExc_NotImplementedError, "Recorder.emit is to be overridden");
              throw py::error_already_set();
            }
            emit(self, entry);
          },
          "entry"_a);
  bind_file_recorder(m);
  py::classh<CaptureRecorder, Recorder>(m, "CaptureRecorder", py::is_final(), "Keeps entries in memory, for tests.")
      .def(py::init<>())
      .def("emit", &emit<CaptureRecorder>, "entry"_a)
      .def("entries", &CaptureRecorder::entries, py::call_guard<py::gil_scoped_release>(), "A copy.")
      .def("reset", &CaptureRecorder::reset, py::call_guard<py::gil_scoped_release>());
  py::classh<NopRecorder, Recorder>(m, "NopRecorder", py::is_final(), "Metering is off: entries are dropped.")
      .def(py::init<>())
      .def("emit", &emit<NopRecorder>, "entry"_a);
}

}  // namespace

void bind_metering(py::module_& m) {
  bind_shape(m);
  bind_entry(m);
  bind_recorders(m);
}

}  // namespace cocoon::bindings
