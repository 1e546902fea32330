#pragma once
// What an archive says of itself beside its data: two JSON files in the Go engine's format.
//
//   cocoon.json    the Go engine's, in each of its snapshots: which machine its data belongs to
//   snapshot.json  first in an archive, last into an exported folder: name, description, size of the machine
//
// Both come from outside when a snapshot is imported: types, ranges, roles and paths are checked, keys we do not know
// are ignored. Errors   CorruptSnapshot naming file and key, unless said otherwise.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/snapshot/local_file.h"
#include "cocoon/system/file.h"

namespace cocoon::snapshot {

inline constexpr const char* kMetadataFile = "cocoon.json";
inline constexpr const char* kEnvelopeFile = "snapshot.json";

struct DiskMetadata {
  std::string file;  // name in the snapshot's folder; "": it is outside
  std::string path;  // absolute path of a disk outside (a shared layer); "": it is inside
  std::string role;  // layer, cow, cidata, data
  std::string serial;
  bool readonly = false;
  bool operator==(const DiskMetadata&) const = default;
};

struct Metadata {
  std::int64_t cpu = 0;  // 0: not said, as the next
  std::int64_t mem_bytes = 0;
  std::string kernel;  // absolute, as the next two
  std::string initrd;
  std::string firmware;
  std::string cmdline;
  std::vector<DiskMetadata> disks;  // in the order in which the machine has them
  bool operator==(const Metadata&) const = default;
};

// `folder` is where the snapshot's files are: a disk is inside if it is named plainly, or (as the Go engine writes it)
// by its absolute path in a run dir while a file of that name is here.
Metadata parse_metadata(std::string_view text, const system::Path& folder);

// nullopt: the snapshot has none.
std::optional<Metadata> find_metadata(const system::Path& folder);
// Every file that it names is in the snapshot, or lies in a folder that may be named, by a path without detours.
void check_paths(const Metadata& metadata, const system::Path& folder, const Trust& trust);

// snapshot.json.
struct Envelope {
  std::string id;  // of the snapshot it was exported from
  std::string name;
  std::string description;
  std::string hypervisor;
  std::int64_t cpu = 0;
  std::int64_t mem_bytes = 0;
  std::int64_t storage_bytes = 0;
  bool operator==(const Envelope&) const = default;
};

Envelope envelope_of(const lifecycle::SnapshotRecord& record);
std::string to_json(const Envelope& envelope);
// `path` of the archive or folder, for messages.
Envelope parse_envelope(std::string_view text, const system::Path& path);

}  // namespace cocoon::snapshot
