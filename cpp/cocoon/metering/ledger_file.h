#pragma once
// The append-only ledger file: one JSON object per line, '\n' last, mode 0600.
// It knows lines and sequence numbers, not what they mean; the store decides what is missing and appends it.
// Threads  none of it is safe by itself: FileRecorder's mutex, or the ledger's lock of a node, is held around it.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace cocoon::metering {

class LedgerFile {
 public:
  // Opens nothing yet: a path that cannot be written is found out at the first use, and tried again at each.
  explicit LedgerFile(std::filesystem::path path);
  ~LedgerFile();
  LedgerFile(const LedgerFile&) = delete;
  LedgerFile& operator=(const LedgerFile&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  // Makes sure that the open file is the one the path names now (it may have been deleted or rotated), creating it
  // (0600, parent folders 0750, both synced) when absent. True if this is another file, or of another size, than we
  // left: cached knowledge of its tail is void.
  // Errors   LedgerError.
  bool refresh();

  // The highest-placed line that has a seq: that seq, else 0. Read from the tail, or cached while inode and size are
  // as we left them. `torn` decides what happens to a last line without '\n': true cuts it off, false ends it.
  // Requires refresh(). Errors LedgerError.
  using KeepTorn = std::function<bool(std::string_view unterminated)>;
  std::uint64_t last_seq(const KeepTorn& keep_torn);

  // Calls `visit` with each complete line (without '\n') and its byte offset, from the first line after the last one
  // whose seq is <= `through` (or that has none) to the end. False from `visit` stops.
  void for_each_after(std::uint64_t through,
                      const std::function<bool(std::string_view line, std::uint64_t offset)>& visit);

  // Everything from `offset` on is dropped.
  void cut(std::uint64_t offset);

  // Appends whole lines ('\n' included) with one write; `last_seq` is the seq of the last one (0: unknown).
  // On error the file is cut back to where it was, as far as that works, and nothing is known of the tail.
  // Errors   LedgerError.
  void append(std::string_view lines, std::uint64_t last_seq);

  // fdatasync. Errors LedgerError.
  void sync();
  void close();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  off_t size_ = 0;                         // as we left it
  std::optional<std::uint64_t> last_seq_;  // of the file as we left it
};

// The seq of one of our own lines without parsing all of it; 0 if it has none.
std::uint64_t line_seq(std::string_view line);

}  // namespace cocoon::metering
