#pragma once
// One column of a table, in the buffers that Arrow has for its type.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cocoon/ledger/buffer.h"
#include "cocoon/ledger/symbols.h"

namespace cocoon::ledger {

enum class ColumnType : std::uint8_t {
  kText,
  kSymbol,  // text, of which there are few different ones
  kInteger,
  kReal,
  kBoolean,
  kTime,    // ns since the epoch, UTC
  kLabels,  // a JSON object of strings
};

class Column {
 public:
  Column(std::string name, ColumnType type);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] ColumnType type() const { return type_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool is_null(std::size_t row) const { return nulls_ > 0 && !bit(valid_, row); }
  [[nodiscard]] std::size_t null_count() const { return nulls_; }

  // Requires the type, and a row that is not null.
  [[nodiscard]] std::string_view text(std::size_t row) const;  // kText, kSymbol, kLabels
  [[nodiscard]] std::int64_t integer(std::size_t row) const;   // kInteger, kBoolean, kTime
  [[nodiscard]] double real(std::size_t row) const { return reals_[row]; }

  void add_null();
  void add_text(std::string_view value);
  void add_integer(std::int64_t value);
  void add_real(double value);

  // The empty string, and no value, are null.
  void add_some(std::string_view value) { value.empty() ? add_null() : add_text(value); }
  template <typename Number>
  void add_some(const std::optional<Number>& value) {
    if (value) {
      add_integer(static_cast<std::int64_t>(*value));
    } else {
      add_null();
    }
  }

  // Rows to `size`, as nulls.
  void grow(std::size_t size);

  // In any row; those before it that are not there yet are nulls. Not of kText.
  void set_text(std::size_t row, std::string_view value);
  void set_integer(std::size_t row, std::int64_t value);

  // The buffers. Each may end before the last row: the rest is null, or of zeros.
  [[nodiscard]] const Buffer<std::uint8_t>& valid() const { return valid_; }  // a bit per row; empty: all are valid
  [[nodiscard]] const Buffer<std::int64_t>& integers() const { return integers_; }
  [[nodiscard]] const Buffer<std::uint8_t>& booleans() const { return booleans_; }  // a bit per row
  [[nodiscard]] const Buffer<double>& reals() const { return reals_; }
  [[nodiscard]] const Buffer<char>& characters() const { return text_; }
  [[nodiscard]] const Buffer<std::int64_t>& offsets() const { return offsets_; }  // one more than rows
  [[nodiscard]] const Buffer<std::int32_t>& indices() const { return indices_; }  // into symbols().texts(), less one
  [[nodiscard]] const Symbols& symbols() const { return symbols_; }

 private:
  static bool bit(const Buffer<std::uint8_t>& bits, std::size_t row) {
    return row / 8 < bits.size() && (bits[row / 8] >> (row % 8) & 1) != 0;
  }
  static void set_bit(Buffer<std::uint8_t>& bits, std::size_t row);
  template <typename Number>
  static void put(Buffer<Number>& numbers, std::size_t row, Number value);

  void begin_nulls();
  void add_valid();
  void make_valid(std::size_t row);

  std::string name_;
  ColumnType type_;
  std::size_t size_ = 0;
  std::size_t nulls_ = 0;
  bool some_null_ = false;  // valid_ is kept
  Buffer<std::uint8_t> valid_;
  Buffer<std::int64_t> integers_;
  Buffer<std::uint8_t> booleans_;
  Buffer<double> reals_;
  Buffer<char> text_;
  Buffer<std::int64_t> offsets_;
  Buffer<std::int32_t> indices_;
  Symbols symbols_;
};

// Inline: a table is filled by millions of these calls.
inline void Column::set_bit(Buffer<std::uint8_t>& bits, std::size_t row) {
  if (bits.size() <= row / 8) bits.resize(row / 8 + 1);
  bits[row / 8] = static_cast<std::uint8_t>(bits[row / 8] | (1U << (row % 8)));
}

template <typename Number>
void Column::put(Buffer<Number>& numbers, std::size_t row, Number value) {
  if (numbers.size() == row) {
    numbers.push_back(value);
    return;
  }
  if (numbers.size() < row) numbers.resize(row + 1);
  numbers[row] = value;
}

inline void Column::add_valid() {
  if (some_null_) set_bit(valid_, size_);
  ++size_;
}

inline void Column::add_null() {
  if (!some_null_) begin_nulls();
  if (type_ == ColumnType::kText) offsets_.push_back(static_cast<std::int64_t>(text_.size()));
  ++nulls_;
  ++size_;
}

inline void Column::make_valid(std::size_t row) {
  if (row >= size_) grow(row + 1);
  if (!is_null(row)) return;
  set_bit(valid_, row);
  --nulls_;
}

inline void Column::add_text(std::string_view value) {
  if (type_ == ColumnType::kText) {
    text_.append(value.data(), value.size());
    offsets_.push_back(static_cast<std::int64_t>(text_.size()));
  } else {
    put(indices_, size_, static_cast<std::int32_t>(symbols_.id_of(value)) - 1);
  }
  add_valid();
}

inline void Column::add_integer(std::int64_t value) {
  if (type_ == ColumnType::kBoolean) {
    if (value != 0) set_bit(booleans_, size_);
  } else {
    put(integers_, size_, value);
  }
  add_valid();
}

inline void Column::add_real(double value) {
  put(reals_, size_, value);
  add_valid();
}

inline void Column::set_text(std::size_t row, std::string_view value) {
  put(indices_, row, static_cast<std::int32_t>(symbols_.id_of(value)) - 1);
  make_valid(row);
}

inline void Column::set_integer(std::size_t row, std::int64_t value) {
  if (type_ == ColumnType::kBoolean) {
    if (value != 0) set_bit(booleans_, row);
  } else {
    put(integers_, row, value);
  }
  make_valid(row);
}

}  // namespace cocoon::ledger
