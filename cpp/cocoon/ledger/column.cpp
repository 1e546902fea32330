#include "cocoon/ledger/column.h"

namespace cocoon::ledger {

Column::Column(std::string name, ColumnType type) : name_(std::move(name)), type_(type) {
  if (type_ == ColumnType::kText) offsets_.push_back(0);
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

void Column::grow(std::size_t size) {
  if (size <= size_) return;
  if (!some_null_) begin_nulls();
  if (type_ == ColumnType::kText) {
    while (offsets_.size() <= size) offsets_.push_back(static_cast<std::int64_t>(text_.size()));
  }
  nulls_ += size - size_;
  size_ = size;
}

void Column::begin_nulls() {
  some_null_ = true;
  valid_.resize((size_ + 7) / 8);
  for (std::size_t row = 0; row < size_; ++row) set_bit(valid_, row);
}

}  // namespace cocoon::ledger
