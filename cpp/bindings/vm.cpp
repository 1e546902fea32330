// Disk, VMConfig, VM: what a caller asks for, and what there is.

#include "bindings/vm.h"

#include <string>
#include <utility>

#include <fmt/format.h>
#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include "cocoon/vmm/driver.h"
#include "cocoon/vmm/kvm_probe.h"

#include "bindings/bind.h"
#include "bindings/support.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using engine::DiskSpec;
using engine::VmSpec;
using engine::VmView;

std::optional<std::int64_t> to_optional_bytes(std::string_view what, const py::handle& value) {
  if (value.is_none()) return std::nullopt;
  return to_bytes(what, value);
}

std::string to_optional_path(std::string_view what, const py::handle& value) {
  return value.is_none() ? std::string() : from_path(what, value);
}

MaybeFilePath from_optional_path(const std::string& path) { return path.empty() ? py::none() : to_path(path); }

std::optional<std::int64_t> to_optional_cpu(const py::handle& value) {
  if (value.is_none()) return std::nullopt;
  return to_integer("cpu", value, 0);
}

VmSpec to_spec(const lifecycle::VmConfig& config) {
  VmSpec spec{.name = config.name,
              .cpu = config.cpu,
              .mem_bytes = config.mem_bytes,
              .storage_bytes = config.storage_bytes,
              .kernel = config.kernel,
              .initrd = config.initrd,
              .cmdline = config.cmdline,
              .disks = {},
              .labels = config.labels,
              .machine = config.machine,
              .accelerator = config.accelerator,
              .network_namespace = config.network_namespace};
  for (const auto& disk : config.disks)
    spec.disks.push_back({.path = disk.path,
                          .readonly = disk.readonly,
                          .format = disk.format,
                          .role = disk.role,
                          .serial = disk.serial});
  return spec;
}

py::dict to_dict(const lifecycle::DiskConfig& disk) {
  return py::dict("path"_a = to_path_str(disk.path), "readonly"_a = disk.readonly, "format"_a = disk.format,
                  "role"_a = disk.role, "serial"_a = disk.serial, "size_bytes"_a = disk.size_bytes);
}

py::object to_iso(const std::optional<std::int64_t>& ns) {
  return ns ? py::cast(metering::format_time(*ns)) : py::none();
}

std::optional<std::int64_t> started_at(const VmView& vm) {
  if (!vm.record.started) return std::nullopt;
  return vm.record.started->wall_ns;
}

MaybeBool alive(const VmView& vm) {
  switch (vm.liveness.life) {
    case engine::Life::kAlive:
      return py::bool_(true);
    case engine::Life::kDead:
      return py::bool_(false);
    case engine::Life::kUnknown:
      return py::none();
  }
  return py::none();
}

MaybeInt pid(const VmView& vm) {
  return vm.liveness.process ? py::object(py::int_(vm.liveness.process->pid)) : py::none();
}

std::optional<std::string> socket_path(const VmView& vm) {
  if (vm.liveness.life != engine::Life::kAlive) return std::nullopt;
  return vmm::make_driver(vm.record.hypervisor)->api_socket(vm.record).string();
}

std::optional<std::string> vsock_path(const VmView& vm) {
  if (vm.liveness.life != engine::Life::kAlive) return std::nullopt;
  const auto path = vmm::make_driver(vm.record.hypervisor)->vsock(vm.record);
  if (!path) return std::nullopt;
  return path->string();
}

py::dict to_dict(const VmView& vm) {
  const auto& record = vm.record;
  py::list disks;
  for (const auto& disk : record.config.disks) disks.append(to_dict(disk));
  py::dict config("name"_a = record.config.name, "cpu"_a = record.config.cpu, "memory"_a = record.config.mem_bytes,
                  "storage"_a = record.config.storage_bytes, "kernel"_a = to_path_str(record.config.kernel),
                  "initrd"_a = to_path_str(record.config.initrd), "cmdline"_a = record.config.cmdline,
                  "disks"_a = disks, "labels"_a = record.config.labels, "machine"_a = record.config.machine,
                  "accelerator"_a = record.config.accelerator,
                  "network_namespace"_a = to_path_str(record.config.network_namespace));
  py::dict shape("cpu"_a = record.shape.cpu, "mem_bytes"_a = record.shape.mem_bytes,
                 "storage_bytes"_a = record.shape.storage_bytes);
  const auto socket = socket_path(vm);
  const auto vsock = vsock_path(vm);
  return py::dict("id"_a = record.id, "name"_a = record.config.name, "hypervisor"_a = record.hypervisor,
                  "state"_a = std::string(lifecycle::to_string(record.state)), "alive"_a = alive(vm), "pid"_a = pid(vm),
                  "config"_a = config, "shape"_a = shape,
                  "socket_path"_a = socket ? py::object(to_path_str(*socket)) : py::object(py::none()),
                  "vsock_path"_a = vsock ? py::object(to_path_str(*vsock)) : py::object(py::none()),
                  "run_dir"_a = to_path_str(record.run_dir), "log_dir"_a = to_path_str(record.log_dir),
                  "first_booted"_a = record.first_booted, "interval_open"_a = record.compute_open(),
                  "snapshot_ids"_a = record.snapshot_ids, "created_at"_a = to_iso(record.created_at_ns),
                  "updated_at"_a = to_iso(record.updated_at_ns), "started_at"_a = to_iso(started_at(vm)),
                  "stopped_at"_a = to_iso(record.stopped_at_ns));
}

std::string repr(const DiskSpec& disk) {
  return fmt::format("Disk({}, readonly={}, format='{}', role='{}', serial='{}')",
                     std::string(py::repr(to_path_str(disk.path))), disk.readonly ? "True" : "False", disk.format,
                     disk.role, disk.serial);
}

void bind_disk(py::module_& m) {
  py::class_<DiskSpec>(m, "Disk", R"(One disk of a VM.

Roles: ``cow`` is copied into the VM's run dir and belongs to it; ``data`` is used where it lies; ``layer`` and
``cidata`` are used where they lie, read-only. Formats: ``raw``, ``qcow2``.
Raises InvalidArgument.)")
      .def(py::init(
               [](const AnyPath& path, bool readonly, const Text& format, const Text& role_name, const Text& serial) {
                 std::string role = to_text("disk role", role_name);
                 DiskSpec disk{.path = from_path("disk path", path),
                               .readonly = readonly || role == "layer" || role == "cidata",
                               .format = to_text("disk format", format),
                               .role = std::move(role),
                               .serial = to_text("disk serial", serial)};
                 engine::check(disk);
                 return disk;
               }),
           "path"_a, py::kw_only(), "readonly"_a = false, "format"_a = "raw", "role"_a = "data", "serial"_a = "")
      .def_property_readonly("path", [](const DiskSpec& d) -> FilePath { return to_path(d.path); })
      .def_readonly("readonly", &DiskSpec::readonly)
      .def_readonly("format", &DiskSpec::format)
      .def_readonly("role", &DiskSpec::role)
      .def_readonly("serial", &DiskSpec::serial)
      .def(
          "__eq__",
          [](const DiskSpec& a, const Anything& b) -> Bool {
            if (!py::isinstance<DiskSpec>(b)) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
            return py::bool_(repr(a) == repr(b.cast<const DiskSpec&>()));
          },
          py::is_operator())
      .def("__hash__", [](const DiskSpec& d) { return std::hash<std::string>{}(repr(d)); })
      .def("__repr__", &repr);
}

void bind_config(py::module_& m) {
  py::class_<VmSpec>(m, "VMConfig", R"(What a VM is to be.

``memory`` and ``storage`` are bytes, or strings with a binary unit ("512M", "1G"). ``storage`` is the size of the VM's
own disk, 0 for none. Left out: 1 vCPU, 512M, 10G for a new VM; the snapshot's for a clone.
``machine`` and ``accelerator`` are the hypervisor's: for qemu "microvm" (the default) or "q35", and "kvm" or "tcg"
(the default is whatever runs guests here); for cloud-hypervisor "firmware" if ``kernel`` names one. ``network_namespace`` is the path of one that the VMM is started in.
Raises InvalidArgument, naming the argument, its value and what is allowed.)")
      .def(py::init([](const Text& name, const MaybeInt& cpu, const MaybeSize& memory, const MaybeSize& storage,
                       const MaybeAnyPath& kernel, const MaybeAnyPath& initrd, const Text& cmdline,
                       const Typed<"collections.abc.Iterable[cocoon._core.Disk]">& disks, const Labels& labels,
                       const Text& machine, const Text& accelerator, const MaybeAnyPath& network_namespace) {
             VmSpec spec{.name = to_text("name", name),
                         .cpu = to_optional_cpu(cpu),
                         .mem_bytes = to_optional_bytes("memory", memory),
                         .storage_bytes = to_optional_bytes("storage", storage),
                         .kernel = to_optional_path("kernel", kernel),
                         .initrd = to_optional_path("initrd", initrd),
                         .cmdline = to_text("cmdline", cmdline),
                         .disks = {},
                         .labels = to_labels("labels", labels),
                         .machine = to_text("machine", machine),
                         .accelerator = to_text("accelerator", accelerator),
                         .network_namespace = to_optional_path("network_namespace", network_namespace)};
             if (!py::isinstance<py::iterable>(disks)) refuse("disks", disks, "a sequence of Disk");
             for (const auto& disk : disks) {
               if (!py::isinstance<DiskSpec>(disk)) refuse("disks", disk, "Disk values");
               spec.disks.push_back(disk.cast<DiskSpec>());
             }
             engine::check(spec);
             return spec;
           }),
           "name"_a, py::kw_only(), "cpu"_a = py::none(), "memory"_a = py::none(), "storage"_a = py::none(),
           "kernel"_a = py::none(), "initrd"_a = py::none(), "cmdline"_a = "", "disks"_a = py::tuple(),
           "labels"_a = py::dict(), "machine"_a = "", "accelerator"_a = "", "network_namespace"_a = py::none())
      .def_readonly("name", &VmSpec::name)
      .def_readonly("cpu", &VmSpec::cpu)
      .def_readonly("memory", &VmSpec::mem_bytes)
      .def_readonly("storage", &VmSpec::storage_bytes)
      .def_property_readonly("kernel", [](const VmSpec& s) { return from_optional_path(s.kernel); })
      .def_property_readonly("initrd", [](const VmSpec& s) { return from_optional_path(s.initrd); })
      .def_readonly("cmdline", &VmSpec::cmdline)
      .def_readonly("disks", &VmSpec::disks)
      .def_readonly("labels", &VmSpec::labels)
      .def_readonly("machine", &VmSpec::machine)
      .def_readonly("accelerator", &VmSpec::accelerator)
      .def_property_readonly("network_namespace",
                             [](const VmSpec& s) { return from_optional_path(s.network_namespace); })
      .def("__repr__", [](const VmSpec& s) {
        const auto number = [](const std::optional<std::int64_t>& n) { return n ? fmt::format("{}", *n) : "None"; };
        return fmt::format("VMConfig('{}', cpu={}, memory={}, storage={})", s.name, number(s.cpu), number(s.mem_bytes),
                           number(s.storage_bytes));
      });
}

}  // namespace

Typed<"cocoon.enums.VMState"> to_python(lifecycle::VmState state) {
  return py::module_::import("cocoon.enums").attr("VMState")(std::string(lifecycle::to_string(state)));
}

lifecycle::VmState to_state(const py::handle& value) { return lifecycle::parse_state(to_text("state", value)); }

void bind_vm(py::module_& m) {
  bind_disk(m);
  bind_config(m);
  py::class_<VmView>(m, "VM", "A value: what the store said at that moment, and what was alive then.")
      .def_property_readonly("id", [](const VmView& v) { return v.record.id; })
      .def_property_readonly("name", [](const VmView& v) { return v.record.config.name; })
      .def_property_readonly("hypervisor", [](const VmView& v) { return v.record.hypervisor; })
      .def_property_readonly("state", [](const VmView& v) { return to_python(v.record.state); })
      .def_property_readonly("config", [](const VmView& v) { return to_spec(v.record.config); })
      .def_property_readonly("shape", [](const VmView& v) { return v.record.shape; })
      .def_property_readonly("pid", &pid, "Of a live VMM process that is proven to be this VM's, else None.")
      .def_property_readonly("socket_path",
                             [](const VmView& v) -> MaybeFilePath {
                               const auto path = socket_path(v);
                               return path ? to_path(*path) : py::none();
                             })
      .def_property_readonly(
          "vsock_path",
          [](const VmView& v) -> MaybeFilePath {
            const auto path = vsock_path(v);
            return path ? to_path(*path) : py::none();
          },
          "Of a live VM whose guest has a vsock: the UNIX socket that reaches its port P after a line \"CONNECT P\".")
      .def_property_readonly("alive", &alive, "None: it could not be decided.")
      .def_property_readonly("run_dir", [](const VmView& v) -> FilePath { return to_path(v.record.run_dir); })
      .def_property_readonly("log_dir", [](const VmView& v) -> FilePath { return to_path(v.record.log_dir); })
      .def_property_readonly("first_booted", [](const VmView& v) { return v.record.first_booted; })
      .def_property_readonly("interval_open", [](const VmView& v) { return v.record.compute_open(); })
      .def_property_readonly("snapshot_ids", [](const VmView& v) { return v.record.snapshot_ids; })
      .def_property_readonly("created_at",
                             [](const VmView& v) -> Datetime { return to_datetime(v.record.created_at_ns); })
      .def_property_readonly("created_at_ns", [](const VmView& v) { return v.record.created_at_ns; })
      .def_property_readonly("updated_at",
                             [](const VmView& v) -> Datetime { return to_datetime(v.record.updated_at_ns); })
      .def_property_readonly("updated_at_ns", [](const VmView& v) { return v.record.updated_at_ns; })
      .def_property_readonly("started_at", [](const VmView& v) -> MaybeDatetime { return to_datetime(started_at(v)); })
      .def_property_readonly("started_at_ns", &started_at)
      .def_property_readonly("stopped_at",
                             [](const VmView& v) -> MaybeDatetime { return to_datetime(v.record.stopped_at_ns); })
      .def_property_readonly("stopped_at_ns", [](const VmView& v) { return v.record.stopped_at_ns; })
      .def(
          "to_dict", [](const VmView& v) -> Json { return to_dict(v); }, "JSON-ready; keys as in `cocoon vm inspect`.")
      .def("__repr__", [](const VmView& v) {
        return fmt::format("<VM {} {} {} {}>", v.record.config.name, v.record.id, v.record.hypervisor,
                           lifecycle::to_string(v.record.state));
      });
  m.def(
      "kvm_status", []()->Typed<"tuple[bool, bool, str]"> {
        const auto status = blocking([](system::Cancel&) { return vmm::kvm_status(); });
        return py::make_tuple(status.usable, status.interprets, to_str(status.reason));
      },
      "Whether KVM runs guests here at hardware's speed; if not, whether it interprets them; and what was found.");
}

}  // namespace cocoon::bindings
