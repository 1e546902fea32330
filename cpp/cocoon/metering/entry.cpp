// Writing entries. This runs once per transition and in the emit benchmark against a bare write(2): no allocation when
// `out` has room, numbers by to_chars, strings copied whole unless a byte of them needs care.

#include "cocoon/metering/entry.h"

#include <array>
#include <charconv>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "cocoon/metering/entry_view.h"
#include "cocoon/metering/text.h"

namespace cocoon::metering {
namespace {

constexpr std::array<std::pair<Kind, std::string_view>, 6> kKinds = {{
    {Kind::kVmComputeStart, "vm.compute.start"},
    {Kind::kVmComputeStop, "vm.compute.stop"},
    {Kind::kVmStorageStart, "vm.storage.start"},
    {Kind::kVmStorageStop, "vm.storage.stop"},
    {Kind::kSnapStorageStart, "snap.storage.start"},
    {Kind::kSnapStorageStop, "snap.storage.stop"},
}};

constexpr std::array<std::pair<Reason, std::string_view>, 10> kReasons = {{
    {Reason::kBoot, "boot"},
    {Reason::kRestart, "restart"},
    {Reason::kClone, "clone"},
    {Reason::kRestore, "restore"},
    {Reason::kHibernateWake, "hibernate-wake"},
    {Reason::kStopUser, "stop-user"},
    {Reason::kStopCrash, "stop-crash"},
    {Reason::kVmRemove, "vm-rm"},
    {Reason::kSnapshotRemove, "snap-rm"},
    {Reason::kRelabel, "relabel"},
}};

template <typename Table>
std::string allowed(const Table& table) {
  std::string out;
  for (const auto& [value, text] : table) {
    out += out.empty() ? "" : ", ";
    out += text;
  }
  return out;
}

// Bytes that stand for themselves in a JSON string. Everything past ASCII needs a look: it must be UTF-8, and U+2028
// and U+2029 are escaped. <, > and & are escaped too, as the Go engine's encoder does.
constexpr std::array<bool, 256> kPlain = [] {
  std::array<bool, 256> plain{};
  for (std::size_t byte = 0x20; byte < 0x80; ++byte) {
    plain[byte] = byte != '"' && byte != '\\' && byte != '<' && byte != '>' && byte != '&';
  }
  return plain;
}();

bool is_plain(std::string_view text) {
  bool plain = true;
  for (const char c : text) {
    plain &= kPlain[static_cast<std::uint8_t>(c)];
  }
  return plain;
}

void append_escape(std::uint8_t byte, std::string& out) {
  switch (byte) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      break;
  }
  constexpr std::string_view kHex = "0123456789abcdef";
  out += "\\u00";
  out += kHex[byte >> 4];
  out += kHex[byte & 0xF];
}

void append_escaped(std::string_view text, std::string_view field, std::string& out) {
  if (!is_utf8(text)) {
    throw InvalidArgument(fmt::format("entry field {}: {} is not UTF-8", field, quote(text)));
  }
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint8_t>(text[i]);
    if (!kPlain[byte] && byte < 0x80) {
      append_escape(byte, out);
    } else if (!kPlain[byte] && (text.substr(i, 3) == "\u2028" || text.substr(i, 3) == "\u2029")) {
      out += text[i + 2] == '\xA8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      out += text[i];
    }
  }
}

// The text as a JSON string, quotes included.
void append_string(std::string_view text, std::string_view field, std::string& out) {
  out += '"';
  if (is_plain(text)) {
    out += text;
  } else {
    append_escaped(text, field, out);
  }
  out += '"';
}

template <typename Integer>
void append_number(Integer value, std::string& out) {
  std::array<char, 20> digits;
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  static_cast<void>(error);  // 20 characters hold any 64-bit number
  out.append(digits.data(), end);
}

void append_optional(std::string_view key, std::string_view field, std::string_view text, std::string& out) {
  if (!text.empty()) {
    out += key;
    append_string(text, field, out);
  }
}

template <typename Integer>
void append_optional(std::string_view key, const std::optional<Integer>& value, std::string& out) {
  if (value) {
    out += key;
    append_number(*value, out);
  }
}

void append_optional_time(std::string_view key, const std::optional<std::int64_t>& ns, std::string& out) {
  if (ns) {
    out += key;
    out += '"';
    append_time(*ns, out);
    out += '"';
  }
}

void append_shape(const Shape& shape, std::string& out) {
  std::string_view separator;
  const auto member = [&](std::string_view key, std::int64_t value) {
    if (value != 0) {
      out += separator;
      out += key;
      append_number(value, out);
      separator = ",";
    }
  };
  out += R"(,"shape":{)";
  member(R"("cpu":)", shape.cpu);
  member(R"("mem_bytes":)", shape.mem_bytes);
  member(R"("storage_bytes":)", shape.storage_bytes);
  out += '}';
}

void append_unchecked(const Entry& entry, std::string& out) {
  out += R"({"kind":")";
  out += to_string(entry.kind);
  out += '"';
  append_optional(R"(,"vm_id":)", "vm_id", entry.vm_id, out);
  append_optional(R"(,"snapshot_id":)", "snapshot_id", entry.snapshot_id, out);
  append_optional(R"(,"source_snapshot_id":)", "source_snapshot_id", entry.source_snapshot_id, out);
  if (entry.reason) {
    out += R"(,"reason":")";
    out += to_string(*entry.reason);
    out += '"';
  }
  append_optional(R"(,"hypervisor":)", "hypervisor", entry.hypervisor, out);
  append_shape(entry.shape, out);
  out += R"(,"emitted_at":")";
  append_time(entry.emitted_at_ns, out);
  out += '"';
  append_optional(R"(,"seq":)", entry.seq, out);
  append_optional(R"(,"interval":)", entry.interval, out);
  if (!entry.labels.empty()) {
    out += R"(,"labels":)";
    append_labels(entry.labels, out);
  }
  append_optional_time(R"(,"ended_at":)", entry.ended_at_ns, out);
  append_optional(R"(,"ended_uptime_ns":)", entry.ended_uptime_ns, out);
  append_optional(R"(,"evidence":)", "evidence", entry.evidence, out);
  append_optional_time(R"(,"alive_until":)", entry.alive_until_ns, out);
  append_optional(R"(,"boot_id":)", "boot_id", entry.boot_id, out);
  append_optional(R"(,"uptime_ns":)", entry.uptime_ns, out);
  out += '}';
}

}  // namespace

void append_labels(const std::map<std::string, std::string>& labels, std::string& out) {
  if (labels.empty()) {
    return;
  }
  char separator = '{';
  for (const auto& [key, value] : labels) {
    out += separator;
    append_string(key, "labels", out);
    out += ':';
    append_string(value, "labels", out);
    separator = ',';
  }
  out += '}';
}

std::string_view to_string(Kind kind) { return kKinds[static_cast<std::size_t>(kind)].second; }

std::string_view to_string(Reason reason) { return kReasons[static_cast<std::size_t>(reason)].second; }

Kind parse_kind(std::string_view text) {
  for (const auto& [kind, name] : kKinds) {
    if (name == text) {
      return kind;
    }
  }
  throw InvalidArgument(fmt::format("entry field kind: {} is not one of {}", quote(text), allowed(kKinds)));
}

std::optional<Reason> find_reason(std::string_view text) {
  for (const auto& [reason, name] : kReasons) {
    if (name == text) {
      return reason;
    }
  }
  return std::nullopt;
}

Reason parse_reason(std::string_view text) {
  if (const auto reason = find_reason(text)) {
    return *reason;
  }
  throw InvalidArgument(fmt::format("entry field reason: {} is not one of {}", quote(text), allowed(kReasons)));
}

bool is_start(Kind kind) {
  switch (kind) {
    case Kind::kVmComputeStart:
    case Kind::kVmStorageStart:
    case Kind::kSnapStorageStart:
      return true;
    case Kind::kVmComputeStop:
    case Kind::kVmStorageStop:
    case Kind::kSnapStorageStop:
      return false;
  }
  return false;
}

bool is_vm(Kind kind) {
  switch (kind) {
    case Kind::kVmComputeStart:
    case Kind::kVmComputeStop:
    case Kind::kVmStorageStart:
    case Kind::kVmStorageStop:
      return true;
    case Kind::kSnapStorageStart:
    case Kind::kSnapStorageStop:
      return false;
  }
  return false;
}

void check(const Entry& entry) {
  const auto not_negative = [](std::string_view field, std::int64_t value) {
    if (value < 0) {
      throw InvalidArgument(fmt::format("entry field {}: {} is negative; allowed is 0 or more", field, value));
    }
  };
  const auto a_seq = [](std::string_view field, const std::optional<std::uint64_t>& value) {
    constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (value && (*value == 0 || *value > kLargest)) {
      throw InvalidArgument(fmt::format("entry field {}: {} is not from 1 to {}", field, *value, kLargest));
    }
  };
  const bool vm = is_vm(entry.kind);
  const std::string& own = vm ? entry.vm_id : entry.snapshot_id;
  const std::string& other = vm ? entry.snapshot_id : entry.vm_id;
  const std::string_view own_field = vm ? "vm_id" : "snapshot_id";
  const std::string_view other_field = vm ? "snapshot_id" : "vm_id";
  if (own.empty()) {
    throw InvalidArgument(fmt::format("entry field {}: it is missing; {} needs one", own_field, to_string(entry.kind)));
  }
  if (!other.empty()) {
    throw InvalidArgument(
        fmt::format("entry field {}: {} has none, not {}", other_field, to_string(entry.kind), quote(other)));
  }
  not_negative("shape.cpu", entry.shape.cpu);
  not_negative("shape.mem_bytes", entry.shape.mem_bytes);
  not_negative("shape.storage_bytes", entry.shape.storage_bytes);
  a_seq("seq", entry.seq);
  a_seq("interval", entry.interval);
  not_negative("ended_uptime_ns", entry.ended_uptime_ns.value_or(0));
  not_negative("uptime_ns", entry.uptime_ns.value_or(0));
}

void append_json(const Entry& entry, std::string& out) {
  check(entry);
  const std::size_t before = out.size();
  try {
    append_unchecked(entry, out);
  } catch (...) {
    out.resize(before);
    throw;
  }
}

std::string to_json(const Entry& entry) {
  std::string out;
  out.reserve(512);
  append_json(entry, out);
  return out;
}

}  // namespace cocoon::metering
