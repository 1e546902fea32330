#pragma once
// What the ledger says, in columns: one buffer per column, ready for whoever reads columns.
// A Table is a value and never changes once built.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/intervals.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/usage.h"

namespace cocoon::ledger {

enum class ColumnType : std::uint8_t {
  kText,
  kInteger,
  kReal,
  kBoolean,
  kTime,    // ns since the epoch, UTC
  kLabels,  // a JSON object of strings
};

class Column {
 public:
  Column(std::string name, ColumnType type) : name_(std::move(name)), type_(type) {}

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] ColumnType type() const { return type_; }
  [[nodiscard]] std::size_t size() const { return valid_.size(); }
  [[nodiscard]] bool is_null(std::size_t row) const { return valid_[row] == 0; }
  [[nodiscard]] std::size_t null_count() const { return nulls_; }

  // Requires the type, and a row that is not null.
  [[nodiscard]] std::string_view text(std::size_t row) const;                           // kText, kLabels
  [[nodiscard]] std::int64_t integer(std::size_t row) const { return integers_[row]; }  // kInteger, kBoolean, kTime
  [[nodiscard]] double real(std::size_t row) const { return reals_[row]; }

  void add_null();
  void add_text(std::string_view value);
  void add_integer(std::int64_t value);
  void add_real(double value);

  // The empty string, and no value, are null.
  void add_some(std::string_view value);
  template <typename Number>
  void add_some(const std::optional<Number>& value) {
    if (value) {
      add_integer(static_cast<std::int64_t>(*value));
    } else {
      add_null();
    }
  }

 private:
  void add_valid(bool valid);

  std::string name_;
  ColumnType type_;
  std::vector<std::uint8_t> valid_;
  std::size_t nulls_ = 0;
  std::vector<std::int64_t> integers_;
  std::vector<double> reals_;
  std::string text_;                 // all values, one behind the other
  std::vector<std::uint64_t> ends_;  // of each in text_
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  [[nodiscard]] const std::vector<Column>& columns() const { return columns_; }
  [[nodiscard]] std::size_t rows() const { return columns_.empty() ? 0 : columns_.front().size(); }

 private:
  std::vector<Column> columns_;
};

// Errors   LedgerError; InvalidArgument of the usage query. Bad lines are passed over, as in for_each_entry.
Table entries_table(const Files& files, const Check& check = {});
Table intervals_table(const Files& files, std::int64_t until_ns, const Check& check = {});
Table usage_table(const Files& files, const UsageQuery& query, std::int64_t now_ns, const Check& check = {});

}  // namespace cocoon::ledger
