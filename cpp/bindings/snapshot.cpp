// Snapshot, LocalFile: the node's snapshots, and their way in and out of Python's files and streams.

#include "bindings/snapshot.h"

#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include "cocoon/metering/entry.h"
#include "cocoon/snapshot/transfer.h"

#include "bindings/bind.h"
#include "bindings/support.h"
#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using engine::Node;
using snapshot::ExportOptions;
using snapshot::ImportOptions;
using snapshot::SnapshotRecord;

using PathOrStream = Typed<"str | os.PathLike[str] | typing.IO[bytes]">;
using MaybeProgress = Typed<"collections.abc.Callable[[int, int | None], object] | None">;
using AnyNode = Typed<"cocoon._core.Node">;  // its class is bound later
using AnyPaths = Typed<"collections.abc.Iterable[str | os.PathLike[str]]">;
using Size = Typed<"int | str">;
using Refs = py::Args<Text>;

constexpr py::ssize_t kBlock = 1 << 20;

// A binary stream of Python, as the core reads and writes it: called without the GIL, it takes it for each block.
class PySource final : public system::ByteSource {
 public:
  explicit PySource(const py::handle& stream) : stream_(stream) {}
  ~PySource() override {
    const py::gil_scoped_acquire held;
    block_ = py::object();
  }
  PySource(const PySource&) = delete;
  PySource& operator=(const PySource&) = delete;

  std::string_view read() override {
    const py::gil_scoped_acquire held;
    block_ = stream_.attr("read")(kBlock);
    if (!py::isinstance<py::bytes>(block_))
      throw InvalidArgument(
          fmt::format("source: read() gave {}, allowed: a stream of bytes that blocks", shown(py::type::of(block_))));
    return {PyBytes_AS_STRING(block_.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(block_.ptr()))};
  }

 private:
  py::handle stream_;  // its caller's
  py::object block_;
};

class PySink final : public system::ByteSink {
 public:
  explicit PySink(const py::handle& stream) : stream_(stream) {}

  void write(std::string_view bytes) override {
    gathered_ += bytes;
    if (std::cmp_greater_equal(gathered_.size(), kBlock)) flush();
  }

  void flush() {
    const py::gil_scoped_acquire held;
    for (std::size_t at = 0; at < gathered_.size();) {
      const py::object written = stream_.attr("write")(py::bytes(gathered_.data() + at, gathered_.size() - at));
      // A raw stream may take less than it was given.
      if (!py::isinstance<py::int_>(written) || written.cast<long long>() <= 0)
        throw InvalidArgument(
            fmt::format("dest: write() gave {}, allowed: a stream of bytes that blocks", shown(written)));
      at += written.cast<std::size_t>();
    }
    gathered_.clear();
  }

 private:
  py::handle stream_;  // its caller's
  std::string gathered_;
};

bool is_stream(const py::handle& value, const char* method) {
  return !py::isinstance<py::str>(value) && !py::hasattr(value, "__fspath__") && py::hasattr(value, method);
}

std::string name_of_stream(const py::handle& stream) {
  const py::object name = py::getattr(stream, "name", py::none());
  return py::isinstance<py::str>(name) ? to_text("name", name) : "<stream>";
}

// `callback` must outlive what is made of it.
system::Progress to_progress(const MaybeProgress& callback) {
  if (callback.is_none()) return {};
  if (PyCallable_Check(callback.ptr()) == 0) refuse("progress", callback, "a callable of two arguments, or None");
  return [&callback](std::int64_t done, std::optional<std::int64_t> total) {
    const py::gil_scoped_acquire held;
    callback(done, total);
  };
}

template <typename Value, std::size_t kCount>
Value to_choice(std::string_view what, const Text& value,
                const std::array<std::pair<const char*, Value>, kCount>& all) {
  std::string allowed;
  const auto text = py::isinstance<py::str>(value) ? to_text(what, value) : std::string();
  for (const auto& [name, choice] : all) {
    if (text == name) return choice;
    allowed += fmt::format("{}'{}'", allowed.empty() ? "" : ", ", name);
  }
  refuse(what, value, allowed);
}

system::Compression to_compression(const Text& value) {
  constexpr std::array<std::pair<const char*, system::Compression>, 3> kAll{{{"none", system::Compression::kNone},
                                                                             {"gzip", system::Compression::kGzip},
                                                                             {"zstd", system::Compression::kZstd}}};
  return to_choice("compression", value, kAll);
}

system::SparseRecords to_sparse_records(const Text& value) {
  constexpr std::array<std::pair<const char*, system::SparseRecords>, 2> kAll{
      {{"gnu", system::SparseRecords::kGnu}, {"cocoon", system::SparseRecords::kCocoon}}};
  return to_choice("sparse_records", value, kAll);
}

std::vector<system::Path> to_paths(std::string_view what, const AnyPaths& values) {
  std::vector<system::Path> paths;
  if (py::isinstance<py::str>(values)) refuse(what, values, "several paths");
  try {
    for (const auto& value : py::iter(values)) paths.emplace_back(std::filesystem::absolute(from_path(what, value)));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    refuse(what, values, "several paths");
  }
  return paths;
}

struct Limits {
  MaybeInt members;
  MaybeSize bytes;
  MaybeInt ratio;
};

system::ArchiveLimits to_limits(const Limits& given) {
  system::ArchiveLimits limits;
  if (!given.members.is_none()) limits.members = to_integer("max_members", given.members, 1);
  if (!given.bytes.is_none()) limits.bytes = to_bytes("max_bytes", given.bytes);
  if (!given.ratio.is_none()) limits.expansion = {.ratio = to_integer("max_ratio", given.ratio, 1), .from_bytes = 0};
  return limits;
}

py::dict to_dict(const SnapshotRecord& record) {
  return py::dict("id"_a = record.id, "name"_a = record.name, "description"_a = to_str(record.description),
                  "hypervisor"_a = record.hypervisor, "vm_id"_a = record.vm_id, "cpu"_a = record.cpu,
                  "memory"_a = record.mem_bytes, "storage"_a = record.storage_bytes, "size_bytes"_a = record.size_bytes,
                  "kept"_a = record.kept, "created_at"_a = metering::format_time(record.created_at_ns));
}

std::string repr(const SnapshotRecord& record) {
  return fmt::format("<Snapshot {}{} of {} bytes>", record.id, record.name.empty() ? "" : " '" + record.name + "'",
                     record.size_bytes);
}

SnapshotRecord create(const PyLocalFile& l, const PathOrStream& source, const Text& name, const Text& description,
                      const Text& hypervisor, const Int& cpu, const Size& memory, const Size& storage,
                      const AnyPaths& allow_paths, const MaybeProgress& progress) {
  const snapshot::Spec spec{.name = to_text("name", name),
                            .description = to_text("description", description),
                            .hypervisor = to_text("hypervisor", hypervisor),
                            .vm_id = {},
                            .cpu = to_integer("cpu", cpu, 0),
                            .mem_bytes = to_bytes("memory", memory),
                            .storage_bytes = to_bytes("storage", storage)};
  ImportOptions options;
  options.allowed_paths = to_paths("allow_paths", allow_paths);
  options.progress = to_progress(progress);
  if (is_stream(source, "read")) {
    const auto shown_name = name_of_stream(source);
    return blocking([&](system::Cancel& cancel) {
      PySource in(source);
      return snapshot::create_from(l.store(), in, shown_name, spec, options, cancel);
    });
  }
  const auto path = from_path("source", source);
  return blocking(
      [&](system::Cancel& cancel) { return snapshot::create_from_path(l.store(), path, spec, options, cancel); });
}

std::int64_t export_snapshot(const PyLocalFile& l, const Text& given_ref, const PathOrStream& dest,
                             const Text& compression, const MaybeProgress& progress, const Text& sparse_records) {
  const auto ref = to_text("ref", given_ref);
  const ExportOptions options{.compression = to_compression(compression),
                              .sparse_records = to_sparse_records(sparse_records),
                              .progress = to_progress(progress)};
  if (is_stream(dest, "write"))
    return blocking([&](system::Cancel& cancel) {
      PySink out(dest);
      const auto bytes = snapshot::export_to(l.store(), ref, out, options, cancel);
      out.flush();
      return bytes;
    });
  const auto path = from_path("dest", dest);
  return blocking([&](system::Cancel& cancel) { return snapshot::export_file(l.store(), ref, path, options, cancel); });
}

SnapshotRecord import_snapshot(const PyLocalFile& l, const PathOrStream& source, const MaybeText& name,
                               const MaybeText& description, const MaybeProgress& progress, const AnyPaths& allow_paths,
                               const MaybeInt& max_members, const MaybeSize& max_bytes, const MaybeInt& max_ratio) {
  ImportOptions options;
  if (!name.is_none()) options.name = to_text("name", name);
  if (!description.is_none()) options.description = to_text("description", description);
  options.limits = to_limits({.members = max_members, .bytes = max_bytes, .ratio = max_ratio});
  options.allowed_paths = to_paths("allow_paths", allow_paths);
  options.progress = to_progress(progress);
  if (is_stream(source, "read")) {
    const auto shown_name = name_of_stream(source);
    return blocking([&](system::Cancel& cancel) {
      PySource in(source);
      return snapshot::import_from(l.store(), in, shown_name, {}, options, cancel);
    });
  }
  const auto path = from_path("source", source);
  return blocking([&](system::Cancel& cancel) { return snapshot::import_path(l.store(), path, options, cancel); });
}

std::vector<std::string> delete_snapshots(const PyLocalFile& l, const Refs& args) {
  std::vector<std::string> refs;
  for (const auto& ref : args) refs.push_back(to_text("ref", ref));
  if (refs.empty()) throw InvalidArgument("refs: none, allowed: one or more ids, names or unique id prefixes");
  return blocking([&](system::Cancel& cancel) { return l.store().remove(refs, cancel); });
}

void bind_record(py::module_& m) {
  py::class_<SnapshotRecord>(m, "Snapshot", "A complete snapshot, as the store had it at that moment.")
      .def_readonly("id", &SnapshotRecord::id)
      .def_readonly("name", &SnapshotRecord::name)
      .def_property_readonly("description", [](const SnapshotRecord& s) { return to_str(s.description); })
      .def_readonly("hypervisor", &SnapshotRecord::hypervisor)
      .def_readonly("vm_id", &SnapshotRecord::vm_id, "Of the VM it was taken from; '' for an imported one.")
      .def_readonly("cpu", &SnapshotRecord::cpu)
      .def_readonly("memory", &SnapshotRecord::mem_bytes)
      .def_readonly("storage", &SnapshotRecord::storage_bytes)
      .def_readonly("size_bytes", &SnapshotRecord::size_bytes, "Logical bytes of its files: what is metered.")
      .def_readonly("kept", &SnapshotRecord::kept, "It holds a hibernated VM's memory, and goes when that wakes.")
      .def_property_readonly("created_at",
                             [](const SnapshotRecord& s) -> Datetime { return to_datetime(s.created_at_ns); })
      .def(
          "to_dict", [](const SnapshotRecord& s) -> Json { return to_dict(s); },
          "JSON-ready; keys as in `cocoon snapshot inspect`.")
      .def("__eq__", &equal<SnapshotRecord>)
      .def("__hash__", [](const SnapshotRecord& s) { return py::hash(py::str(s.id)); })
      .def("__repr__", &repr);
}

}  // namespace

void bind_snapshot(py::module_& m) {
  bind_record(m);
  py::class_<PyLocalFile>(m, "LocalFile", R"(The node's snapshot store: ``node.snapshots``.

A snapshot is a folder of plain files and a record; its storage interval in the ledger begins when it is complete and
ends when it is gone. References are ids, names or unique id prefixes. One that is being read by a clone, a restore or
an export is not deleted under it. Every call that fails or is interrupted leaves nothing behind.)",
                          py::release_gil_before_calling_cpp_dtor())
      .def(py::init([](const AnyNode& node) {
             if (!py::isinstance<Node>(node)) refuse("node", node, "a Node");
             return PyLocalFile{node.cast<std::shared_ptr<Node>>()};
           }),
           "node"_a)
      .def("create", &create, "source"_a, py::kw_only(), "name"_a = "", "description"_a = "", "hypervisor"_a = "",
           "cpu"_a = 0, "memory"_a = 0, "storage"_a = 0, "allow_paths"_a = py::tuple(), "progress"_a = py::none(),
           R"(A new snapshot from data files: a folder of them, or a tar archive (file or stream) of them.

``allow_paths`` are folders that its cocoon.json may name files in, beside the node's own.
Raises AlreadyExists, InvalidArgument, CorruptSnapshot, StoreError.)")
      .def(
          "list", [](const PyLocalFile& l) { return blocking([&](system::Cancel&) { return l.store().list(); }); },
          "Complete ones, newest first.")
      .def(
          "inspect",
          [](const PyLocalFile& l, const Text& ref) {
            return blocking([&, id = to_text("ref", ref)](system::Cancel&) { return l.store().inspect(id); });
          },
          "ref"_a, "Raises NotFound, AmbiguousRef; InvalidState while it is being made.")
      .def("delete", &delete_snapshots,
           "Removes data and records, and closes their storage intervals; returns ids, each once.\n\n"
           "Raises NotFound (then nothing was removed), InvalidState (in use, or it holds a hibernated VM's memory), "
           "BulkError.")
      .def(
          "data_dir",
          [](const PyLocalFile& l, const Text& ref) -> FilePath {
            return to_path(
                blocking([&, id = to_text("ref", ref)](system::Cancel&) { return l.store().data_dir(id); }).string());
          },
          "ref"_a, "The folder of its files; they must not be changed.")
      .def(
          "export", &export_snapshot, "ref"_a, "dest"_a, py::kw_only(), "compression"_a = "none",
          "progress"_a = py::none(), "sparse_records"_a = "gnu",
          R"(Writes a tar archive, holes kept, into a file (whole or not at all) or a stream; returns the bytes written.

``progress`` is called with the bytes of data done and in all. ``sparse_records``: "gnu" is what any tar restores,
"cocoon" the Go engine's own.)")
      .def(
          "export_dir",
          [](const PyLocalFile& l, const Text& ref, const AnyPath& dest) {
            blocking([&, id = to_text("ref", ref), path = from_path("dest", dest)](system::Cancel& cancel) {
              snapshot::export_dir(l.store(), id, path, cancel);
            });
          },
          "ref"_a, "dest"_a,
          "Copies its files (by reflink where that can be) into a folder that is empty or absent; snapshot.json comes "
          "last.")
      .def(
          "import_", &import_snapshot, "source"_a, py::kw_only(), "name"_a = py::none(), "description"_a = py::none(),
          "progress"_a = py::none(), "allow_paths"_a = py::tuple(), "max_members"_a = py::none(),
          "max_bytes"_a = py::none(), "max_ratio"_a = py::none(),
          R"(A snapshot from what export or the Go engine wrote: an archive (file or stream; none, gzip or zstd), or a folder.

``name`` and ``description`` replace its own. ``progress`` is called with the bytes read and, where that is known, in
all. Nothing in it is trusted: ``allow_paths`` are folders that its cocoon.json may name files in, beside the node's
own; ``max_members`` and ``max_bytes`` (logical) bound what it holds, ``max_ratio`` what each compressed byte may become.
Raises CorruptSnapshot (path, member), AlreadyExists, StoreError.)");
}

}  // namespace cocoon::bindings
