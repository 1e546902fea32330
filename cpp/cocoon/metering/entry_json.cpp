// Reading entries: a SAX handler straight into the Entry, so that nothing of a hostile line is built up in memory,
// doubled keys are seen (a DOM would keep the last one silently), and a line with a bad field still tells its seq.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/text.h"

namespace cocoon::metering {
namespace {

using nlohmann::json;

enum class Field : std::uint8_t {
  kKind,
  kVmId,
  kSnapshotId,
  kSourceSnapshotId,
  kReason,
  kHypervisor,
  kShape,
  kEmittedAt,
  kSeq,
  kInterval,
  kLabels,
  kEndedAt,
  kEndedUptime,
  kEvidence,
  kAliveUntil,
  kBootId,
  kUptime,
  kCpu,
  kMemBytes,
  kStorageBytes,
  kLabel,    // any key of labels
  kUnknown,  // ignored, whatever it holds
};

enum class Accepts : std::uint8_t { kText, kObject, kFromZero, kFromOne };

struct FieldInfo {
  std::string_view key;
  std::string_view path;
  Accepts accepts;
};

// By Field, as far as the names are fixed: first the line's keys, then the shape's.
constexpr std::array<FieldInfo, 20> kFields = {{
    {"kind", "kind", Accepts::kText},
    {"vm_id", "vm_id", Accepts::kText},
    {"snapshot_id", "snapshot_id", Accepts::kText},
    {"source_snapshot_id", "source_snapshot_id", Accepts::kText},
    {"reason", "reason", Accepts::kText},
    {"hypervisor", "hypervisor", Accepts::kText},
    {"shape", "shape", Accepts::kObject},
    {"emitted_at", "emitted_at", Accepts::kText},
    {"seq", "seq", Accepts::kFromOne},
    {"interval", "interval", Accepts::kFromOne},
    {"labels", "labels", Accepts::kObject},
    {"ended_at", "ended_at", Accepts::kText},
    {"ended_uptime_ns", "ended_uptime_ns", Accepts::kFromZero},
    {"evidence", "evidence", Accepts::kText},
    {"alive_until", "alive_until", Accepts::kText},
    {"boot_id", "boot_id", Accepts::kText},
    {"uptime_ns", "uptime_ns", Accepts::kFromZero},
    {"cpu", "shape.cpu", Accepts::kFromZero},
    {"mem_bytes", "shape.mem_bytes", Accepts::kFromZero},
    {"storage_bytes", "shape.storage_bytes", Accepts::kFromZero},
}};
constexpr auto kFirstOfShape = static_cast<std::size_t>(Field::kCpu);

constexpr std::uint32_t bit(Field field) { return std::uint32_t{1} << static_cast<unsigned>(field); }

Field find_field(std::string_view key, std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last; ++i) {
    if (kFields[i].key == key) {
      return static_cast<Field>(i);
    }
  }
  return Field::kUnknown;
}

std::string field_error(std::string_view path, std::string_view value, std::string_view allowed) {
  return fmt::format("entry field {}: {} is not {}", path, value, allowed);
}

class Handler {
 public:
  // The names and signatures of these are nlohmann's SAX interface. False would stop the parser; it runs on after a bad
  // field, to see whether the rest is JSON at all, and for the seq.
  bool null() { return scalar("null"); }
  bool boolean(bool value) { return scalar(value ? "true" : "false"); }
  bool number_integer(json::number_integer_t value) { return integer(value, std::to_string(value)); }
  bool number_unsigned(json::number_unsigned_t value) {
    if (value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return integer(static_cast<std::int64_t>(value), {});
    }
    return scalar(std::to_string(value));
  }
  bool number_float(json::number_float_t /*value*/, const std::string& text) { return scalar(text); }
  bool binary(json::binary_t& /*value*/) { return scalar("binary"); }
  bool string(std::string& value);
  bool start_object(std::size_t /*size*/);
  bool end_object();
  bool key(std::string& name);
  bool start_array(std::size_t /*size*/);
  bool end_array() { return leave(); }
  bool parse_error(std::size_t position, const std::string& /*token*/, const json::exception& error);

  // The entry, or the first fault.
  Entry take(std::string_view line);

 private:
  enum class Where : std::uint8_t { kOutside, kLine, kShape, kLabels };

  bool scalar(std::string_view value);
  bool integer(std::int64_t value, std::string_view negative_text);
  bool leave();
  void set_text(std::string& value);
  void set_time(std::optional<std::int64_t>& ns, std::string_view text);
  void refuse(std::string_view value);
  void fail(BadEntry::Fault fault, std::string message);
  [[nodiscard]] std::string path() const;
  [[nodiscard]] Accepts accepts() const;  // of field_, which is not unknown

  Entry entry_;
  Where where_ = Where::kOutside;
  Field field_ = Field::kUnknown;
  std::string label_;                 // the key, in labels
  std::size_t ignored_depth_ = 0;     // open containers inside a value that nobody reads
  std::uint32_t seen_ = 0;            // bits of Field
  std::vector<std::string> unknown_;  // keys of the line, to see doubled ones
  std::optional<std::int64_t> emitted_at_ns_;
  std::string syntax_error_;
  std::size_t syntax_error_at_ = 0;  // bytes read when it was found
  std::string message_;              // of the first fault
  BadEntry::Fault fault_ = BadEntry::Fault::kJson;
};

void Handler::fail(BadEntry::Fault fault, std::string message) {
  if (message_.empty()) {
    fault_ = fault;
    message_ = std::move(message);
  }
}

std::string Handler::path() const {
  if (field_ == Field::kLabel) {
    return "labels." + quote(label_);
  }
  return std::string(kFields[static_cast<std::size_t>(field_)].path);
}

Accepts Handler::accepts() const {
  return field_ == Field::kLabel ? Accepts::kText : kFields[static_cast<std::size_t>(field_)].accepts;
}

// A value of the wrong type, or a number that does not fit.
void Handler::refuse(std::string_view value) {
  if (field_ == Field::kUnknown) {
    return;
  }
  std::string_view allowed;
  switch (accepts()) {
    case Accepts::kText:
      allowed = "a string";
      break;
    case Accepts::kObject:
      allowed = "an object";
      break;
    case Accepts::kFromZero:
      allowed = "an integer from 0 to 9223372036854775807";
      break;
    case Accepts::kFromOne:
      allowed = "an integer from 1 to 9223372036854775807";
      break;
  }
  fail(BadEntry::Fault::kField, field_error(path(), value, allowed));
}

bool Handler::scalar(std::string_view value) {
  if (ignored_depth_ > 0) {
    return true;
  }
  if (where_ == Where::kOutside) {
    fail(BadEntry::Fault::kJson, "entry: the line is not a JSON object");
    return true;
  }
  refuse(value.size() > 80 ? quote(value) : value);
  return true;
}

bool Handler::integer(std::int64_t value, std::string_view negative_text) {
  if (ignored_depth_ > 0 || where_ == Where::kOutside || value < 0) {
    return scalar(negative_text);
  }
  const bool from_one = field_ == Field::kSeq || field_ == Field::kInterval;
  if (from_one && value == 0) {
    refuse("0");
    return true;
  }
  switch (field_) {
    case Field::kSeq:
      entry_.seq = static_cast<std::uint64_t>(value);
      return true;
    case Field::kInterval:
      entry_.interval = static_cast<std::uint64_t>(value);
      return true;
    case Field::kEndedUptime:
      entry_.ended_uptime_ns = value;
      return true;
    case Field::kUptime:
      entry_.uptime_ns = value;
      return true;
    case Field::kCpu:
      entry_.shape.cpu = value;
      return true;
    case Field::kMemBytes:
      entry_.shape.mem_bytes = value;
      return true;
    case Field::kStorageBytes:
      entry_.shape.storage_bytes = value;
      return true;
    case Field::kKind:
    case Field::kVmId:
    case Field::kSnapshotId:
    case Field::kSourceSnapshotId:
    case Field::kReason:
    case Field::kHypervisor:
    case Field::kShape:
    case Field::kEmittedAt:
    case Field::kLabels:
    case Field::kEndedAt:
    case Field::kEvidence:
    case Field::kAliveUntil:
    case Field::kBootId:
    case Field::kLabel:
    case Field::kUnknown:
      refuse(std::to_string(value));
      return true;
  }
  return true;
}

void Handler::set_time(std::optional<std::int64_t>& ns, std::string_view text) {
  try {
    ns = parse_time(text);
  } catch (const InvalidArgument& error) {
    fail(BadEntry::Fault::kField, fmt::format("entry field {}: {}", path(), error.what()));
  }
}

void Handler::set_text(std::string& value) {
  switch (field_) {
    case Field::kKind:
      try {
        entry_.kind = parse_kind(value);
      } catch (const InvalidArgument& error) {
        fail(BadEntry::Fault::kKind, error.what());
      }
      return;
    case Field::kReason:
      try {
        entry_.reason = parse_reason(value);
      } catch (const InvalidArgument& error) {
        fail(BadEntry::Fault::kField, error.what());
      }
      return;
    case Field::kVmId:
      entry_.vm_id = std::move(value);
      return;
    case Field::kSnapshotId:
      entry_.snapshot_id = std::move(value);
      return;
    case Field::kSourceSnapshotId:
      entry_.source_snapshot_id = std::move(value);
      return;
    case Field::kHypervisor:
      entry_.hypervisor = std::move(value);
      return;
    case Field::kEvidence:
      entry_.evidence = std::move(value);
      return;
    case Field::kBootId:
      entry_.boot_id = std::move(value);
      return;
    case Field::kEmittedAt:
      set_time(emitted_at_ns_, value);
      return;
    case Field::kEndedAt:
      set_time(entry_.ended_at_ns, value);
      return;
    case Field::kAliveUntil:
      set_time(entry_.alive_until_ns, value);
      return;
    case Field::kLabel:
      if (!entry_.labels.emplace(label_, std::move(value)).second) {
        fail(BadEntry::Fault::kField, fmt::format("entry field {}: it is there twice; allowed is once", path()));
      }
      return;
    case Field::kShape:
    case Field::kSeq:
    case Field::kInterval:
    case Field::kLabels:
    case Field::kEndedUptime:
    case Field::kUptime:
    case Field::kCpu:
    case Field::kMemBytes:
    case Field::kStorageBytes:
    case Field::kUnknown:
      refuse(quote(value));
      return;
  }
}

bool Handler::string(std::string& value) {
  if (ignored_depth_ > 0 || where_ == Where::kOutside) {
    return scalar(value);
  }
  set_text(value);
  return true;
}

bool Handler::start_object(std::size_t /*size*/) {
  if (ignored_depth_ == 0) {
    if (where_ == Where::kOutside) {
      where_ = Where::kLine;
      return true;
    }
    if (where_ == Where::kLine && (field_ == Field::kShape || field_ == Field::kLabels)) {
      where_ = field_ == Field::kShape ? Where::kShape : Where::kLabels;
      return true;
    }
    refuse("an object");
  }
  ++ignored_depth_;
  return true;
}

bool Handler::start_array(std::size_t /*size*/) {
  if (ignored_depth_ == 0) {
    scalar("an array");
  }
  ++ignored_depth_;
  return true;
}

bool Handler::leave() {
  if (ignored_depth_ > 0) {
    --ignored_depth_;
  } else {
    where_ = where_ == Where::kLine ? Where::kOutside : Where::kLine;
  }
  return true;
}

bool Handler::end_object() { return leave(); }

bool Handler::key(std::string& name) {
  if (ignored_depth_ > 0) {
    return true;
  }
  if (where_ == Where::kLabels) {
    field_ = Field::kLabel;
    label_ = std::move(name);
    return true;
  }
  const bool line = where_ == Where::kLine;
  field_ = line ? find_field(name, 0, kFirstOfShape) : find_field(name, kFirstOfShape, kFields.size());
  bool twice = false;
  if (field_ != Field::kUnknown) {
    twice = (seen_ & bit(field_)) != 0;
    seen_ |= bit(field_);
  } else if (line) {
    twice = std::find(unknown_.begin(), unknown_.end(), name) != unknown_.end();
    unknown_.push_back(name);
  }
  if (twice) {
    const std::string shown = field_ == Field::kUnknown ? quote(name) : path();
    fail(BadEntry::Fault::kField, fmt::format("entry field {}: it is there twice; allowed is once", shown));
  }
  return true;
}

bool Handler::parse_error(std::size_t position, const std::string& /*token*/, const json::exception& error) {
  // "[json.exception.parse_error.101] parse error at line 1, column 5: …; last read: '…'": the token may be megabytes
  // of anything, and the line is always 1.
  std::string_view detail = error.what();
  detail = detail.substr(0, detail.find("; last read: "));
  if (const std::size_t colon = detail.find(": "); colon != std::string_view::npos) {
    detail.remove_prefix(colon + 2);
  }
  syntax_error_ = detail;
  syntax_error_at_ = position;
  return false;
}

Entry Handler::take(std::string_view line) {
  if (!syntax_error_.empty()) {
    const std::size_t begin = syntax_error_at_ - std::min<std::size_t>(syntax_error_at_, 20);
    throw BadEntry(fmt::format("entry: the line is not JSON, at byte {}: {}, near {}", syntax_error_at_, syntax_error_,
                               quote(line.substr(std::min(begin, line.size()), 40))),
                   BadEntry::Fault::kJson, entry_.seq);
  }
  for (const Field required : {Field::kKind, Field::kShape, Field::kEmittedAt}) {
    if ((seen_ & bit(required)) == 0) {
      field_ = required;
      fail(BadEntry::Fault::kField, fmt::format("entry field {}: it is missing; every entry has one", path()));
    }
  }
  if (message_.empty()) {
    entry_.emitted_at_ns = *emitted_at_ns_;
    try {
      check(entry_);
    } catch (const InvalidArgument& error) {
      fail(BadEntry::Fault::kField, error.what());
    }
  }
  if (!message_.empty()) {
    throw BadEntry(message_, fault_, entry_.seq);
  }
  return std::move(entry_);
}

}  // namespace

Entry from_json(std::string_view line) {
  // The library takes a NUL for the end of its input, and would accept what a power cut leaves behind.
  if (const std::size_t nul = line.find('\0'); nul != std::string_view::npos) {
    throw BadEntry(fmt::format("entry: the line is not JSON, at byte {}: a NUL: {}", nul + 1, quote(line)),
                   BadEntry::Fault::kJson, std::nullopt);
  }
  Handler handler;
  json::sax_parse(line.begin(), line.end(), &handler);
  return handler.take(line);
}

}  // namespace cocoon::metering
