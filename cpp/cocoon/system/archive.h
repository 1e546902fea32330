#pragma once
// Flat archives of plain files with holes: tar in the pax format. Written so that any modern tar restores them (GNU
// sparse 1.0), read from GNU tar, libarchive and the Go engine (whose own sparse records are COCOON.sparse.map and
// COCOON.sparse.size). Streaming both ways: no file is held in memory, no archive is sought in.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/system/byte_stream.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

struct Extent {
  std::int64_t offset = 0;
  std::int64_t length = 0;
  bool operator==(const Extent&) const = default;
};

// Where a file of `size` bytes has data, in order; what lies between is holes.
std::vector<Extent> find_extents(int fd, std::int64_t size, const Path& shown);

// What a member may be called: 1 to 255 printable ASCII characters without '/' and '\\', and neither "." nor "..".
bool is_member_name(std::string_view name);

enum class SparseRecords : std::uint8_t {
  kGnu,     // GNU.sparse 1.0: tar, libarchive, Go's own reader
  kCocoon,  // the Go engine's
};

class ArchiveWriter {
 public:
  // `out` must outlive it. Without finish() the archive is incomplete.
  ArchiveWriter(ByteSink& out, SparseRecords records);
  ~ArchiveWriter();
  ArchiveWriter(const ArchiveWriter&) = delete;
  ArchiveWriter& operator=(const ArchiveWriter&) = delete;

  void add_text(const std::string& name, std::string_view text, std::int64_t mtime_s);
  // A regular file; `advanced` hears of each piece of data. Errors StoreError.
  void add_file(const std::string& name, const Path& file, Cancel& cancel,
                const std::function<void(std::int64_t bytes)>& advanced);
  void finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// What an archive from outside may hold.
struct ArchiveLimits {
  std::int64_t members = 1024;
  std::int64_t bytes = std::int64_t{1} << 46;  // logical, of all files
  ExpansionLimit expansion;
};

// Takes nothing on trust. Members are regular files, each name once and plain ("./name" is name, and "./" itself is
// passed over). Maps of holes must be in order, within the
// file and just what the data fills. The end must be marked, with nothing behind it.
// Errors   CorruptSnapshot naming archive and member.
class ArchiveReader {
 public:
  // `in` must outlive it, and is read to its end. `shown` for messages.
  ArchiveReader(ByteSource& in, Path shown, const ArchiveLimits& limits);
  ~ArchiveReader();
  ArchiveReader(const ArchiveReader&) = delete;
  ArchiveReader& operator=(const ArchiveReader&) = delete;

  // The next member; false at the end. One that was not taken is passed over.
  bool next();
  [[nodiscard]] const std::string& name() const;
  [[nodiscard]] std::int64_t size() const;  // logical

  // Takes the member: its bytes as text, at most `max_bytes`.
  std::string text(std::size_t max_bytes);
  // Takes the member: a new file (0600) in `folder`. Holes stay holes, and blocks of zeros become some.
  // Errors   also StoreError: it exists, or the disk is full. An unfinished file stays.
  void extract_to(const Path& folder, Cancel& cancel);

  // For whoever finds something wrong with what is in the current member.
  [[noreturn]] void refuse(const std::string& why) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cocoon::system
