#include "cocoon/ledger/table.h"

#include <array>
#include <initializer_list>
#include <utility>

#include "cocoon/ledger/once.h"

namespace cocoon::ledger {
namespace {

using metering::EntryView;
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
  Row& real(double value) { return next_++->add_real(value), *this; }
  template <typename Number>
  Row& some(const std::optional<Number>& value) {
    return next_++->add_some(value), *this;
  }
  Row& skip() { return ++next_, *this; }  // of columns that are filled later

 private:
  std::vector<Column>::iterator next_;
};

// Of the intervals' table, those that are known only at the end of an interval. Until then its row ends before them.
enum : std::size_t { kStop = 7, kStopReason = 9, kLength = 11, kOpen = 12, kLengthFrom = 13 };
enum : std::size_t { kStopSeq = 15, kEndedAt = 16, kAliveUntil = 17, kEvidence = 18 };
constexpr std::array<std::size_t, 9> kLate = {kStop,    kStopReason, kLength,     kOpen,    kLengthFrom,
                                              kStopSeq, kEndedAt,    kAliveUntil, kEvidence};

void add_start(const EntryView& e, std::vector<Column>& columns) {
  Row(columns)
      .text(e.id)
      .text(to_string(dimension_of(e.kind)))
      .text(e.hypervisor)
      .integer(e.shape.cpu)
      .integer(e.shape.mem_bytes)
      .integer(e.shape.storage_bytes)
      .integer(e.emitted_at_ns)
      .skip()
      .reason(e.reason)
      .skip()
      .text(e.source_snapshot_id)
      .skip()
      .skip()
      .skip()
      .some(e.seq)
      .skip()
      .skip()
      .skip()
      .skip()
      .text(e.labels);
}

void add_end(const IntervalView& i, std::vector<Column>& columns) {
  const std::size_t row = i.ordinal;
  const auto some = [&](std::size_t column, const auto& value) {
    if (value) columns[column].set_integer(row, static_cast<std::int64_t>(*value));
  };
  some(kStop, i.stop_ns);
  if (i.stop_reason) columns[kStopReason].set_text(row, to_string(*i.stop_reason));
  columns[kLength].set_integer(row, i.length_ns);
  columns[kOpen].set_integer(row, i.open ? 1 : 0);
  columns[kLengthFrom].set_text(row, to_string(i.length_from));
  some(kStopSeq, i.stop_seq);
  some(kEndedAt, i.ended_at_ns);
  some(kAliveUntil, i.alive_until_ns);
  if (!i.evidence.empty()) columns[kEvidence].set_text(row, i.evidence);
}

}  // namespace

Table entries_table(const Files& files, const Check& check) {
  using Type = ColumnType;
  auto columns = make_columns({{"kind", Type::kSymbol},           {"vm_id", Type::kText},
                               {"snapshot_id", Type::kText},      {"source_snapshot_id", Type::kText},
                               {"reason", Type::kSymbol},         {"hypervisor", Type::kSymbol},
                               {"cpu", Type::kInteger},           {"mem_bytes", Type::kInteger},
                               {"storage_bytes", Type::kInteger}, {"emitted_at", Type::kTime},
                               {"emitted_at_ns", Type::kInteger}, {"seq", Type::kInteger},
                               {"interval", Type::kInteger},      {"labels", Type::kLabels},
                               {"ended_at", Type::kTime},         {"ended_uptime_ns", Type::kInteger},
                               {"evidence", Type::kSymbol},       {"alive_until", Type::kTime},
                               {"boot_id", Type::kSymbol},        {"uptime_ns", Type::kInteger},
                               {"file", Type::kSymbol},           {"line", Type::kInteger},
                               {"offset", Type::kInteger}});
  const auto add = [&](const Batch::Item& item, const Position& at) {
    const EntryView& e = item.entry;
    const bool vm = is_vm(e.kind);
    Row(columns)
        .text(to_string(e.kind))
        .text(vm ? e.id : std::string_view())
        .text(vm ? std::string_view() : e.id)
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
        .text(e.labels)
        .some(e.ended_at_ns)
        .some(e.ended_uptime_ns)
        .text(e.evidence)
        .some(e.alive_until_ns)
        .text(e.boot_id)
        .some(e.uptime_ns)
        .text(at.file->native())
        .count(at.line)
        .count(at.offset);
  };
  for_each_entry(files, add, check);
  return Table(std::move(columns));
}

Table intervals_table(const Files& files, std::int64_t until_ns, const Check& check) {
  using Type = ColumnType;
  auto columns = make_columns({{"id", Type::kText},
                               {"kind", Type::kSymbol},
                               {"hypervisor", Type::kSymbol},
                               {"cpu", Type::kInteger},
                               {"mem_bytes", Type::kInteger},
                               {"storage_bytes", Type::kInteger},
                               {"start", Type::kTime},
                               {"stop", Type::kTime},
                               {"start_reason", Type::kSymbol},
                               {"stop_reason", Type::kSymbol},
                               {"source_snapshot_id", Type::kText},
                               {"length_ns", Type::kInteger},
                               {"open", Type::kBoolean},
                               {"length_from", Type::kSymbol},
                               {"start_seq", Type::kInteger},
                               {"stop_seq", Type::kInteger},
                               {"ended_at", Type::kTime},
                               {"alive_until", Type::kTime},
                               {"evidence", Type::kSymbol},
                               {"labels", Type::kLabels}});
  // A row is made at the start, which is the order of the table, and filled up at the end.
  Pairer pairer(CrashEnd::kEnded, [&](const IntervalView& interval) { add_end(interval, columns); });
  const auto add = [&](const Batch& batch, std::size_t at) {
    const Batch::Item& item = batch.items[at];
    pairer.prefetch(batch, at);
    if (is_start(item.entry.kind)) add_start(item.entry, columns);
    pairer.add(item.entry, item.hash);
  };
  for_each_once(files, add, check);
  pairer.finish(until_ns);
  for (const std::size_t column : kLate) columns[column].grow(columns[0].size());
  return Table(std::move(columns));
}

Table usage_table(const UsageQuery& query, const std::vector<UsageRow>& rows) {
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
