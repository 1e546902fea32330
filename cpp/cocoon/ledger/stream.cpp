// Where the bytes of a ledger file come from: the file, or what is unpacked from it.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/source.h"

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_on(const fs::path& path, std::string_view why, int code = 0) {
  throw LedgerError(fmt::format("read ledger {}: {}", path.string(), why), path.string(), code);
}

class FileStream final : public ByteStream {
 public:
  explicit FileStream(fs::path path)
      : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) {
    struct stat status{};
    if (fd_ < 0 || ::fstat(fd_, &status) != 0) {
      const int code = errno;
      close();
      fail_on(path_, std::strerror(code), code);
    }
    if (!S_ISREG(status.st_mode)) {
      close();
      fail_on(path_, "not a regular file");
    }
  }
  ~FileStream() override { close(); }
  FileStream(const FileStream&) = delete;
  FileStream& operator=(const FileStream&) = delete;

  std::size_t read(char* to, std::size_t size) override {
    for (;;) {
      const ssize_t got = ::read(fd_, to, size);
      if (got >= 0) return static_cast<std::size_t>(got);
      if (errno != EINTR) fail_on(path_, std::strerror(errno), errno);
    }
  }

  std::uint64_t skip(std::uint64_t size) override {
    if (::lseek(fd_, static_cast<off_t>(size), SEEK_SET) < 0) fail_on(path_, std::strerror(errno), errno);
    return size;
  }

  // The first bytes, without reading them away; fewer if the file is shorter.
  [[nodiscard]] std::size_t peek(char* to, std::size_t size) const {
    const ssize_t got = ::pread(fd_, to, size, 0);
    if (got < 0) fail_on(path_, std::strerror(errno), errno);
    return static_cast<std::size_t>(got);
  }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  fs::path path_;
  int fd_;
};

constexpr std::size_t kPacked = std::size_t{128} << 10;

// One frame behind the other, as zstd itself reads them.
class ZstdStream final : public ByteStream {
 public:
  explicit ZstdStream(std::unique_ptr<FileStream> file) : file_(std::move(file)), context_(ZSTD_createDStream()) {
    if (context_ == nullptr) fail_on(file_->path(), "no memory for zstd");
  }
  ~ZstdStream() override { ZSTD_freeDStream(context_); }
  ZstdStream(const ZstdStream&) = delete;
  ZstdStream& operator=(const ZstdStream&) = delete;

  std::size_t read(char* to, std::size_t size) override {
    ZSTD_outBuffer out{to, size, 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size && !full_) {
        in_ = {packed_.data(), file_->read(packed_.data(), packed_.size()), 0};
        if (in_.size == 0) {
          if (inside_) fail_on(file_->path(), "its zstd data is cut off");
          return 0;
        }
      }
      const std::size_t left = ZSTD_decompressStream(context_, &out, &in_);
      if (ZSTD_isError(left) != 0) {
        fail_on(file_->path(), fmt::format("its zstd data is damaged: {}", ZSTD_getErrorName(left)));
      }
      inside_ = left != 0;
      full_ = inside_ && out.pos == out.size;
    }
    return out.pos;
  }

 private:
  std::unique_ptr<FileStream> file_;
  ZSTD_DStream* context_;
  std::vector<char> packed_ = std::vector<char>(kPacked);
  ZSTD_inBuffer in_{nullptr, 0, 0};
  bool inside_ = false;  // of a frame
  bool full_ = false;    // there may be more of what went in already
};

class GzipStream final : public ByteStream {
 public:
  explicit GzipStream(std::unique_ptr<FileStream> file) : file_(std::move(file)) {
    constexpr int kGzip = 16 + MAX_WBITS;
    if (::inflateInit2(&state_, kGzip) != Z_OK) fail_on(file_->path(), "no memory for gzip");
  }
  ~GzipStream() override { ::inflateEnd(&state_); }
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  std::size_t read(char* to, std::size_t size) override {
    state_.next_out = reinterpret_cast<Bytef*>(to);
    state_.avail_out = static_cast<uInt>(size);
    while (state_.avail_out == size) {
      if (state_.avail_in == 0 && !full_) {
        state_.next_in = reinterpret_cast<Bytef*>(packed_.data());
        state_.avail_in = static_cast<uInt>(file_->read(packed_.data(), packed_.size()));
        if (state_.avail_in == 0) {
          if (inside_) fail_on(file_->path(), "its gzip data is cut off");
          return 0;
        }
      }
      const int code = ::inflate(&state_, Z_NO_FLUSH);
      full_ = state_.avail_out == 0;
      if (code == Z_STREAM_END) {
        inside_ = false;
        ::inflateReset(&state_);  // another member may follow
      } else if (code == Z_OK) {
        inside_ = true;
      } else if (code != Z_BUF_ERROR) {  // that: nothing goes on without more input
        fail_on(file_->path(),
                fmt::format("its gzip data is damaged: {}", state_.msg == nullptr ? "no such data" : state_.msg));
      }
    }
    return size - state_.avail_out;
  }

 private:
  std::unique_ptr<FileStream> file_;
  z_stream state_{};
  std::vector<char> packed_ = std::vector<char>(kPacked);
  bool inside_ = false;  // of a member
  bool full_ = false;    // there may be more of what went in already
};

}  // namespace

std::uint64_t ByteStream::skip(std::uint64_t size) {
  std::vector<char> passed(kPacked);
  std::uint64_t done = 0;
  while (done < size) {
    const std::size_t got = read(passed.data(), std::min<std::uint64_t>(passed.size(), size - done));
    if (got == 0) break;
    done += got;
  }
  return done;
}

std::unique_ptr<ByteStream> open_stream(const fs::path& path) {
  auto file = std::make_unique<FileStream>(path);
  std::array<char, 4> first{};
  const std::string_view magic(first.data(), file->peek(first.data(), first.size()));
  // A skippable frame is 184D2A5? instead: none of ours begins with one.
  if (magic == "\x28\xB5\x2F\xFD") return std::make_unique<ZstdStream>(std::move(file));
  if (magic.starts_with("\x1F\x8B")) return std::make_unique<GzipStream>(std::move(file));
  const std::string name = path.filename().string();
  if (!magic.empty() && (name.ends_with(".zst") || name.ends_with(".gz"))) {
    fail_on(path, "its name says that it is compressed, but it does not begin so");
  }
  return file;
}

}  // namespace cocoon::ledger
