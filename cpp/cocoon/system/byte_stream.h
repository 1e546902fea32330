#pragma once
// Bytes that come from somewhere and go somewhere: files, pipes, whatever a binding brings.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // The next bytes, valid until the next call; empty at the end. Blocks. Errors StoreError, Cancelled.
  virtual std::string_view read() = 0;
};

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  // All of them. Blocks. Errors StoreError, Cancelled.
  virtual void write(std::string_view bytes) = 0;
};

// Bytes done, and in all where that is known. Called on the thread of the call that it belongs to.
using Progress = std::function<void(std::int64_t done, std::optional<std::int64_t> total)>;

// A descriptor that somebody else owns: a file from where it stands, a pipe, a socket. `shown` for messages.
class FdSource final : public ByteSource {
 public:
  FdSource(int fd, Path shown, Cancel& cancel);
  std::string_view read() override;

 private:
  int fd_;
  Path shown_;
  Cancel& cancel_;
  bool may_block_;
  std::unique_ptr<char[]> buffer_;
};

// Gathers small writes; flush() hands on what is left.
class FdSink final : public ByteSink {
 public:
  FdSink(int fd, Path shown, Cancel& cancel);
  void write(std::string_view bytes) override;
  void flush();

 private:
  void write_out(std::string_view bytes);
  int fd_;
  Path shown_;
  Cancel& cancel_;
  bool may_block_;
  std::string gathered_;
};

enum class Compression : std::uint8_t { kNone, kGzip, kZstd };

// Compresses on the way to `out`, which must outlive it. Without finish() the stream is incomplete.
class CompressingSink : public ByteSink {
 public:
  virtual void finish() = 0;
};
std::unique_ptr<CompressingSink> make_compressor(Compression compression, ByteSink& out);

// What a stream from outside may cost us.
struct ExpansionLimit {
  std::int64_t ratio = 200;                         // bytes out for each byte in
  std::int64_t from_bytes = std::int64_t{1} << 30;  // small ones are welcome to any ratio
};

// Reads `in`, which must outlive it, and finds out by its first bytes how it is compressed. Checksums are verified.
// Errors   CorruptSnapshot naming `shown`: damaged, cut, or beyond the limit.
std::unique_ptr<ByteSource> make_decompressor(ByteSource& in, const Path& shown, const ExpansionLimit& limit);

}  // namespace cocoon::system
