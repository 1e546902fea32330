#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/archive.h"
#include "cocoon/system/path_error.h"
#include "cocoon/system/sparse_records.h"

namespace cocoon::system {
namespace {

constexpr std::int64_t kTarBlock = 512;
constexpr std::int64_t kEndMark = 2 * kTarBlock;
constexpr std::size_t kHoleBlock = 4096;  // what file systems allocate
constexpr std::size_t kLongestName = 255;

struct FreeArchive {
  void operator()(::archive* archive) const { ::archive_read_free(archive); }
};

bool is_zero(std::string_view bytes) {
  return bytes.empty() || (bytes.front() == '\0' && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// Hands blocks to libarchive and keeps those in which the headers of the current member lie: it does not tell all that
// stands in them.
class Tap {
 public:
  explicit Tap(ByteSource& in) : in_(in) {}

  std::string_view read() {
    if (keeping_ && kept_.empty() && !block_.empty()) {
      kept_begin_ = keep_from_;
      kept_ = block_.substr(static_cast<std::size_t>(keep_from_ - begin_));
    }
    begin_ += static_cast<std::int64_t>(block_.size());
    if (keeping_ && kept_.empty()) kept_begin_ = begin_;
    block_ = in_.read();
    if (keeping_) kept_ += block_;
    return block_;
  }

  // From now on everything from `position` on is kept, until release(). Requires that it is in the last block or
  // behind it, or was kept all the time.
  void keep(std::int64_t position) {
    if (keeping_) return;
    keeping_ = true;
    keep_from_ = position;
    kept_.clear();
  }
  void release() { keeping_ = false; }

  // What was kept, from `position` to as far as was read.
  [[nodiscard]] std::string_view from(std::int64_t position) const {
    if (!kept_.empty()) return std::string_view(kept_).substr(static_cast<std::size_t>(position - kept_begin_));
    return block_.substr(static_cast<std::size_t>(position - begin_));
  }

 private:
  ByteSource& in_;
  std::string_view block_;  // the last one
  std::int64_t begin_ = 0;  // where it stands in the stream
  bool keeping_ = false;
  std::int64_t keep_from_ = 0;
  std::string kept_;  // empty: all of it is in the block
  std::int64_t kept_begin_ = 0;
};

// A new file that data is written into piece by piece, holes left out.
class Output {
 public:
  Output(const Path& path, std::int64_t size)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)) {
    if (!fd_) throw_store_error("create", path_);
    if (::ftruncate(fd_.get(), size) != 0) throw_store_error(fmt::format("set the size ({} bytes) of", size), path_);
  }

  void write(std::string_view bytes, std::int64_t offset) {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_store_error("write", path_);
      bytes.remove_prefix(static_cast<std::size_t>(n));
      offset += n;
    }
  }

  // The same without blocks of nothing but zeros.
  void write_sparse(std::string_view bytes, std::int64_t offset) {
    std::size_t run = 0;  // bytes that are to be written, from the front
    const auto flush = [&](std::size_t skipped) {
      write(bytes.substr(0, run), offset);
      bytes.remove_prefix(run + skipped);
      offset += static_cast<std::int64_t>(run + skipped);
      run = 0;
    };
    while (run < bytes.size()) {
      const auto to_border = kHoleBlock - (static_cast<std::size_t>(offset) + run) % kHoleBlock;
      const auto block = bytes.substr(run, to_border);
      if (is_zero(block))
        flush(block.size());
      else
        run += block.size();
    }
    flush(0);
  }

 private:
  const Path& path_;
  Fd fd_;
};

}  // namespace

bool is_member_name(std::string_view name) {
  const auto is_plain = [](char c) { return c > ' ' && c <= '~' && c != '/' && c != '\\'; };
  return !name.empty() && name.size() <= kLongestName && name != "." && name != ".." &&
         std::all_of(name.begin(), name.end(), is_plain);
}

class ArchiveReader::Impl {
 public:
  Impl(ByteSource& in, Path shown, const ArchiveLimits& limits)
      : shown_(std::move(shown)),
        limits_(limits),
        plain_(make_decompressor(in, shown_, limits.expansion)),
        tap_(*plain_),
        archive_(::archive_read_new()) {
    if (!archive_) throw Error("archive: no memory");
    must(::archive_read_support_format_tar(archive_.get()));
    tap_.keep(0);  // opening looks at the first header already
    must(::archive_read_open2(archive_.get(), this, nullptr, &Impl::read_in, nullptr, nullptr));
  }

  bool next() {
    if (ended_) return false;
    if (entry_ != nullptr && !taken_) pass_over();
    for (;;) {
      const auto before = ::archive_filter_bytes(archive_.get(), 0);
      tap_.keep(before);
      const int result = ::archive_read_next_header(archive_.get(), &entry_);
      tap_.release();
      rethrow();
      if (result == ARCHIVE_EOF) {
        check_end();
        ended_ = true;
        return false;
      }
      must(result);
      check_padding(::archive_read_header_position(archive_.get()));
      if (!is_the_folder_itself()) break;
      body_begin_ = -1;
    }
    taken_ = false;
    name_ = checked_name();
    check_kind();
    if (!seen_.insert(name_).second) refuse("its name is there twice");
    if (std::cmp_greater(seen_.size(), limits_.members))
      refuse(fmt::format("it is member {} of the archive, allowed: {}", seen_.size(), limits_.members));
    read_map();
    if (file_.size > limits_.bytes - bytes_)
      refuse(fmt::format("with its {} bytes the files would have {}, allowed: {}", file_.size,
                         static_cast<double>(bytes_) + static_cast<double>(file_.size), limits_.bytes));
    bytes_ += file_.size;
    body_begin_ = ::archive_filter_bytes(archive_.get(), 0);
    return true;
  }

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::int64_t size() const { return file_.size; }

  std::string text(std::size_t max_bytes) {
    if (std::cmp_greater(file_.size, max_bytes))
      refuse(fmt::format("it has {} bytes, allowed: at most {}", file_.size, max_bytes));
    std::string text(static_cast<std::size_t>(file_.size), '\0');
    take([&](std::string_view bytes, std::int64_t offset) {
      bytes.copy(&text[static_cast<std::size_t>(offset)], bytes.size());
    });
    return text;
  }

  void extract_to(const Path& folder, Cancel& cancel) {
    const Path path = folder / name_;
    Output out(path, file_.size);
    take([&](std::string_view bytes, std::int64_t offset) {
      cancel.check();
      if (has_map_)
        out.write(bytes, offset);
      else
        out.write_sparse(bytes, offset);
    });
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw CorruptSnapshot(name_.empty() ? fmt::format("archive {}: {}", shown_.string(), why)
                                        : fmt::format("archive {}: {}: {}", shown_.string(), name_, why),
                          shown_.string(), name_);
  }

 private:
  static la_ssize_t read_in(::archive* archive, void* self, const void** bytes) {
    auto& impl = *static_cast<Impl*>(self);
    try {
      const auto block = impl.tap_.read();
      *bytes = block.data();
      return static_cast<la_ssize_t>(block.size());
    } catch (...) {
      impl.failure_ = std::current_exception();  // not through C
      ::archive_set_error(archive, EIO, "reading failed");
      return -1;
    }
  }

  void rethrow() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  // A warning means that something was put right by guessing.
  void must(int result) {
    rethrow();
    if (result == ARCHIVE_OK) return;
    const char* why = ::archive_error_string(archive_.get());
    refuse(why != nullptr ? why : "damaged");
  }

  [[nodiscard]] bool is_the_folder_itself() const {
    const char* path = ::archive_entry_pathname(entry_);
    return ::archive_entry_filetype(entry_) == AE_IFDIR && path != nullptr &&
           (std::strcmp(path, "./") == 0 || std::strcmp(path, ".") == 0);
  }

  [[nodiscard]] std::string checked_name() {
    const char* path = ::archive_entry_pathname(entry_);
    if (path == nullptr) path = ::archive_entry_pathname_utf8(entry_);
    std::string name(path != nullptr ? path : "");
    name_ = name.substr(0, kLongestName);  // for the message
    if (name.starts_with("./")) name.erase(0, 2);
    if (!is_member_name(name))
      refuse("allowed are plain names: 1 to 255 printable ASCII characters without '/' and '\\'");
    return name;
  }

  void check_kind() const {
    if (::archive_entry_hardlink(entry_) != nullptr) refuse("it is a hard link, allowed: regular files");
    switch (::archive_entry_filetype(entry_)) {
      case AE_IFREG:
        break;
      case AE_IFLNK:
        refuse("it is a symbolic link, allowed: regular files");
      case AE_IFDIR:
        refuse("it is a folder, allowed: regular files");
      default:
        refuse("it is a device, a pipe or a socket, allowed: regular files");
    }
    if (::archive_entry_size_is_set(entry_) == 0 || ::archive_entry_size(entry_) < 0) refuse("it has no valid size");
  }

  // Where its data goes, by libarchive's map or by the Go engine's records.
  void read_map() {
    file_ = {.size = ::archive_entry_size(entry_), .extents = {}};
    has_map_ = own_records_ = false;
    ::archive_entry_sparse_reset(entry_);
    for (std::int64_t offset = 0, length = 0; ::archive_entry_sparse_next(entry_, &offset, &length) == ARCHIVE_OK;) {
      has_map_ = true;
      if (offset < 0 || length < 0) refuse("its map of holes has a negative number");
      file_.extents.push_back({.offset = offset, .length = length});
    }
    try {
      const auto position = ::archive_read_header_position(archive_.get());
      auto records = find_sparse_records(tap_.from(position));
      if (records) {
        if (has_map_) refuse("it has two maps of holes");
        packed_ = file_.size;
        file_ = *std::move(records);
        has_map_ = own_records_ = true;
      }
    } catch (const SparseProblem& problem) {
      refuse(problem.what());
    }
    if (!has_map_) file_.extents = {{.offset = 0, .length = file_.size}};
    if (const auto problem = problem_of(file_); !problem.empty()) refuse(problem);
    expected_ = 0;
    for (const auto& extent : file_.extents) expected_ += extent.length;
    if (own_records_ && expected_ != packed_)
      refuse(fmt::format("its map of holes speaks of {} bytes of data, it has {}", expected_, packed_));
  }

  template <typename Put>
  void take(Put put) {
    taken_ = true;
    delivered_ = 0;
    auto extent = file_.extents.begin();
    std::int64_t in_extent = 0;
    for (;;) {
      const void* data = nullptr;
      std::size_t size = 0;
      std::int64_t offset = 0;
      const int result = ::archive_read_data_block(archive_.get(), &data, &size, &offset);
      rethrow();
      if (result == ARCHIVE_EOF) break;
      must(result);
      std::string_view bytes(static_cast<const char*>(data), size);
      delivered_ += static_cast<std::int64_t>(size);
      if (!own_records_) {
        if (offset < 0 || offset > file_.size || std::cmp_greater(size, file_.size - offset))
          refuse("its data goes beyond its size");
        put(bytes, offset);
        continue;
      }
      // The body is the extents back to back.
      while (!bytes.empty()) {
        while (extent != file_.extents.end() && in_extent == extent->length) {
          ++extent;
          in_extent = 0;
        }
        if (extent == file_.extents.end()) refuse("it has more data than its map of holes says");
        const auto piece = bytes.substr(0, static_cast<std::size_t>(std::min<std::int64_t>(
                                               extent->length - in_extent, static_cast<std::int64_t>(bytes.size()))));
        put(piece, extent->offset + in_extent);
        in_extent += static_cast<std::int64_t>(piece.size());
        bytes.remove_prefix(piece.size());
      }
    }
    if (delivered_ != expected_)
      refuse(fmt::format("its map of holes speaks of {} bytes of data, it has {}", expected_, delivered_));
  }

  void pass_over() {
    take([](std::string_view /*bytes*/, std::int64_t /*offset*/) {});
  }

  // What a member has beyond its map would be skipped silently.
  void check_padding(std::int64_t next_header) const {
    if (body_begin_ < 0) return;
    const auto padded = (expected_ + kTarBlock - 1) / kTarBlock * kTarBlock;
    if (next_header - body_begin_ != padded)
      refuse(fmt::format("it has {} bytes of data, by its map of holes {}", next_header - body_begin_, padded));
  }

  // libarchive takes the end of the stream for the end of the archive, marked or not.
  void check_end() {
    const auto position = ::archive_read_header_position(archive_.get());
    check_padding(position);
    name_.clear();
    std::int64_t zeros = 0;
    for (auto bytes = tap_.from(position); !bytes.empty(); bytes = tap_.read()) {
      if (!is_zero(bytes)) refuse("there is something else behind its end");
      zeros += static_cast<std::int64_t>(bytes.size());
    }
    if (zeros < kEndMark) refuse("cut: the mark of its end is missing");
  }

  Path shown_;
  ArchiveLimits limits_;
  std::unique_ptr<ByteSource> plain_;
  Tap tap_;
  std::exception_ptr failure_;
  std::unique_ptr<::archive, FreeArchive> archive_;

  std::set<std::string> seen_;
  std::int64_t bytes_ = 0;  // logical, of all members so far
  bool ended_ = false;

  ::archive_entry* entry_ = nullptr;  // the current member, as all below
  std::string name_;
  SparseFile file_;
  bool has_map_ = false;
  bool own_records_ = false;
  bool taken_ = false;
  std::int64_t packed_ = 0;
  std::int64_t expected_ = 0;  // bytes of data, by the map
  std::int64_t delivered_ = 0;
  std::int64_t body_begin_ = -1;  // in the stream; -1: there is no member before
};

ArchiveReader::ArchiveReader(ByteSource& in, Path shown, const ArchiveLimits& limits)
    : impl_(std::make_unique<Impl>(in, std::move(shown), limits)) {}
ArchiveReader::~ArchiveReader() = default;

bool ArchiveReader::next() { return impl_->next(); }
const std::string& ArchiveReader::name() const { return impl_->name(); }
std::int64_t ArchiveReader::size() const { return impl_->size(); }
std::string ArchiveReader::text(std::size_t max_bytes) { return impl_->text(max_bytes); }
void ArchiveReader::extract_to(const Path& folder, Cancel& cancel) { impl_->extract_to(folder, cancel); }
void ArchiveReader::refuse(const std::string& why) const { impl_->refuse(why); }

}  // namespace cocoon::system
