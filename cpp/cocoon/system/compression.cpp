// gzip by zlib and zstd by libzstd. (libarchive has filters for both, but does not verify gzip's checksum.)

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/byte_stream.h"

namespace cocoon::system {
namespace {

constexpr std::size_t kBlock = 256 << 10;
constexpr int kGzipLevel = Z_BEST_SPEED;
constexpr int kZstdLevel = 3;
constexpr int kGzipWrapper = 16;  // added to the window's bits: gzip's header and trailer, see zlib.h
constexpr std::string_view kGzipMagic("\x1f\x8b", 2);
constexpr std::string_view kZstdMagic("\x28\xb5\x2f\xfd", 4);

class PlainSink final : public CompressingSink {
 public:
  explicit PlainSink(ByteSink& out) : out_(out) {}
  void write(std::string_view bytes) override { out_.write(bytes); }
  void finish() override {}

 private:
  ByteSink& out_;
};

class GzipSink final : public CompressingSink {
 public:
  explicit GzipSink(ByteSink& out) : out_(out) {
    if (::deflateInit2(&stream_, kGzipLevel, Z_DEFLATED, MAX_WBITS + kGzipWrapper, 8, Z_DEFAULT_STRATEGY) != Z_OK)
      throw Error("gzip: no memory");
  }
  ~GzipSink() override { ::deflateEnd(&stream_); }
  GzipSink(const GzipSink&) = delete;
  GzipSink& operator=(const GzipSink&) = delete;

  void write(std::string_view bytes) override {
    // zlib counts in 32 bits.
    constexpr std::size_t kMost = 1U << 30;
    for (; !bytes.empty(); bytes.remove_prefix(std::min(kMost, bytes.size())))
      deflate(bytes.substr(0, kMost), Z_NO_FLUSH);
  }
  void finish() override { deflate({}, Z_FINISH); }

 private:
  void deflate(std::string_view bytes, int flush) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));  // zlib only reads
    stream_.avail_in = static_cast<uInt>(bytes.size());
    do {
      stream_.next_out = reinterpret_cast<Bytef*>(buffer_.data());
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      ::deflate(&stream_, flush);
      out_.write({buffer_.data(), buffer_.size() - stream_.avail_out});
    } while (stream_.avail_out == 0);
  }

  ByteSink& out_;
  z_stream stream_{};
  std::string buffer_ = std::string(kBlock, '\0');
};

class ZstdSink final : public CompressingSink {
 public:
  explicit ZstdSink(ByteSink& out) : out_(out), context_(::ZSTD_createCCtx()) {
    if (!context_) throw Error("zstd: no memory");
    ::ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, kZstdLevel);
    ::ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_checksumFlag, 1);
  }

  void write(std::string_view bytes) override {
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    while (in.pos < in.size) step(in, ZSTD_e_continue);
  }
  void finish() override {
    ZSTD_inBuffer in{nullptr, 0, 0};
    while (step(in, ZSTD_e_end) != 0) {
    }
  }

 private:
  std::size_t step(ZSTD_inBuffer& in, ZSTD_EndDirective directive) {
    ZSTD_outBuffer out{buffer_.data(), buffer_.size(), 0};
    const auto left = ::ZSTD_compressStream2(context_.get(), &out, &in, directive);
    if (::ZSTD_isError(left) != 0) throw Error(fmt::format("zstd: {}", ::ZSTD_getErrorName(left)));
    out_.write({buffer_.data(), out.pos});
    return left;
  }

  struct Free {
    void operator()(ZSTD_CCtx* context) const { ::ZSTD_freeCCtx(context); }
  };
  ByteSink& out_;
  std::unique_ptr<ZSTD_CCtx, Free> context_;
  std::string buffer_ = std::string(kBlock, '\0');
};

// What all of them share: blocks of input, and what comes out of them counted.
class Decompressor : public ByteSource {
 public:
  Decompressor(ByteSource& in, Path shown, const ExpansionLimit& limit, std::string first)
      : in_(in), shown_(std::move(shown)), limit_(limit), first_(std::move(first)) {}

 protected:
  // Empty at the end.
  std::string_view next_block() {
    if (!first_.empty()) {
      current_ = std::exchange(first_, {});
      count_in(current_.size());
      return current_;
    }
    const auto block = in_.read();
    count_in(block.size());
    return block;
  }

  std::string_view counted(std::string_view bytes) {
    out_bytes_ += static_cast<std::int64_t>(bytes.size());
    if (out_bytes_ > limit_.from_bytes && out_bytes_ / limit_.ratio > in_bytes_)
      refuse(fmt::format("{} bytes have become {}: more than {} times as many", in_bytes_, out_bytes_, limit_.ratio));
    return bytes;
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw CorruptSnapshot(fmt::format("archive {}: {}", shown_.string(), why), shown_.string(), "");
  }

 private:
  void count_in(std::size_t bytes) { in_bytes_ += static_cast<std::int64_t>(bytes); }

  ByteSource& in_;
  Path shown_;
  ExpansionLimit limit_;
  std::string first_;
  std::string current_;
  std::int64_t in_bytes_ = 0;
  std::int64_t out_bytes_ = 0;
};

class PlainSource final : public Decompressor {
 public:
  using Decompressor::Decompressor;
  std::string_view read() override { return next_block(); }
};

class GzipSource final : public Decompressor {
 public:
  template <typename... Args>
  explicit GzipSource(Args&&... args) : Decompressor(std::forward<Args>(args)...) {
    if (::inflateInit2(&stream_, MAX_WBITS + kGzipWrapper) != Z_OK) throw Error("gzip: no memory");
  }
  ~GzipSource() override { ::inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  std::string_view read() override {
    for (;;) {
      if (stream_.avail_in == 0 && !next_input()) return {};
      if (ended_ && !begin_next()) continue;
      stream_.next_out = reinterpret_cast<Bytef*>(buffer_.data());
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      const int result = ::inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_STREAM_END)
        ended_ = true;  // checksum and length were right
      else if (result != Z_OK && result != Z_BUF_ERROR)
        refuse(fmt::format("damaged: gzip says \"{}\"", stream_.msg != nullptr ? stream_.msg : "error"));
      if (const auto n = buffer_.size() - stream_.avail_out; n > 0) return counted({buffer_.data(), n});
    }
  }

 private:
  bool next_input() {
    const auto block = next_block();
    if (block.empty()) {
      if (!ended_) refuse("cut: the gzip stream has no end");
      return false;
    }
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(block.data()));  // zlib only reads
    stream_.avail_in = static_cast<uInt>(block.size());
    return true;
  }

  // Behind the end of a stream: another may follow, or zeros to fill up a block. False: nothing yet.
  bool begin_next() {
    while (stream_.avail_in > 0 && *stream_.next_in == 0) {
      padded_ = true;
      ++stream_.next_in;
      --stream_.avail_in;
    }
    if (stream_.avail_in == 0) return false;
    if (padded_ || *stream_.next_in != static_cast<Bytef>(kGzipMagic.front()))
      refuse("there is something else behind the gzip stream");
    ::inflateReset(&stream_);
    ended_ = false;
    return true;
  }

  z_stream stream_{};
  bool ended_ = false;
  bool padded_ = false;
  std::string buffer_ = std::string(kBlock, '\0');
};

class ZstdSource final : public Decompressor {
 public:
  template <typename... Args>
  explicit ZstdSource(Args&&... args) : Decompressor(std::forward<Args>(args)...), context_(::ZSTD_createDCtx()) {
    if (!context_) throw Error("zstd: no memory");
  }

  std::string_view read() override {
    for (;;) {
      if (in_.pos == in_.size && !flushing_) {
        const auto block = next_block();
        if (block.empty()) {
          if (inside_frame_) refuse("cut: the zstd stream has no end");
          return {};
        }
        in_ = {block.data(), block.size(), 0};
      }
      ZSTD_outBuffer out{buffer_.data(), buffer_.size(), 0};
      const auto left = ::ZSTD_decompressStream(context_.get(), &out, &in_);
      if (::ZSTD_isError(left) != 0) refuse(fmt::format("damaged: zstd says \"{}\"", ::ZSTD_getErrorName(left)));
      inside_frame_ = left != 0;
      flushing_ = inside_frame_ && out.pos == out.size;  // there may be more without further input
      if (out.pos > 0) return counted({buffer_.data(), out.pos});
    }
  }

 private:
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ::ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<ZSTD_DCtx, Free> context_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  bool inside_frame_ = true;
  bool flushing_ = false;
  std::string buffer_ = std::string(kBlock, '\0');
};

}  // namespace

std::unique_ptr<CompressingSink> make_compressor(Compression compression, ByteSink& out) {
  switch (compression) {
    case Compression::kNone:
      return std::make_unique<PlainSink>(out);
    case Compression::kGzip:
      return std::make_unique<GzipSink>(out);
    case Compression::kZstd:
      return std::make_unique<ZstdSink>(out);
  }
  throw Error("compression is out of range");
}

std::unique_ptr<ByteSource> make_decompressor(ByteSource& in, const Path& shown, const ExpansionLimit& limit) {
  std::string first;
  while (first.size() < kZstdMagic.size()) {
    const auto block = in.read();
    if (block.empty()) break;
    first += block;
  }
  if (first.starts_with(kGzipMagic)) return std::make_unique<GzipSource>(in, shown, limit, std::move(first));
  if (first.starts_with(kZstdMagic)) return std::make_unique<ZstdSource>(in, shown, limit, std::move(first));
  return std::make_unique<PlainSource>(in, shown, limit, std::move(first));
}

}  // namespace cocoon::system
