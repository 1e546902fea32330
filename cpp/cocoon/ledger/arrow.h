#pragma once
// A table as an Arrow stream (the C data and C stream interfaces, https://arrow.apache.org/docs/format): one record
// batch whose buffers are the table's own. Whoever takes an array keeps the table alive until it is released.

#include <cstdint>
#include <memory>

#include "cocoon/ledger/table.h"

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

// NOLINTBEGIN(modernize-macro-to-enum,cppcoreguidelines-macro-to-enum): as the specification has them.
#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4
// NOLINTEND(modernize-macro-to-enum,cppcoreguidelines-macro-to-enum)

extern "C" {

struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  int64_t flags;
  int64_t n_children;
  struct ArrowSchema** children;
  struct ArrowSchema* dictionary;
  void (*release)(struct ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void** buffers;
  struct ArrowArray** children;
  struct ArrowArray* dictionary;
  void (*release)(struct ArrowArray*);
  void* private_data;
};

}  // extern "C"

#endif  // ARROW_C_DATA_INTERFACE

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

extern "C" {

struct ArrowArrayStream {
  int (*get_schema)(struct ArrowArrayStream*, struct ArrowSchema* out);
  int (*get_next)(struct ArrowArrayStream*, struct ArrowArray* out);
  const char* (*get_last_error)(struct ArrowArrayStream*);
  void (*release)(struct ArrowArrayStream*);
  void* private_data;
};

}  // extern "C"

#endif  // ARROW_C_STREAM_INTERFACE

namespace cocoon::ledger {

// Owns  `out`, which its taker releases.
void export_stream(std::shared_ptr<const Table> table, ArrowArrayStream& out);

// Streams, schemas and arrays, their parts included, that were handed out and not released yet.
std::int64_t arrow_exports();

}  // namespace cocoon::ledger
