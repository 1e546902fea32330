#pragma once
// Ledger files, compressed or not, as one stream of blocks of whole lines. A block's buffer is used again for the next,
// so that a pass over any amount of ledger touches the same few pages.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cocoon::ledger {

using Files = std::vector<std::filesystem::path>;

// No line of ours is a thousandth of it. A file without line ends must not fill the memory.
constexpr std::size_t kLongestLine = std::size_t{16} << 20;

// Bytes of one file, decompressed where its first bytes say zstd or gzip.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // 0 at the end. Errors   LedgerError naming the file: it cannot be read, or its compressed data is damaged or cut
  // off.
  virtual std::size_t read(char* to, std::size_t size) = 0;
  // Passes over so many bytes, or all there are; returns how many. Requires that nothing was read yet.
  virtual std::uint64_t skip(std::uint64_t size);
};

// Errors   LedgerError: it cannot be opened, or is not a regular file.
std::unique_ptr<ByteStream> open_stream(const std::filesystem::path& path);

struct Block {
  // Lines of one file, each with its '\n', except a torn one, which is alone in its block.
  [[nodiscard]] std::string_view text() const { return {buffer.data(), size}; }

  std::vector<char> buffer;  // at least metering::kReadBehind longer than `size`
  std::size_t size = 0;
  std::size_t file = 0;      // index in the files that are read
  std::uint64_t offset = 0;  // of the first byte, in the decompressed file
  std::uint64_t end = 0;     // the offset of what follows
  bool torn = false;         // one line, and the file ends without a '\n' behind it
  bool overlong = false;     // one line of more than kLongestLine, and `text` is empty
};

class Source {
 public:
  explicit Source(std::shared_ptr<const Files> files);
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  // The next block; false at the end of the last file. A file that cannot be read is passed over by the next call.
  // Errors   LedgerError, as ByteStream.
  bool next(Block& block);

  // Begins behind this byte of the file that is named first. Requires that next() was not called, and that a line
  // begins there.
  void skip_to(std::uint64_t offset) { skip_ = offset; }

 private:
  void give(Block& block, std::size_t size, const char* newline);
  bool read(Block& block);
  bool pass_overlong(Block& block);

  std::shared_ptr<const Files> files_;
  std::size_t next_file_ = 0;
  std::unique_ptr<ByteStream> stream_;
  std::uint64_t offset_ = 0;  // of what comes next
  std::uint64_t skip_ = 0;
  std::string rest_;  // behind the last whole line of the block before
};

}  // namespace cocoon::ledger
