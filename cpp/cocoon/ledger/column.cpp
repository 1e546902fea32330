#include "cocoon/ledger/column.h"

namespace cocoon::ledger {

Column::Column(std::string name, ColumnType type) : name_(std::move(name)), type_(type) {
  if (type_ == ColumnType::kText) offsets_.push_back(0);
}

void Column::set_bit(Buffer<std::uint8_t>& bits, std::size_t row) {
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

std::string_view Column::text(std::size_t row) const {
  if (type_ != ColumnType::kText) {
    const std::int32_t index = row < indices_.size() ? indices_[row] : 0;
    return symbols_.text_of(static_cast<Symbols::Id>(index) + 1);
  }
  const auto begin = static_cast<std::size_t>(offsets_[row]);
  return {text_.data() + begin, static_cast<std::size_t>(offsets_[row + 1]) - begin};
}

std::int64_t Column::integer(std::size_t row) const {
  if (type_ == ColumnType::kBoolean) return bit(booleans_, row) ? 1 : 0;
  return row < integers_.size() ? integers_[row] : 0;
}

void Column::add_valid() {
  if (some_null_) set_bit(valid_, size_);
  ++size_;
}

void Column::add_null() {
  if (!some_null_) {
    some_null_ = true;
    valid_.resize((size_ + 7) / 8);
    for (std::size_t row = 0; row < size_; ++row) set_bit(valid_, row);
  }
  if (type_ == ColumnType::kText) offsets_.push_back(offsets_[size_]);
  ++nulls_;
  ++size_;
}

void Column::make_valid(std::size_t row) {
  if (!is_null(row)) return;
  set_bit(valid_, row);
  --nulls_;
}

void Column::add_text(std::string_view value) {
  if (type_ == ColumnType::kText) {
    text_.append(value.data(), value.size());
    offsets_.push_back(static_cast<std::int64_t>(text_.size()));
  } else {
    put(indices_, size_, static_cast<std::int32_t>(symbols_.id_of(value)) - 1);
  }
  add_valid();
}

void Column::add_integer(std::int64_t value) {
  if (type_ == ColumnType::kBoolean) {
    if (value != 0) set_bit(booleans_, size_);
  } else {
    put(integers_, size_, value);
  }
  add_valid();
}

void Column::add_real(double value) {
  put(reals_, size_, value);
  add_valid();
}

void Column::set_text(std::size_t row, std::string_view value) {
  put(indices_, row, static_cast<std::int32_t>(symbols_.id_of(value)) - 1);
  make_valid(row);
}

void Column::set_integer(std::size_t row, std::int64_t value) {
  if (type_ == ColumnType::kBoolean) {
    if (value != 0) set_bit(booleans_, row);
  } else {
    put(integers_, row, value);
  }
  make_valid(row);
}

}  // namespace cocoon::ledger
