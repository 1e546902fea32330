#include "cocoon/ledger/table.h"

#include <initializer_list>
#include <utility>

#include <nlohmann/json.hpp>

namespace cocoon::ledger {
namespace {

using metering::Entry;
using metering::Reason;

struct Named {
  std::string_view name;
  ColumnType type;
};

std::vector<Column> make_columns(std::initializer_list<Named> named) {
  std::vector<Column> columns;
  columns.reserve(named.size());
  for (const auto& [name, type] : named) {
    columns.emplace_back(std::string(name), type);
  }
  return columns;
}

// Fills one row from left to right, so that the order of the columns is written once.
class Row {
 public:
  explicit Row(std::vector<Column>& columns) : next_(columns.begin()) {}

  Row& text(std::string_view value) { return next_++->add_some(value), *this; }
  Row& maybe_text(const std::optional<std::string>& value) {
    value ? next_->add_text(*value) : next_->add_null();
    return ++next_, *this;
  }
  Row& reason(const std::optional<Reason>& value) { return text(value ? to_string(*value) : std::string_view()); }
  Row& integer(std::int64_t value) { return next_++->add_integer(value), *this; }
  Row& count(std::uint64_t value) { return integer(static_cast<std::int64_t>(value)); }
  Row& boolean(bool value) { return integer(value ? 1 : 0); }
  Row& real(double value) { return next_++->add_real(value), *this; }
  template <typename Number>
  Row& some(const std::optional<Number>& value) {
    return next_++->add_some(value), *this;
  }
  Row& labels(const std::map<std::string, std::string>& value) {
    value.empty() ? next_->add_null() : next_->add_text(nlohmann::json(value).dump());
    return ++next_, *this;
  }

 private:
  std::vector<Column>::iterator next_;
};

}  // namespace

std::string_view Column::text(std::size_t row) const {
  const std::uint64_t begin = row == 0 ? 0 : ends_[row - 1];
  return std::string_view(text_).substr(begin, ends_[row] - begin);
}

void Column::add_valid(bool valid) {
  valid_.push_back(valid ? 1 : 0);
  nulls_ += valid ? 0 : 1;
}

void Column::add_null() {
  switch (type_) {
    case ColumnType::kText:
    case ColumnType::kLabels:
      ends_.push_back(text_.size());
      break;
    case ColumnType::kInteger:
    case ColumnType::kBoolean:
    case ColumnType::kTime:
      integers_.push_back(0);
      break;
    case ColumnType::kReal:
      reals_.push_back(0);
      break;
  }
  add_valid(false);
}

void Column::add_text(std::string_view value) {
  text_ += value;
  ends_.push_back(text_.size());
  add_valid(true);
}

void Column::add_integer(std::int64_t value) {
  integers_.push_back(value);
  add_valid(true);
}

void Column::add_real(double value) {
  reals_.push_back(value);
  add_valid(true);
}

void Column::add_some(std::string_view value) {
  if (value.empty()) {
    add_null();
  } else {
    add_text(value);
  }
}

Table entries_table(const Files& files, const Check& check) {
  using Type = ColumnType;
  auto columns = make_columns({{"kind", Type::kText},
                               {"vm_id", Type::kText},
                               {"snapshot_id", Type::kText},
                               {"source_snapshot_id", Type::kText},
                               {"reason", Type::kText},
                               {"hypervisor", Type::kText},
                               {"cpu", Type::kInteger},
                               {"mem_bytes", Type::kInteger},
                               {"storage_bytes", Type::kInteger},
                               {"emitted_at", Type::kTime},
                               {"emitted_at_ns", Type::kInteger},
                               {"seq", Type::kInteger},
                               {"interval", Type::kInteger},
                               {"labels", Type::kLabels},
                               {"ended_at", Type::kTime},
                               {"ended_uptime_ns", Type::kInteger},
                               {"evidence", Type::kText},
                               {"alive_until", Type::kTime},
                               {"boot_id", Type::kText},
                               {"uptime_ns", Type::kInteger}});
  const auto add = [&](PlacedEntry&& placed) {
    const Entry& e = placed.entry;
    Row(columns)
        .text(to_string(e.kind))
        .text(e.vm_id)
        .text(e.snapshot_id)
        .text(e.source_snapshot_id)
        .reason(e.reason)
        .text(e.hypervisor)
        .integer(e.shape.cpu)
        .integer(e.shape.mem_bytes)
        .integer(e.shape.storage_bytes)
        .integer(e.emitted_at_ns)
        .integer(e.emitted_at_ns)
        .some(e.seq)
        .some(e.interval)
        .labels(e.labels)
        .some(e.ended_at_ns)
        .some(e.ended_uptime_ns)
        .text(e.evidence)
        .some(e.alive_until_ns)
        .text(e.boot_id)
        .some(e.uptime_ns);
  };
  for_each_entry(files, add, check);
  return Table(std::move(columns));
}

Table intervals_table(const Files& files, std::int64_t until_ns, const Check& check) {
  using Type = ColumnType;
  auto columns = make_columns({{"id", Type::kText},
                               {"kind", Type::kText},
                               {"hypervisor", Type::kText},
                               {"cpu", Type::kInteger},
                               {"mem_bytes", Type::kInteger},
                               {"storage_bytes", Type::kInteger},
                               {"start", Type::kTime},
                               {"stop", Type::kTime},
                               {"start_reason", Type::kText},
                               {"stop_reason", Type::kText},
                               {"source_snapshot_id", Type::kText},
                               {"length_ns", Type::kInteger},
                               {"open", Type::kBoolean},
                               {"length_from", Type::kText}});
  for (const Interval& i : read_intervals(files, CrashEnd::kEnded, until_ns, check)) {
    Row(columns)
        .text(i.id)
        .text(to_string(i.dimension))
        .text(i.hypervisor)
        .integer(i.shape.cpu)
        .integer(i.shape.mem_bytes)
        .integer(i.shape.storage_bytes)
        .integer(i.start_ns)
        .some(i.stop_ns)
        .reason(i.start_reason)
        .reason(i.stop_reason)
        .text(i.source_snapshot_id)
        .integer(i.length_ns)
        .boolean(i.open)
        .text(to_string(i.length_from));
  }
  return Table(std::move(columns));
}

Table usage_table(const Files& files, const UsageQuery& query, std::int64_t now_ns, const Check& check) {
  const std::vector<UsageRow> rows = read_usage(files, query, now_ns, check);
  std::vector<Column> columns;
  columns.reserve(query.by.size() + 6);
  for (const std::string& name : query.by) {
    columns.emplace_back(name, ColumnType::kText);
  }
  if (query.every_ns) {
    columns.emplace_back("bucket", ColumnType::kTime);
  }
  for (const std::string_view sum : {"vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds"}) {
    columns.emplace_back(std::string(sum), ColumnType::kReal);
  }
  columns.emplace_back("intervals", ColumnType::kInteger);
  columns.emplace_back("open", ColumnType::kInteger);
  for (const UsageRow& usage : rows) {
    Row row(columns);
    for (const std::optional<std::string>& part : usage.key) {
      row.maybe_text(part);
    }
    if (query.every_ns) {
      row.integer(usage.bucket_ns);
    }
    row.real(per_second(usage.vcpu_ns))
        .real(per_second(usage.mem_byte_ns))
        .real(per_second(usage.storage_byte_ns))
        .count(usage.intervals)
        .count(usage.open);
  }
  return Table(std::move(columns));
}

}  // namespace cocoon::ledger
