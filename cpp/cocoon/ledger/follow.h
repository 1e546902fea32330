#pragma once
// New entries as they are appended. Nothing is watched: each poll() looks at the files' sizes and inodes.
// A file that was renamed is read to its end, also after it was packed and removed; the one that takes its name, from
// its beginning. What was cut off and written again (the repair of a torn end), and what a packed part repeats, is
// delivered once: by its seq.

#include <sys/stat.h>

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/metering/entry.h"

namespace cocoon::ledger {

class Follower {
 public:
  // A file that is not there yet is waited for. Begins at the end of what is there, or at its beginning.
  // Errors   LedgerError: a file that is there cannot be read.
  explicit Follower(Selection selection, bool from_start = false);
  ~Follower();
  Follower(const Follower&) = delete;
  Follower& operator=(const Follower&) = delete;

  // The next entry, none if there is nothing new now.
  // Errors   LedgerError: a bad line, named with file and offset, or a file that cannot be read; the next call goes on
  //          behind it.
  std::optional<metering::Entry> poll();

 private:
  struct File;

  void look_for_files(bool at_end);
  void add_file(const std::filesystem::path& path, bool at_end);
  void begin_at_end(File& file);
  bool read_some(File& file);
  bool read_packed(File& file);
  void take_line(File& file, std::string_view line, std::uint64_t offset);
  void take_entry(File& file, metering::Entry&& entry);

  Selection selection_;
  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, std::uint64_t> last_seq_;  // delivered or skipped, by stream_of()
  std::deque<std::variant<metering::Entry, LedgerError>> found_;
};

}  // namespace cocoon::ledger
