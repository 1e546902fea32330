#include "cocoon/store/write_transaction.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::store {
namespace {

constexpr std::size_t kUsualLine = 384;

}  // namespace

WriteTransaction::WriteTransaction(Connection& connection, const system::Clock& clock, bool keep_entries)
    : connection_(connection), use_(connection), keep_entries_(keep_entries) {
  Query(connection_, "BEGIN IMMEDIATE").run();
  open_ = true;
  try {
    // Only now: the order of transactions is the order of these readings.
    moment_ = {.wall_ns = clock.wall_ns(), .uptime_ns = clock.uptime_ns(), .boot_id = clock.boot_id()};
    next_seq_ = last_given(connection_) + 1;
  } catch (...) {
    connection_.roll_back();
    throw;
  }
}

WriteTransaction::~WriteTransaction() {
  if (open_) connection_.roll_back();
}

template <typename Action>
auto WriteTransaction::guarded(Action action) {
  if (broken_)
    throw StoreError(
        fmt::format("database {}: an earlier statement of this transaction failed", connection_.path().string()),
        connection_.path().string());
  try {
    return action();
  } catch (const StoreError&) {
    broken_ = true;
    throw;
  }
}

std::optional<Row> WriteTransaction::find(Table table, std::string_view id) {
  return guarded([&]() -> std::optional<Row> {
    auto found = find_record(connection_, table, id);
    if (!found) return std::nullopt;
    const auto& row = found->row;
    loaded_.push_back({.table = table, .n = found->n, .id = row.id, .hypervisor = row.hypervisor, .name = row.name});
    return std::move(found->row);
  });
}

std::optional<Row> WriteTransaction::find_by_name(Table table, std::string_view hypervisor, std::string_view name) {
  return guarded([&] { return find_record_by_name(connection_, table, hypervisor, name); });
}

void WriteTransaction::put(Table table, const Row& row) {
  guarded([&] {
    result_.changed = true;
    const auto same = std::find_if(loaded_.begin(), loaded_.end(), [&](const Loaded& loaded) {
      return loaded.table == table && loaded.id == row.id && loaded.hypervisor == row.hypervisor &&
             loaded.name == row.name;
    });
    if (same != loaded_.end() && update_record(connection_, table, same->n, row)) return;
    std::erase_if(loaded_, [&](const Loaded& loaded) { return loaded.table == table && loaded.id == row.id; });
    upsert_record(connection_, table, row);
  });
}

void WriteTransaction::erase(Table table, std::string_view id) {
  guarded([&] {
    result_.changed = true;
    std::erase_if(loaded_, [&](const Loaded& loaded) { return loaded.table == table && loaded.id == id; });
    erase_record(connection_, table, id);
  });
}

void WriteTransaction::append(const std::vector<metering::Entry>& entries) {
  if (entries.empty()) return;
  guarded([&] {
    for (const auto& entry : entries) {
      if (entry.seq != next_seq_)
        throw Error(fmt::format("append entry: its seq is {}, the next one of this node is {}",
                                entry.seq ? std::to_string(*entry.seq) : "absent", next_seq_));
      OutboxRow row{.seq = next_seq_, .line = {}};
      row.line.reserve(kUsualLine);
      metering::append_json(entry, row.line);
      if (keep_entries_) {
        insert_row(connection_, row);
        result_.rows.push_back(std::move(row));
      }
      result_.changed = true;
      result_.last_seq = next_seq_++;
    }
    if (!keep_entries_) skip_through(connection_, result_.last_seq);
  });
}

WriteTransaction::Result WriteTransaction::commit() {
  return guarded([&] {
    Query(connection_, "COMMIT").run();
    open_ = false;
    return std::move(result_);
  });
}

}  // namespace cocoon::store
