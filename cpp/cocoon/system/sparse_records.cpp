#include "cocoon/system/sparse_records.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include <fmt/format.h>

namespace cocoon::system {
namespace {

constexpr std::size_t kTarBlock = 512;
constexpr std::string_view kMapKey = "COCOON.sparse.map";
constexpr std::string_view kSizeKey = "COCOON.sparse.size";

// Numbers from 0 up, as they are written: nothing before, no sign, no space.
class Text {
 public:
  explicit Text(std::string_view text) : text_(text) {}

  [[nodiscard]] bool empty() const { return text_.empty(); }
  bool skip(std::string_view expected) {
    if (!text_.starts_with(expected)) return false;
    text_.remove_prefix(expected.size());
    return true;
  }
  void expect(std::string_view expected, const char* what) {
    if (!skip(expected)) throw SparseProblem(fmt::format("{}: it is malformed", what));
  }
  std::int64_t number(const char* what) {
    std::int64_t value = 0;
    const char* const begin = text_.data();
    const auto result = std::from_chars(begin, begin + text_.size(), value);
    if (result.ec != std::errc() || value < 0 || text_.front() == '-')
      throw SparseProblem(fmt::format("{}: it holds no number, or one that is out of range", what));
    text_.remove_prefix(static_cast<std::size_t>(result.ptr - begin));
    return value;
  }

 private:
  std::string_view text_;
};

std::vector<Extent> parse_map(std::string_view value) {
  constexpr const char* kWhat = "COCOON.sparse.map";
  Text in(value);
  std::vector<Extent> extents;
  if (value == "null") return extents;  // how the Go engine writes a file that is one hole
  in.expect("[", kWhat);
  while (!in.skip("]")) {
    if (!extents.empty()) in.expect(",", kWhat);
    Extent extent;
    in.expect("{\"o\":", kWhat);
    extent.offset = in.number(kWhat);
    in.expect(",\"l\":", kWhat);
    extent.length = in.number(kWhat);
    in.expect("}", kWhat);
    extents.push_back(extent);
  }
  if (!in.empty()) throw SparseProblem("COCOON.sparse.map: it is malformed");
  return extents;
}

struct Records {
  std::optional<std::string_view> map;
  std::optional<std::string_view> size;
};

// "LEN key=value\n" after each other.
void read_records(std::string_view text, Records& records) {
  while (!text.empty()) {
    std::size_t length = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), length);
    const auto digits = static_cast<std::size_t>(result.ptr - text.data());
    if (result.ec != std::errc() || length > text.size() || length < digits + 3)
      throw SparseProblem("a pax record is malformed");
    const auto record = text.substr(digits + 1, length - digits - 2);
    text.remove_prefix(length);
    const auto equals = record.find('=');
    if (equals == std::string_view::npos) throw SparseProblem("a pax record is malformed");
    const auto key = record.substr(0, equals);
    for (auto [known, slot] : {std::pair{kMapKey, &records.map}, std::pair{kSizeKey, &records.size}}) {
      if (key != known) continue;
      if (*slot) throw SparseProblem(fmt::format("{} is there twice", known));
      *slot = record.substr(equals + 1);
    }
  }
}

std::size_t octal_size(std::string_view block) {
  std::size_t value = 0;
  for (const char c : block.substr(124, 12)) {
    if (c >= '0' && c <= '7') value = value * 8 + static_cast<std::size_t>(c - '0');
  }
  return value;
}

}  // namespace

std::optional<SparseFile> find_sparse_records(std::string_view headers) {
  Records records;
  while (headers.size() >= kTarBlock) {
    const char type = headers[156];
    const bool is_extension = type == 'x' || type == 'X' || type == 'g' || type == 'L' || type == 'K';
    if (!is_extension) break;
    const auto size = octal_size(headers);
    headers.remove_prefix(kTarBlock);
    if (size > headers.size()) throw SparseProblem("an extended header is longer than the archive");
    if (type == 'x' || type == 'X') read_records(headers.substr(0, size), records);
    headers.remove_prefix(std::min(headers.size(), (size + kTarBlock - 1) / kTarBlock * kTarBlock));
  }
  if (!records.map && !records.size) return std::nullopt;
  if (!records.map || !records.size)
    throw SparseProblem("COCOON.sparse.map and COCOON.sparse.size belong together, and one is missing");
  SparseFile file;
  Text size(*records.size);
  file.size = size.number("COCOON.sparse.size");
  if (!size.empty()) throw SparseProblem("COCOON.sparse.size: it is malformed");
  file.extents = parse_map(*records.map);
  return file;
}

std::string problem_of(const SparseFile& file) {
  std::int64_t end = 0;
  for (const auto& [offset, length] : file.extents) {
    if (offset < end)
      return fmt::format("its map of holes is out of order: data at {} follows data up to {}", offset, end);
    if (length > file.size || offset > file.size - length)
      return fmt::format("its map of holes has {} bytes at {}, beyond its size of {}", length, offset, file.size);
    end = offset + length;
  }
  return "";
}

}  // namespace cocoon::system
