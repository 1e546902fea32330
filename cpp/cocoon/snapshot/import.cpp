#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/snapshot/metadata.h"
#include "cocoon/snapshot/transfer.h"

namespace cocoon::snapshot {
namespace {

constexpr std::size_t kMaxEnvelope = 1 << 20;

// Tells how far reading is.
class ProgressSource final : public system::ByteSource {
 public:
  ProgressSource(system::ByteSource& in, std::optional<std::int64_t> total, const system::Progress& progress)
      : in_(in), total_(total), progress_(progress) {}
  std::string_view read() override {
    const auto bytes = in_.read();
    done_ += static_cast<std::int64_t>(bytes.size());
    if (progress_ && !bytes.empty()) progress_(done_, total_);
    return bytes;
  }

 private:
  system::ByteSource& in_;
  std::optional<std::int64_t> total_;
  const system::Progress& progress_;
  std::int64_t done_ = 0;
};

[[noreturn]] void refuse(const system::Path& path, const std::string& member, const std::string& why) {
  throw CorruptSnapshot(fmt::format("snapshot {}: {}: {}", path.string(), member, why), path.string(), member);
}

Spec spec_of(const Envelope& envelope, const ImportOptions& options) {
  return {.name = options.name.value_or(envelope.name),
          .description = options.description.value_or(envelope.description),
          .hypervisor = envelope.hypervisor,
          .vm_id = {},
          .cpu = envelope.cpu,
          .mem_bytes = envelope.mem_bytes,
          .storage_bytes = envelope.storage_bytes};
}

// What arrives with data files, and where they go.
class Arrival {
 public:
  Arrival(LocalFile& store, system::Path shown, const ImportOptions& options)
      : store_(store), shown_(std::move(shown)), options_(options), staging_(store.stage()) {}

  [[nodiscard]] const system::Path& dir() const { return staging_.dir(); }

  // The name is taken as soon as it is known.
  void reserve(const Spec& spec) { store_.reserve(staging_, spec); }
  void reserve(const Envelope& envelope) {
    try {
      reserve(spec_of(envelope, options_));
    } catch (const InvalidArgument& error) {
      if (options_.name || options_.description) throw;
      refuse(shown_, kEnvelopeFile, error.what());
    }
  }

  SnapshotRecord publish(system::Cancel& cancel) {
    if (const auto metadata = find_metadata_here()) {
      auto trust = store_.trust();
      trust.allowed.insert(trust.allowed.end(), options_.allowed_paths.begin(), options_.allowed_paths.end());
      try {
        check_paths(*metadata, dir(), trust);
      } catch (const CorruptSnapshot& error) {
        rename(error);
      }
    }
    return store_.publish(std::move(staging_), cancel);
  }

 private:
  std::optional<Metadata> find_metadata_here() const {
    try {
      return find_metadata(dir());
    } catch (const CorruptSnapshot& error) {
      rename(error);
    }
  }

  // The user knows the archive, not our folder.
  [[noreturn]] void rename(const CorruptSnapshot& error) const {
    std::string message = error.what();
    if (const auto at = message.find(dir().string()); at != std::string::npos)
      message.replace(at, dir().string().size(), shown_.string());
    throw CorruptSnapshot(message, shown_.string(), error.member);
  }

  LocalFile& store_;
  system::Path shown_;
  const ImportOptions& options_;
  Staging staging_;
};

// Copies the plain files of a folder; snapshot.json is `take_envelope`'s.
template <typename TakeEnvelope>
void copy_folder(const system::Path& from, const system::Path& to, const ImportOptions& options, system::Cancel& cancel,
                 TakeEnvelope take_envelope) {
  struct File {
    std::string name;
    std::int64_t size;
  };
  std::vector<File> files;
  std::int64_t total = 0;
  for (const auto& name : system::list_dir(from)) {
    struct stat status{};
    if (::lstat((from / name).c_str(), &status) != 0)
      throw StoreError(system_message("stat " + (from / name).string(), errno), (from / name).string(), errno);
    if (!S_ISREG(status.st_mode)) refuse(from, name, "it is not a regular file");
    if (!system::is_member_name(name)) refuse(from, name, "its name is not plain ASCII");
    total += status.st_size;
    files.push_back({name, status.st_size});
  }
  if (std::cmp_greater(files.size(), options.limits.members))
    refuse(from, "", fmt::format("it has {} files, allowed: {}", files.size(), options.limits.members));
  std::int64_t done = 0;
  for (const auto& [name, size] : files) {
    cancel.check();
    if (name == kEnvelopeFile)
      take_envelope(from / name);
    else
      system::copy_file(from / name, to / name, cancel);
    done += size;
    if (options.progress) options.progress(done, total);
  }
}

bool is_folder(const system::Path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
  return S_ISDIR(status.st_mode);
}

// A file or pipe, and how long it is if that can be known.
class OpenSource {
 public:
  OpenSource(const system::Path& path, system::Cancel& cancel)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)) {
    struct stat status{};
    if (!fd_ || ::fstat(fd_.get(), &status) != 0)
      throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
    if (S_ISREG(status.st_mode)) total_ = status.st_size;
    source_.emplace(fd_.get(), path, cancel);
  }
  [[nodiscard]] system::ByteSource& source() { return *source_; }
  [[nodiscard]] std::optional<std::int64_t> total() const { return total_; }

 private:
  system::Fd fd_;
  std::optional<std::int64_t> total_;
  std::optional<system::FdSource> source_;
};

// Before the data is read in vain; reserving decides.
void check_free(const LocalFile& store, const std::string& name) {
  if (name.empty()) return;
  lifecycle::check_name(name);
  for (const auto& record : store.list())
    if (record.name == name)
      throw AlreadyExists(fmt::format("snapshot {}: this name is taken by {}", name, record.id), name, record.id);
}

SnapshotRecord import_folder(LocalFile& store, const system::Path& path, const ImportOptions& options,
                             system::Cancel& cancel) {
  // The envelope says that the folder is complete, so it comes first here.
  const auto text = system::find_text(path / kEnvelopeFile, kMaxEnvelope);
  if (!text) refuse(path, kEnvelopeFile, "it is missing: this is no exported snapshot, or an unfinished one");
  Arrival arrival(store, path, options);
  arrival.reserve(parse_envelope(*text, path));
  copy_folder(path, arrival.dir(), options, cancel, [](const system::Path& /*envelope*/) {});
  return arrival.publish(cancel);
}

}  // namespace

SnapshotRecord import_from(LocalFile& store, system::ByteSource& in, const system::Path& shown,
                           std::optional<std::int64_t> total, const ImportOptions& options, system::Cancel& cancel) {
  if (options.name) check_free(store, *options.name);
  ProgressSource source(in, total, options.progress);
  Arrival arrival(store, shown, options);
  system::ArchiveReader reader(source, shown, options.limits);
  bool has_envelope = false;
  while (reader.next()) {
    cancel.check();
    if (reader.name() == kEnvelopeFile) {
      arrival.reserve(parse_envelope(reader.text(kMaxEnvelope), shown));
      has_envelope = true;
    } else {
      reader.extract_to(arrival.dir(), cancel);
    }
  }
  if (!has_envelope) refuse(shown, kEnvelopeFile, "it is missing: this is no archive of a snapshot");
  return arrival.publish(cancel);
}

SnapshotRecord import_path(LocalFile& store, const system::Path& path, const ImportOptions& options,
                           system::Cancel& cancel) {
  if (options.name) check_free(store, *options.name);
  if (is_folder(path)) return import_folder(store, path, options, cancel);
  OpenSource opened(path, cancel);
  return import_from(store, opened.source(), path, opened.total(), options, cancel);
}

SnapshotRecord create_from(LocalFile& store, system::ByteSource& in, const system::Path& shown, const Spec& spec,
                           const ImportOptions& options, system::Cancel& cancel) {
  ProgressSource source(in, {}, options.progress);
  Arrival arrival(store, shown, options);
  arrival.reserve(spec);
  system::ArchiveReader reader(source, shown, options.limits);
  while (reader.next()) {
    cancel.check();
    if (reader.name() == kEnvelopeFile) reader.refuse("it belongs to an exported snapshot, which is imported");
    reader.extract_to(arrival.dir(), cancel);
  }
  return arrival.publish(cancel);
}

SnapshotRecord create_from_path(LocalFile& store, const system::Path& path, const Spec& spec,
                                const ImportOptions& options, system::Cancel& cancel) {
  if (!is_folder(path)) {
    OpenSource opened(path, cancel);
    return create_from(store, opened.source(), path, spec, options, cancel);
  }
  Arrival arrival(store, path, options);
  arrival.reserve(spec);
  copy_folder(path, arrival.dir(), options, cancel, [](const system::Path& envelope) {
    throw InvalidArgument(
        fmt::format("create snapshot: {} belongs to an exported snapshot, which is imported", envelope.string()));
  });
  return arrival.publish(cancel);
}

}  // namespace cocoon::snapshot
