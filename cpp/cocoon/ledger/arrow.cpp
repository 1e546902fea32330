#include "cocoon/ledger/arrow.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cocoon/metering/entry_view.h"

namespace cocoon::ledger {
namespace {

std::atomic<std::int64_t> exports{0};

struct Counted {
  Counted() { ++exports; }
  ~Counted() { --exports; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
};

// ------------------------------------------------------------------------------------------------------- schemas

struct SchemaParts : Counted {
  std::string format;
  std::string name;
  std::vector<ArrowSchema> children;
  std::vector<ArrowSchema*> child_pointers;
  ArrowSchema dictionary{};
};

void release_schema(ArrowSchema* schema) {
  auto* const parts = static_cast<SchemaParts*>(schema->private_data);
  // A taker may have moved a part out; then its release is null.
  for (ArrowSchema& child : parts->children) {
    if (child.release != nullptr) child.release(&child);
  }
  if (parts->dictionary.release != nullptr) parts->dictionary.release(&parts->dictionary);
  delete parts;
  schema->release = nullptr;
}

void make_schema(ArrowSchema& out, std::string format, std::string name, std::int64_t flags,
                 std::vector<ArrowSchema> children = {}, const ArrowSchema* dictionary = nullptr) {
  auto parts = std::make_unique<SchemaParts>();
  parts->format = std::move(format);
  parts->name = std::move(name);
  parts->children = std::move(children);
  for (ArrowSchema& child : parts->children) parts->child_pointers.push_back(&child);
  if (dictionary != nullptr) parts->dictionary = *dictionary;
  out = {};
  out.format = parts->format.c_str();
  out.name = parts->name.c_str();
  out.flags = flags;
  out.n_children = static_cast<std::int64_t>(parts->children.size());
  out.children = parts->child_pointers.data();
  out.dictionary = dictionary == nullptr ? nullptr : &parts->dictionary;
  out.release = &release_schema;
  out.private_data = parts.release();
}

void make_column_schema(ArrowSchema& out, const Column& column) {
  switch (column.type()) {
    case ColumnType::kText:
      make_schema(out, "U", column.name(), ARROW_FLAG_NULLABLE);
      return;
    case ColumnType::kSymbol: {
      ArrowSchema values{};
      make_schema(values, "U", "", 0);
      make_schema(out, "i", column.name(), ARROW_FLAG_NULLABLE, {}, &values);
      return;
    }
    case ColumnType::kInteger:
      make_schema(out, "l", column.name(), ARROW_FLAG_NULLABLE);
      return;
    case ColumnType::kReal:
      make_schema(out, "g", column.name(), ARROW_FLAG_NULLABLE);
      return;
    case ColumnType::kBoolean:
      make_schema(out, "b", column.name(), ARROW_FLAG_NULLABLE);
      return;
    case ColumnType::kTime:
      make_schema(out, "tsn:UTC", column.name(), ARROW_FLAG_NULLABLE);
      return;
    case ColumnType::kLabels: {
      std::vector<ArrowSchema> pair(2);
      make_schema(pair[0], "u", "key", 0);
      make_schema(pair[1], "u", "value", ARROW_FLAG_NULLABLE);
      std::vector<ArrowSchema> entries(1);
      make_schema(entries[0], "+s", "entries", 0, std::move(pair));
      make_schema(out, "+m", column.name(), ARROW_FLAG_NULLABLE | ARROW_FLAG_MAP_KEYS_SORTED, std::move(entries));
      return;
    }
  }
}

// -------------------------------------------------------------------------------------------------------- arrays

// Zeros that cost no memory until somebody writes to them, which nobody does.
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Zeros = std::unique_ptr<void, Free>;

struct ArrayParts : Counted {
  std::shared_ptr<const Table> table;  // whose buffers these are
  std::vector<Zeros> zeros;
  std::vector<Buffer<char>> texts;  // made for this array
  std::vector<Buffer<std::int32_t>> offsets;
  std::vector<Buffer<std::int64_t>> long_offsets;
  std::vector<Buffer<std::uint8_t>> bits;
  std::array<const void*, 3> buffers{};
  std::vector<ArrowArray> children;
  std::vector<ArrowArray*> child_pointers;
  ArrowArray dictionary{};
};

void release_array(ArrowArray* array) {
  auto* const parts = static_cast<ArrayParts*>(array->private_data);
  for (ArrowArray& child : parts->children) {
    if (child.release != nullptr) child.release(&child);
  }
  if (parts->dictionary.release != nullptr) parts->dictionary.release(&parts->dictionary);
  delete parts;
  array->release = nullptr;
}

void hand_out(ArrowArray& out, std::unique_ptr<ArrayParts> parts, std::size_t length, std::size_t nulls,
              std::size_t buffers) {
  out = {};
  out.length = static_cast<std::int64_t>(length);
  out.null_count = static_cast<std::int64_t>(nulls);
  out.n_buffers = static_cast<std::int64_t>(buffers);
  out.buffers = parts->buffers.data();
  for (ArrowArray& child : parts->children) parts->child_pointers.push_back(&child);
  out.n_children = static_cast<std::int64_t>(parts->children.size());
  out.children = parts->child_pointers.data();
  out.dictionary = parts->dictionary.release == nullptr ? nullptr : &parts->dictionary;
  out.release = &release_array;
  out.private_data = parts.release();
}

// The column's buffer, or where it ends early, one that goes on to `size` with zeros.
template <typename Number>
const void* whole(ArrayParts& parts, const Buffer<Number>& buffer, std::size_t size) {
  if (buffer.size() >= size && size > 0) return buffer.data();
  void* const longer = std::calloc(size == 0 ? 1 : size, sizeof(Number));
  if (longer == nullptr) throw std::bad_alloc();
  parts.zeros.emplace_back(longer);
  if (buffer.size() > 0) std::memcpy(longer, buffer.data(), buffer.size() * sizeof(Number));
  return longer;
}

template <typename Offset>
struct Texts {
  Buffer<char> characters;
  Buffer<Offset> offsets;
  Texts() { offsets.push_back(0); }
  void add(std::string_view text) {
    characters.append(text.data(), text.size());
    offsets.push_back(static_cast<Offset>(characters.size()));
  }
};

void set_texts(ArrayParts& parts, Texts<std::int64_t> texts) {
  parts.texts.push_back(std::move(texts.characters));
  parts.long_offsets.push_back(std::move(texts.offsets));
  parts.buffers[1] = parts.long_offsets.back().data();
  parts.buffers[2] = whole(parts, parts.texts.back(), parts.texts.back().size());
}

void make_texts(ArrowArray& out, Texts<std::int32_t> texts) {
  auto parts = std::make_unique<ArrayParts>();
  const std::size_t length = texts.offsets.size() - 1;
  parts->texts.push_back(std::move(texts.characters));
  parts->offsets.push_back(std::move(texts.offsets));
  parts->buffers[1] = parts->offsets.back().data();
  parts->buffers[2] = whole(*parts, parts->texts.back(), parts->texts.back().size());
  hand_out(out, std::move(parts), length, 0, 3);
}

// The labels' texts parsed, each different one once.
void make_labels(ArrayParts& parts, const Column& column) {
  std::vector<std::map<std::string, std::string>> parsed;
  for (const std::string& text : column.symbols().texts()) {
    parsed.push_back(text.empty() ? std::map<std::string, std::string>() : metering::parse_labels(text));
  }
  Texts<std::int32_t> keys;
  Texts<std::int32_t> values;
  Buffer<std::int32_t> offsets;
  offsets.push_back(0);
  for (std::size_t row = 0; row < column.size(); ++row) {
    if (!column.is_null(row)) {
      for (const auto& [key, value] : parsed[static_cast<std::size_t>(column.indices()[row]) + 1]) {
        keys.add(key);
        values.add(value);
      }
    }
    offsets.push_back(static_cast<std::int32_t>(keys.offsets.size() - 1));
  }
  auto entries = std::make_unique<ArrayParts>();
  const std::size_t pairs = keys.offsets.size() - 1;
  entries->children.resize(2);
  make_texts(entries->children[0], std::move(keys));
  make_texts(entries->children[1], std::move(values));
  parts.children.resize(1);
  hand_out(parts.children[0], std::move(entries), pairs, 0, 1);
  parts.offsets.push_back(std::move(offsets));
  parts.buffers[1] = parts.offsets.back().data();
}

void make_column(ArrowArray& out, const std::shared_ptr<const Table>& table, const Column& column) {
  auto parts = std::make_unique<ArrayParts>();
  parts->table = table;
  const std::size_t rows = column.size();
  if (column.null_count() > 0) parts->buffers[0] = whole(*parts, column.valid(), (rows + 7) / 8);
  std::size_t buffers = 2;
  switch (column.type()) {
    case ColumnType::kText:
      parts->buffers[1] = column.offsets().data();
      parts->buffers[2] = whole(*parts, column.characters(), column.characters().size());
      buffers = 3;
      break;
    case ColumnType::kSymbol: {
      parts->buffers[1] = whole(*parts, column.indices(), rows);
      Texts<std::int64_t> texts;
      const auto& all = column.symbols().texts();
      for (auto text = all.begin() + 1; text != all.end(); ++text) texts.add(*text);
      auto values = std::make_unique<ArrayParts>();
      const std::size_t count = texts.offsets.size() - 1;
      set_texts(*values, std::move(texts));
      hand_out(parts->dictionary, std::move(values), count, 0, 3);
      break;
    }
    case ColumnType::kInteger:
    case ColumnType::kTime:
      parts->buffers[1] = whole(*parts, column.integers(), rows);
      break;
    case ColumnType::kReal:
      parts->buffers[1] = whole(*parts, column.reals(), rows);
      break;
    case ColumnType::kBoolean:
      parts->buffers[1] = whole(*parts, column.booleans(), (rows + 7) / 8);
      break;
    case ColumnType::kLabels:
      make_labels(*parts, column);
      break;
  }
  hand_out(out, std::move(parts), rows, column.null_count(), buffers);
}

// -------------------------------------------------------------------------------------------------------- stream

struct StreamParts : Counted {
  std::shared_ptr<const Table> table;
  bool given = false;
  std::string error;
};

// Exceptions end here: a taker is written in C.
template <typename Make>
int guarded(ArrowArrayStream* stream, Make&& make) {
  auto& parts = *static_cast<StreamParts*>(stream->private_data);
  try {
    make(parts);
    return 0;
  } catch (const std::bad_alloc&) {
    parts.error = "no memory";
    return ENOMEM;
  } catch (const std::exception& error) {
    parts.error = error.what();
    return EIO;
  }
}

int get_schema(ArrowArrayStream* stream, ArrowSchema* out) {
  return guarded(stream, [out](StreamParts& parts) {
    std::vector<ArrowSchema> columns(parts.table->columns().size());
    for (std::size_t i = 0; i < columns.size(); ++i) make_column_schema(columns[i], parts.table->columns()[i]);
    make_schema(*out, "+s", "", 0, std::move(columns));
  });
}

int get_next(ArrowArrayStream* stream, ArrowArray* out) {
  return guarded(stream, [out](StreamParts& parts) {
    *out = {};
    if (parts.given) return;
    auto batch = std::make_unique<ArrayParts>();
    const auto& columns = parts.table->columns();
    batch->children.resize(columns.size());
    for (std::size_t i = 0; i < columns.size(); ++i) make_column(batch->children[i], parts.table, columns[i]);
    hand_out(*out, std::move(batch), parts.table->rows(), 0, 1);
    parts.given = true;
  });
}

const char* get_last_error(ArrowArrayStream* stream) {
  const auto& error = static_cast<StreamParts*>(stream->private_data)->error;
  return error.empty() ? nullptr : error.c_str();
}

void release_stream(ArrowArrayStream* stream) {
  delete static_cast<StreamParts*>(stream->private_data);
  stream->release = nullptr;
}

}  // namespace

void export_stream(std::shared_ptr<const Table> table, ArrowArrayStream& out) {
  auto parts = std::make_unique<StreamParts>();
  parts->table = std::move(table);
  out = {};
  out.get_schema = &get_schema;
  out.get_next = &get_next;
  out.get_last_error = &get_last_error;
  out.release = &release_stream;
  out.private_data = parts.release();
}

std::int64_t arrow_exports() { return exports; }

}  // namespace cocoon::ledger
