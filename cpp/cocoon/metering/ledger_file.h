#pragma once
// The append-only ledger file: one JSON object per line, '\n' last, mode 0600.
// It knows lines and sequence numbers, not what they mean; the store decides what is missing and appends it.
// Threads  none of it is safe by itself: FileRecorder's mutex, or the ledger's lock of a node, is held around it.
// Errors   LedgerError, from every method that touches the file; afterwards nothing is assumed of it.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

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
  // (0600, parent folders 0750, the names synced) when absent. True if this is another file, or of another size, than
  // we left: cached knowledge of its tail is void.
  bool refresh();

  // After refresh() said true: it is the file we left, only longer.
  [[nodiscard]] bool grew() const { return grew_; }

  // The open file as refresh(), append() and cut() left it.
  struct State {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;  // 0: it is not open
    std::uint64_t size = 0;
    bool operator==(const State&) const = default;
  };
  [[nodiscard]] const State& state() const { return state_; }

  // The highest-placed line that has a seq: that seq, else 0. Read from the tail, or cached while inode and size are
  // as we left them. A last line without '\n' is first ended with one if `keep_torn` says true of it, else cut off.
  // Requires refresh().
  using KeepTorn = std::function<bool(std::string_view unterminated)>;
  std::uint64_t last_seq(const KeepTorn& keep_torn);

  // The seq of the first line that has one, else 0. Reads up to there. Requires refresh().
  [[nodiscard]] std::uint64_t first_seq() const;

  // Calls `visit` with each complete line (without '\n') and its byte offset, to the end of the file; false from
  // `visit` stops. Starts after the last line whose seq is 1 to `through`, or at the last one whose seq is the next
  // after `through`, whichever is nearer to the end; without either, at the beginning of the file.
  // Requires refresh().
  void for_each_after(std::uint64_t through,
                      const std::function<bool(std::string_view line, std::uint64_t offset)>& visit);

  // Everything from `offset` on is dropped. Requires refresh().
  void cut(std::uint64_t offset);

  // Appends whole lines ('\n' included) with one write; `last_seq` is the seq of the last one (0: unknown).
  // On error the file is cut back to where it was, as far as that works. Requires refresh().
  void append(std::string_view lines, std::uint64_t last_seq);

  // fdatasync.
  void sync();
  void close();

 private:
  using Visit = std::function<bool(std::string_view line, std::uint64_t offset)>;

  void open_or_create();
  void end_last_line(const KeepTorn& keep_torn);
  void for_each_backwards(const Visit& visit) const;
  void for_each_from(std::uint64_t start, const Visit& visit) const;
  void read_at(std::uint64_t offset, char* to, std::size_t size) const;
  void write_end(std::string_view bytes);
  [[noreturn]] void fail(const char* tried, int code) const;

  std::filesystem::path path_;
  int fd_ = -1;
  State state_;
  bool grew_ = false;
  std::optional<std::uint64_t> last_seq_;  // of the file as we left it
};

// The seq of one of our own lines without parsing all of it; 0 if it has none, or is no whole object.
std::uint64_t line_seq(std::string_view line);

}  // namespace cocoon::metering
