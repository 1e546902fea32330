#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/error.h"
#include "cocoon/snapshot/metadata.h"
#include "cocoon/snapshot/transfer.h"
#include "cocoon/system/atomic_file.h"

namespace cocoon::snapshot {
namespace {

class CountingSink final : public system::ByteSink {
 public:
  explicit CountingSink(system::ByteSink& out) : out_(out) {}
  void write(std::string_view bytes) override {
    out_.write(bytes);
    count_ += static_cast<std::int64_t>(bytes.size());
  }
  [[nodiscard]] std::int64_t count() const { return count_; }

 private:
  system::ByteSink& out_;
  std::int64_t count_ = 0;
};

std::int64_t data_bytes(const system::Path& path) {
  const system::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0)
    throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
  std::int64_t bytes = 0;
  for (const auto& extent : system::find_extents(fd.get(), status.st_size, path)) bytes += extent.length;
  return bytes;
}

// The folder that is being filled, gone again unless kept: what was in it is ours, for it was empty.
class ExportFolder {
 public:
  explicit ExportFolder(const system::Path& path) : path_(path) {
    struct stat status{};
    existed_ = ::stat(path.c_str(), &status) == 0;
    system::make_private_dirs(path);
    if (!system::list_dir(path).empty())
      throw InvalidArgument(fmt::format("export to {}: the folder is not empty", path.string()));
    ours_ = true;
  }
  ~ExportFolder() {
    if (!ours_) return;
    try {
      if (!existed_) system::remove_tree(path_);
      if (!existed_) return;
      for (const auto& name : system::list_dir(path_)) system::remove_tree(path_ / name);
    } catch (const std::exception& error) {
      spdlog::warn("export to {}: taking back what was made: {}", path_.string(), error.what());
    }
  }
  ExportFolder(const ExportFolder&) = delete;
  ExportFolder& operator=(const ExportFolder&) = delete;
  void keep() { ours_ = false; }

 private:
  const system::Path& path_;
  bool existed_ = false;
  bool ours_ = false;
};

}  // namespace

std::int64_t export_to(const LocalFile& store, std::string_view ref, system::ByteSink& out,
                       const ExportOptions& options, system::Cancel& cancel) {
  const auto use = store.use(ref, cancel);
  const auto names = system::list_dir(use.dir());
  std::int64_t total = 0;
  if (options.progress)
    for (const auto& name : names) total += data_bytes(use.dir() / name);
  std::int64_t done = 0;
  const auto advanced = [&](std::int64_t bytes) {
    done += bytes;
    options.progress(done, total);
  };

  CountingSink counted(out);
  const auto compressor = system::make_compressor(options.compression, counted);
  system::ArchiveWriter writer(*compressor, options.sparse_records);
  constexpr std::int64_t kSecond = 1'000'000'000;
  writer.add_text(kEnvelopeFile, to_json(envelope_of(use.record())), use.record().created_at_ns / kSecond);
  for (const auto& name : names)
    writer.add_file(name, use.dir() / name, cancel, options.progress ? advanced : std::function<void(std::int64_t)>());
  writer.finish();
  compressor->finish();
  return counted.count();
}

std::int64_t export_file(const LocalFile& store, std::string_view ref, const system::Path& path,
                         const ExportOptions& options, system::Cancel& cancel) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    const system::Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
    if (!fd) throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
    system::FdSink sink(fd.get(), path, cancel);
    const auto bytes = export_to(store, ref, sink, options, cancel);
    sink.flush();
    return bytes;
  }
  system::AtomicFile file(path);
  system::FdSink sink(file.fd(), path, cancel);
  const auto bytes = export_to(store, ref, sink, options, cancel);
  sink.flush();
  file.publish();
  return bytes;
}

void export_dir(const LocalFile& store, std::string_view ref, const system::Path& folder, system::Cancel& cancel) {
  const auto use = store.use(ref, cancel);
  ExportFolder target(folder);
  for (const auto& name : system::list_dir(use.dir())) system::copy_file(use.dir() / name, folder / name, cancel);
  // Die before this: a folder without snapshot.json, which nobody takes for an export.
  system::write_text_atomic(folder / kEnvelopeFile, to_json(envelope_of(use.record())));
  target.keep();
}

}  // namespace cocoon::snapshot
