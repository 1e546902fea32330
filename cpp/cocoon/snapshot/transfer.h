#pragma once
// Snapshots on their way in and out of the store: folders of data files, and archives of them (system/archive.h).
//
// Errors   NotFound, AmbiguousRef, AlreadyExists, InvalidState, InvalidArgument, StoreError, Cancelled; CorruptSnapshot
//          naming archive and member for what comes from outside. Whatever fails leaves nothing behind.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/snapshot/local_file.h"
#include "cocoon/system/archive.h"
#include "cocoon/system/byte_stream.h"

namespace cocoon::snapshot {

struct ExportOptions {
  system::Compression compression = system::Compression::kNone;
  system::SparseRecords sparse_records = system::SparseRecords::kGnu;
  system::Progress progress;  // bytes of data, all of it known
};

// Bytes written. The first entry is snapshot.json.
std::int64_t export_to(const LocalFile& store, std::string_view ref, system::ByteSink& out,
                       const ExportOptions& options, system::Cancel& cancel);
// The same into a file, which appears whole or not at all; into a device or a pipe as it comes.
// Durable  on return.
std::int64_t export_file(const LocalFile& store, std::string_view ref, const system::Path& path,
                         const ExportOptions& options, system::Cancel& cancel);
// A folder of the data files, by reflink where that can be; snapshot.json comes last and says that all is there.
// Errors   InvalidArgument: the folder is there and not empty.
void export_dir(const LocalFile& store, std::string_view ref, const system::Path& folder, system::Cancel& cancel);

struct ImportOptions {
  std::optional<std::string> name;  // nullopt: as the archive says
  std::optional<std::string> description;
  system::ArchiveLimits limits;
  std::vector<system::Path> allowed_paths;  // folders that cocoon.json may name files in, beside the node's own
  system::Progress progress;                // bytes read
};

// An exported one; `shown` and `total` bytes, if known, for messages and progress.
SnapshotRecord import_from(LocalFile& store, system::ByteSource& in, const system::Path& shown,
                           std::optional<std::int64_t> total, const ImportOptions& options, system::Cancel& cancel);
// An archive file, or an exported folder.
SnapshotRecord import_path(LocalFile& store, const system::Path& path, const ImportOptions& options,
                           system::Cancel& cancel);

// A new one from data files alone: a folder of them, or an archive. Of `options` name and description do not count.
SnapshotRecord create_from(LocalFile& store, system::ByteSource& in, const system::Path& shown, const Spec& spec,
                           const ImportOptions& options, system::Cancel& cancel);
SnapshotRecord create_from_path(LocalFile& store, const system::Path& path, const Spec& spec,
                                const ImportOptions& options, system::Cancel& cancel);

}  // namespace cocoon::snapshot
