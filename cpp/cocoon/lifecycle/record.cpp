#include "cocoon/lifecycle/record.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/json_text.h"
#include "cocoon/metering/text.h"

namespace cocoon::lifecycle {
namespace {

using metering::is_utf8;
using metering::quote;

constexpr std::array<std::pair<VmState, std::string_view>, 6> kStates = {{
    {VmState::kCreating, "creating"},
    {VmState::kCreated, "created"},
    {VmState::kRunning, "running"},
    {VmState::kStopped, "stopped"},
    {VmState::kHibernated, "hibernated"},
    {VmState::kError, "error"},
}};

// How one member of `Record` is called in its document, and how it is read and written.
template <typename Record>
struct Field {
  std::string_view name;
  bool required;  // always written, never missing; the others are left out at their default
  void (*read)(JsonReader& in, Record& record);
  void (*write)(const Record& record, std::string& out);
  bool (*is_default)(const Record& record);
};

// The fields of a type, in the order in which they are written. One specialization per type, below.
template <typename Record>
struct Fields;

template <typename T>
concept HasFields = requires { Fields<T>::kAll; };

void read_value(JsonReader& in, bool& value) { value = in.read_bool(); }
void read_value(JsonReader& in, std::int64_t& value) { value = in.read_int64(); }
void read_value(JsonReader& in, std::uint64_t& value) { value = in.read_uint64(); }
void read_value(JsonReader& in, std::string& value) { in.read_string(value); }

void read_value(JsonReader& in, VmState& value) {
  const std::string_view text = in.read_string_view();
  for (const auto& [state, name] : kStates) {
    if (name == text) {
      value = state;
      return;
    }
  }
  in.fail(fmt::format("unknown state {}", quote(text)));
}

void read_value(JsonReader& in, std::map<std::string, std::string>& value) {
  JsonReader::Scope scope(in);
  std::string_view next;
  in.begin_object();
  while (in.next_key(next)) {
    const std::string key(next);
    scope.at(key);
    std::string text;
    in.read_string(text);
    if (!value.emplace(key, std::move(text)).second) in.fail("the field is there twice");
    scope.between();  // `key` ends here
  }
}

template <HasFields Record>
void read_value(JsonReader& in, Record& record) {
  constexpr auto& kAll = Fields<Record>::kAll;
  static_assert(kAll.size() <= 64);
  JsonReader::Scope scope(in);
  std::uint64_t seen = 0;
  std::size_t next = 0;
  std::string_view key;
  in.begin_object();
  while (in.next_key(key)) {
    // Documents are written in this order, so the search nearly always ends where it begins.
    std::size_t steps = 0;
    while (kAll[next].name != key) {
      if (++steps == kAll.size()) in.fail(fmt::format("unknown field {}", quote(key)));
      next = (next + 1) % kAll.size();
    }
    const auto& field = kAll[next];
    scope.at(field.name);
    if ((seen >> next & 1) != 0) in.fail("the field is there twice");
    seen |= std::uint64_t{1} << next;
    field.read(in, record);
    scope.between();
    next = (next + 1) % kAll.size();
  }
  for (std::size_t i = 0; i < kAll.size(); ++i) {
    if (!kAll[i].required || (seen >> i & 1) != 0) continue;
    scope.at(kAll[i].name);
    in.fail("the field is missing");
  }
}

template <typename T>
void read_value(JsonReader& in, std::optional<T>& value) {
  read_value(in, value.emplace());
}

template <typename T>
void read_value(JsonReader& in, std::vector<T>& value) {
  JsonReader::Scope scope(in);
  in.begin_array();
  while (in.next_element()) {
    scope.at(value.size());
    read_value(in, value.emplace_back());
  }
}

void write_value(bool value, std::string& out) { out += value ? "true" : "false"; }

template <std::integral T>
  requires(!std::same_as<T, bool>)
void write_value(T value, std::string& out) {
  std::array<char, 24> digits;
  const auto result = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  out.append(digits.data(), result.ptr);
}

void write_value(const std::string& value, std::string& out) {
  if (!is_utf8(value)) throw InvalidArgument(fmt::format("record: {} is not UTF-8", quote(value)));
  append_json_string(value, out);
}

void write_value(VmState value, std::string& out) { append_json_string(to_string(value), out); }

void write_value(const std::map<std::string, std::string>& value, std::string& out) {
  char before = '{';
  for (const auto& [key, text] : value) {
    out.push_back(std::exchange(before, ','));
    write_value(key, out);
    out.push_back(':');
    write_value(text, out);
  }
  if (before == '{') out.push_back('{');
  out.push_back('}');
}

template <HasFields Record>
void write_value(const Record& record, std::string& out) {
  char before = '{';
  for (const auto& field : Fields<Record>::kAll) {
    if (!field.required && field.is_default(record)) continue;
    out.push_back(std::exchange(before, ','));
    append_json_string(field.name, out);
    out.push_back(':');
    field.write(record, out);
  }
  if (before == '{') out.push_back('{');
  out.push_back('}');
}

template <typename T>
void write_value(const std::optional<T>& value, std::string& out) {
  write_value(*value, out);  // an empty one is its field's default, and left out
}

template <typename T>
void write_value(const std::vector<T>& value, std::string& out) {
  out.push_back('[');
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (i > 0) out.push_back(',');
    write_value(value[i], out);
  }
  out.push_back(']');
}

template <typename Record>
const Record& default_of() {
  static const Record kDefault{};
  return kDefault;
}

template <auto Member, typename Record>
constexpr Field<Record> make_field(std::string_view name, bool required) {
  return {name, required, [](JsonReader& in, Record& record) { read_value(in, record.*Member); },
          [](const Record& record, std::string& out) { write_value(record.*Member, out); },
          [](const Record& record) { return record.*Member == default_of<Record>().*Member; }};
}

constexpr bool kRequired = true;
constexpr bool kOptional = false;

template <>
struct Fields<metering::Shape> {
  using T = metering::Shape;
  static constexpr std::array kAll = {
      make_field<&T::cpu, T>("cpu", kOptional),
      make_field<&T::mem_bytes, T>("mem_bytes", kOptional),
      make_field<&T::storage_bytes, T>("storage_bytes", kOptional),
  };
};

template <>
struct Fields<Instant> {
  using T = Instant;
  static constexpr std::array kAll = {
      make_field<&T::wall_ns, T>("wall_ns", kRequired),
      make_field<&T::uptime_ns, T>("uptime_ns", kRequired),
      make_field<&T::boot_id, T>("boot_id", kRequired),
  };
};

template <>
struct Fields<ProcessIdentity> {
  using T = ProcessIdentity;
  static constexpr std::array kAll = {
      make_field<&T::pid, T>("pid", kRequired),
      make_field<&T::start_ticks, T>("start_ticks", kRequired),
      make_field<&T::boot_id, T>("boot_id", kRequired),
  };
};

template <>
struct Fields<DiskConfig> {
  using T = DiskConfig;
  static constexpr std::array kAll = {
      make_field<&T::path, T>("path", kRequired),     make_field<&T::readonly, T>("readonly", kOptional),
      make_field<&T::format, T>("format", kOptional), make_field<&T::role, T>("role", kOptional),
      make_field<&T::serial, T>("serial", kOptional), make_field<&T::size_bytes, T>("size_bytes", kOptional),
  };
};

template <>
struct Fields<VmConfig> {
  using T = VmConfig;
  static constexpr std::array kAll = {
      make_field<&T::name, T>("name", kRequired),
      make_field<&T::cpu, T>("cpu", kOptional),
      make_field<&T::mem_bytes, T>("mem_bytes", kOptional),
      make_field<&T::storage_bytes, T>("storage_bytes", kOptional),
      make_field<&T::kernel, T>("kernel", kOptional),
      make_field<&T::initrd, T>("initrd", kOptional),
      make_field<&T::cmdline, T>("cmdline", kOptional),
      make_field<&T::disks, T>("disks", kOptional),
      make_field<&T::labels, T>("labels", kOptional),
      make_field<&T::machine, T>("machine", kOptional),
      make_field<&T::accelerator, T>("accelerator", kOptional),
      make_field<&T::network_namespace, T>("network_namespace", kOptional),
  };
};

template <>
struct Fields<VmRecord> {
  using T = VmRecord;
  static constexpr std::array kAll = {
      make_field<&T::id, T>("id", kRequired),
      make_field<&T::hypervisor, T>("hypervisor", kRequired),
      make_field<&T::state, T>("state", kRequired),
      make_field<&T::config, T>("config", kRequired),
      make_field<&T::shape, T>("shape", kOptional),
      make_field<&T::generation, T>("generation", kRequired),
      make_field<&T::first_booted, T>("first_booted", kOptional),
      make_field<&T::dirty, T>("dirty", kOptional),
      make_field<&T::created_at_ns, T>("created_at_ns", kRequired),
      make_field<&T::updated_at_ns, T>("updated_at_ns", kRequired),
      make_field<&T::started, T>("started", kOptional),
      make_field<&T::stopped_at_ns, T>("stopped_at_ns", kOptional),
      make_field<&T::compute_since, T>("compute_since", kOptional),
      make_field<&T::last_alive, T>("last_alive", kOptional),
      make_field<&T::compute_interval, T>("compute_interval", kOptional),
      make_field<&T::storage_interval, T>("storage_interval", kOptional),
      make_field<&T::process, T>("process", kOptional),
      make_field<&T::snapshot_ids, T>("snapshot_ids", kOptional),
      make_field<&T::kept_snapshot_id, T>("kept_snapshot_id", kOptional),
      make_field<&T::run_dir, T>("run_dir", kOptional),
      make_field<&T::log_dir, T>("log_dir", kOptional),
  };
};

template <>
struct Fields<SnapshotRecord> {
  using T = SnapshotRecord;
  static constexpr std::array kAll = {
      make_field<&T::id, T>("id", kRequired),
      make_field<&T::name, T>("name", kOptional),
      make_field<&T::description, T>("description", kOptional),
      make_field<&T::hypervisor, T>("hypervisor", kOptional),
      make_field<&T::vm_id, T>("vm_id", kOptional),
      make_field<&T::cpu, T>("cpu", kOptional),
      make_field<&T::mem_bytes, T>("mem_bytes", kOptional),
      make_field<&T::storage_bytes, T>("storage_bytes", kOptional),
      make_field<&T::size_bytes, T>("size_bytes", kOptional),
      make_field<&T::pending, T>("pending", kRequired),
      make_field<&T::kept, T>("kept", kOptional),
      make_field<&T::generation, T>("generation", kRequired),
      make_field<&T::created_at_ns, T>("created_at_ns", kRequired),
      make_field<&T::storage_interval, T>("storage_interval", kOptional),
      make_field<&T::data_dir, T>("data_dir", kOptional),
  };
};

template <>
struct Fields<SavedFile> {
  using T = SavedFile;
  static constexpr std::array kAll = {
      make_field<&T::name, T>("name", kRequired),
      make_field<&T::size_bytes, T>("size_bytes", kRequired),
  };
};

template <>
struct Fields<SavedVm> {
  using T = SavedVm;
  static constexpr std::array kAll = {
      make_field<&T::hypervisor, T>("hypervisor", kRequired),
      make_field<&T::vmm_version, T>("vmm_version", kRequired),
      make_field<&T::config, T>("config", kRequired),
      make_field<&T::disk_files, T>("disk_files", kOptional),
      make_field<&T::state_files, T>("state_files", kRequired),
      make_field<&T::facts, T>("facts", kOptional),
  };
};

template <typename Record>
std::string write_document(const Record& record) {
  std::string out;
  out.reserve(1024);
  write_value(record, out);
  return out;
}

template <typename Record>
Record read_document(std::string_view what, std::string_view document) {
  Record record;
  JsonReader in(what, document);
  read_value(in, record);
  in.end();
  return record;
}

void add(std::int64_t& sum, std::int64_t bytes) {
  if (bytes < 0 || __builtin_add_overflow(sum, bytes, &sum)) {
    throw InvalidArgument(fmt::format("storage of {} bytes: allowed are 0 to 2^63 - 1 in all", bytes));
  }
}

}  // namespace

std::string_view to_string(VmState state) {
  switch (state) {
    case VmState::kCreating:
      return "creating";
    case VmState::kCreated:
      return "created";
    case VmState::kRunning:
      return "running";
    case VmState::kStopped:
      return "stopped";
    case VmState::kHibernated:
      return "hibernated";
    case VmState::kError:
      return "error";
  }
  throw Error("a VM's state is out of range");
}

VmState parse_state(std::string_view text) {
  for (const auto& [state, name] : kStates) {
    if (name == text) return state;
  }
  throw InvalidArgument(
      fmt::format("VM state {}: allowed are creating, created, running, stopped, hibernated, error", quote(text)));
}

metering::Shape shape_of(const VmConfig& config) {
  if (config.cpu < 0) throw InvalidArgument(fmt::format("cpu {}: it cannot be negative", config.cpu));
  if (config.mem_bytes < 0) throw InvalidArgument(fmt::format("memory {}: it cannot be negative", config.mem_bytes));
  metering::Shape shape{config.cpu, config.mem_bytes, 0};
  add(shape.storage_bytes, config.storage_bytes);
  for (const DiskConfig& disk : config.disks) {
    // The VM's own disk (cow) is in config.storage_bytes; layers and cidata are read-only and shared or tiny.
    if (disk.role == "data" && !disk.readonly) add(shape.storage_bytes, disk.size_bytes);
  }
  return shape;
}

void check_name(std::string_view name) {
  constexpr std::size_t kLongest = 63;
  const auto is_alphanumeric = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  if (!name.empty() && name.size() <= kLongest && is_alphanumeric(name.front()) &&
      std::all_of(name.begin(), name.end(),
                  [&](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; }))
    return;
  throw InvalidArgument(fmt::format(
      "name: '{}', allowed: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit", name));
}

std::string to_document(const VmRecord& record) { return write_document(record); }
std::string to_document(const SnapshotRecord& record) { return write_document(record); }
std::string to_document(const SavedVm& saved) { return write_document(saved); }

VmRecord vm_from_document(std::string_view document) { return read_document<VmRecord>("VM record", document); }

SnapshotRecord snapshot_from_document(std::string_view document) {
  return read_document<SnapshotRecord>("snapshot record", document);
}

SavedVm saved_vm_from_document(std::string_view document) { return read_document<SavedVm>(kSavedVmFile, document); }

}  // namespace cocoon::lifecycle
