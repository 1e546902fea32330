#pragma once
// What the ledger says, in columns: one buffer per column, ready for whoever reads columns.
// A Table is a value and never changes once built.

#include <cstddef>
#include <utility>
#include <vector>

#include "cocoon/ledger/column.h"
#include "cocoon/ledger/intervals.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/usage.h"

namespace cocoon::ledger {

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  ~Table() = default;
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  Table(Table&&) = default;
  Table& operator=(Table&&) = default;
  [[nodiscard]] const std::vector<Column>& columns() const { return columns_; }
  [[nodiscard]] std::size_t rows() const { return columns_.empty() ? 0 : columns_.front().size(); }

 private:
  std::vector<Column> columns_;
};

// Errors   LedgerError; InvalidArgument of the usage query. Bad lines are passed over, as in for_each_entry; repeats
// too, in all but the entries' table.
Table entries_table(const Files& files, const Check& check = {});
Table intervals_table(const Files& files, std::int64_t until_ns, const Check& check = {});
Table usage_table(const UsageQuery& query, const std::vector<UsageRow>& rows);

}  // namespace cocoon::ledger
