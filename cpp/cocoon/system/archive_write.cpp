#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <exception>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/archive.h"
#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

constexpr std::size_t kBlock = 1 << 20;
constexpr std::size_t kTarBlock = 512;
constexpr std::size_t kLongestMap = 800 << 10;                       // the Go engine writes a plain entry beyond it
constexpr std::int64_t kLargestOctal = (std::int64_t{1} << 33) - 1;  // 11 octal digits

// Holes have to be handed to libarchive as zeros, which it then leaves out.
const std::string& zeros() {
  static const std::string kZeros(kBlock, '\0');
  return kZeros;
}

struct FreeArchive {
  void operator()(::archive* archive) const {
    ::archive_write_fail(archive);  // or an unfinished one would be finished now
    ::archive_write_free(archive);
  }
};
struct FreeEntry {
  void operator()(::archive_entry* entry) const { ::archive_entry_free(entry); }
};

// "LEN key=value\n", where LEN counts itself. See pax(1).
std::string pax_record(std::string_view key, std::string_view value) {
  const auto rest = key.size() + value.size() + 3;
  auto length = rest + 1;
  while (fmt::formatted_size("{}", length) + rest != length) length = fmt::formatted_size("{}", length) + rest;
  return fmt::format("{} {}={}\n", length, key, value);
}

std::string ustar_header(const std::string& name, char type, std::int64_t size, std::int64_t mtime_s) {
  std::string block(kTarBlock, '\0');
  const auto put = [&](std::size_t at, std::string_view text) { block.replace(at, text.size(), text); };
  put(0, std::string_view(name).substr(0, 100));
  put(100, "0000600");
  put(108, "0000000");
  put(116, "0000000");
  put(124, fmt::format("{:011o}", std::min(size, kLargestOctal)));
  put(136, fmt::format("{:011o}", std::clamp<std::int64_t>(mtime_s, 0, kLargestOctal)));
  put(148, "        ");
  block[156] = type;
  put(257, std::string_view("ustar\0"
                            "00",
                            8));
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum));
  block[154] = '\0';
  return block;
}

std::size_t padding_of(std::int64_t size) {
  return (kTarBlock - static_cast<std::size_t>(size) % kTarBlock) % kTarBlock;
}

}  // namespace

std::vector<Extent> find_extents(int fd, std::int64_t size, const Path& shown) {
  std::vector<Extent> extents;
  for (std::int64_t end = 0; end < size;) {
    const off_t begin = ::lseek(fd, end, SEEK_DATA);
    if (begin < 0 && errno == ENXIO) break;
    if (begin < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) return {{.offset = 0, .length = size}};
    if (begin < 0) throw_store_error("find the data of", shown);
    if (begin >= size) break;
    const off_t hole = ::lseek(fd, begin, SEEK_HOLE);
    if (hole < 0) throw_store_error("find the holes of", shown);
    end = std::min<std::int64_t>(hole, size);
    extents.push_back({.offset = begin, .length = end - begin});
  }
  return extents;
}

class ArchiveWriter::Impl {
 public:
  Impl(ByteSink& out, SparseRecords records) : out_(out), records_(records), archive_(::archive_write_new()) {
    if (!archive_) throw Error("archive: no memory");
    must(::archive_write_set_format_pax_restricted(archive_.get()));
    // Unblocked: what is written comes out at once and in one piece, so that we may write between two entries.
    must(::archive_write_set_bytes_per_block(archive_.get(), 0));
    must(::archive_write_open2(archive_.get(), this, nullptr, &Impl::write_out, nullptr, nullptr));
  }

  void add_text(const std::string& name, std::string_view text, std::int64_t mtime_s) {
    const auto size = static_cast<std::int64_t>(text.size());
    begin(name, size, mtime_s, {{.offset = 0, .length = size}});
    put(text);
    must(::archive_write_finish_entry(archive_.get()));
  }

  void add_file(const std::string& name, const Path& file, Cancel& cancel,
                const std::function<void(std::int64_t)>& advanced) {
    const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK));
    if (!fd) throw_store_error("open", file);
    struct stat status{};
    if (::fstat(fd.get(), &status) != 0) throw_store_error("stat", file);
    if (!S_ISREG(status.st_mode))
      throw StoreError(fmt::format("archive {}: not a plain file", file.string()), file.string(), EINVAL);
    const auto extents = find_extents(fd.get(), status.st_size, file);
    if (records_ == SparseRecords::kCocoon && add_with_own_records(name, status, extents, [&](const Extent& extent) {
          copy(fd.get(), file, extent, cancel, advanced, [this](std::string_view bytes) { out_.write(bytes); });
        }))
      return;

    begin(name, status.st_size, status.st_mtime, extents);
    std::int64_t at = 0;
    for (const auto& extent : extents) {
      put_hole(extent.offset - at, cancel);
      copy(fd.get(), file, extent, cancel, advanced, [this](std::string_view bytes) { put(bytes); });
      at = extent.offset + extent.length;
    }
    put_hole(status.st_size - at, cancel);
    must(::archive_write_finish_entry(archive_.get()));
  }

  void finish() { must(::archive_write_close(archive_.get())); }

 private:
  static la_ssize_t write_out(::archive* /*archive*/, void* self, const void* bytes, std::size_t length) {
    auto& impl = *static_cast<Impl*>(self);
    try {
      impl.out_.write({static_cast<const char*>(bytes), length});
      return static_cast<la_ssize_t>(length);
    } catch (...) {
      impl.failure_ = std::current_exception();  // not through C
      return -1;
    }
  }

  void must(la_ssize_t result) {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (result < ARCHIVE_OK) throw Error(fmt::format("archive: {}", ::archive_error_string(archive_.get())));
  }

  void begin(const std::string& name, std::int64_t size, std::int64_t mtime_s, const std::vector<Extent>& extents) {
    const std::unique_ptr<::archive_entry, FreeEntry> entry(::archive_entry_new());
    if (!entry) throw Error("archive: no memory");
    ::archive_entry_set_pathname(entry.get(), name.c_str());
    ::archive_entry_set_filetype(entry.get(), AE_IFREG);
    ::archive_entry_set_perm(entry.get(), 0600);
    ::archive_entry_set_size(entry.get(), size);
    ::archive_entry_set_mtime(entry.get(), mtime_s, 0);
    const bool is_whole = size == 0 || extents == std::vector<Extent>{{.offset = 0, .length = size}};
    if (!is_whole && extents.empty()) ::archive_entry_sparse_add_entry(entry.get(), 0, 0);
    if (!is_whole)
      for (const auto& extent : extents) ::archive_entry_sparse_add_entry(entry.get(), extent.offset, extent.length);
    must(::archive_write_header(archive_.get(), entry.get()));
  }

  void put(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto n = ::archive_write_data(archive_.get(), bytes.data(), bytes.size());
      must(n);
      if (n == 0) throw Error("archive: an entry is longer than its header says");
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  void put_hole(std::int64_t length, Cancel& cancel) {
    while (length > 0) {
      cancel.check();
      const auto piece = std::min<std::int64_t>(length, kBlock);
      put(std::string_view(zeros()).substr(0, static_cast<std::size_t>(piece)));
      length -= piece;
    }
  }

  // False: it has no holes, or too many for a record.
  bool add_with_own_records(const std::string& name, const struct stat& status, const std::vector<Extent>& extents,
                            const std::function<void(const Extent&)>& copy_extent) {
    std::string map = "[";
    std::int64_t packed = 0;
    for (const auto& [offset, length] : extents) {
      map += fmt::format(R"({}{{"o":{},"l":{}}})", map.size() > 1 ? "," : "", offset, length);
      packed += length;
    }
    map += ']';
    if (packed == status.st_size || map.size() > kLongestMap) return false;
    auto records =
        pax_record("COCOON.sparse.map", map) + pax_record("COCOON.sparse.size", fmt::format("{}", status.st_size));
    if (packed > kLargestOctal) records += pax_record("size", fmt::format("{}", packed));
    if (name.size() > 100) records += pax_record("path", name);
    const auto length = static_cast<std::int64_t>(records.size());
    out_.write(ustar_header("PaxHeaders.0/" + name, 'x', length, status.st_mtime));
    out_.write(records);
    out_.write(std::string_view(zeros()).substr(0, padding_of(length)));
    out_.write(ustar_header(name, '0', packed, status.st_mtime));
    for (const auto& extent : extents) copy_extent(extent);
    out_.write(std::string_view(zeros()).substr(0, padding_of(packed)));
    return true;
  }

  template <typename Put>
  void copy(int fd, const Path& file, const Extent& extent, Cancel& cancel,
            const std::function<void(std::int64_t)>& advanced, Put put_bytes) {
    for (std::int64_t done = 0; done < extent.length;) {
      cancel.check();
      const auto want = static_cast<std::size_t>(std::min<std::int64_t>(extent.length - done, kBlock));
      const ssize_t n = ::pread(fd, buffer_.data(), want, extent.offset + done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_store_error("read", file);
      if (n == 0)
        throw StoreError(fmt::format("archive {}: it became shorter meanwhile", file.string()), file.string());
      put_bytes(std::string_view(buffer_.data(), static_cast<std::size_t>(n)));
      done += n;
      if (advanced) advanced(n);
    }
  }

  ByteSink& out_;
  SparseRecords records_;
  std::exception_ptr failure_;
  std::unique_ptr<::archive, FreeArchive> archive_;
  std::string buffer_ = std::string(kBlock, '\0');
};

ArchiveWriter::ArchiveWriter(ByteSink& out, SparseRecords records) : impl_(std::make_unique<Impl>(out, records)) {}
ArchiveWriter::~ArchiveWriter() = default;

void ArchiveWriter::add_text(const std::string& name, std::string_view text, std::int64_t mtime_s) {
  impl_->add_text(name, text, mtime_s);
}

void ArchiveWriter::add_file(const std::string& name, const Path& file, Cancel& cancel,
                             const std::function<void(std::int64_t)>& advanced) {
  impl_->add_file(name, file, cancel, advanced);
}

void ArchiveWriter::finish() { impl_->finish(); }

}  // namespace cocoon::system
