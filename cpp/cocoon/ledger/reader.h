#pragma once
// Ledger files as a stream of lines and of entries, each with its place. A pass holds one block of a file and one line
// in memory, whatever the files' size. Threads  a reader belongs to one thread at a time.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/metering/entry.h"

namespace cocoon::ledger {

using Files = std::vector<std::filesystem::path>;

// Asked before each block of a file is read; what it throws ends the reading. May be empty.
using Check = std::function<void()>;

// What a caller names, as files in reading order: a file is itself; a folder is its *.jsonl, the rotated parts
// (name.<first>-<last>.jsonl) by their first seq before the current file; anything else is a glob pattern, in the same
// order. A file that is named twice is read once.
// Errors   LedgerError: nothing is there, it cannot be looked at, or a folder holds compressed parts, which this
// version
//          does not read.
Files find_files(std::span<const std::string> patterns);

// Where a line stands. `file` points into the list of files that is read.
struct Position {
  const std::filesystem::path* file = nullptr;
  std::uint64_t line = 0;    // from 1, in its file
  std::uint64_t offset = 0;  // of its first byte
};

struct Line {
  std::string_view text;  // without '\n'; valid until the next line is read
  Position at;
  bool torn = false;      // the file ends without a '\n' behind it
  bool overlong = false;  // more than 16 MiB: `text` is empty
};

class LineReader {
 public:
  explicit LineReader(std::shared_ptr<const Files> files, Check check = {});
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // False at the end of the last file.
  // Errors   LedgerError: a file cannot be opened or read, is compressed or not a regular file.
  bool next(Line& line);

 private:
  bool open_next();
  bool fill();
  void close();

  std::shared_ptr<const Files> files_;
  Check check_;
  std::size_t next_file_ = 0;
  int fd_ = -1;
  std::vector<char> block_;
  std::size_t begin_ = 0;  // of what is not delivered yet, in block_
  std::size_t end_ = 0;
  std::size_t scanned_ = 0;  // up to here there is no '\n'
  Position at_;              // of begin_
};

struct BadLine {
  Line line;
  std::optional<metering::BadEntry> error;  // none: the line is torn or overlong, and was not looked at
};

// What is wrong, in words: "ledger.jsonl, line 7, byte 1204: …".
std::string describe(const Position& at);
std::string describe(const BadLine& bad);

struct PlacedEntry {
  metering::Entry entry;
  Position at;
};

class EntryReader {
 public:
  using OnBad = std::function<void(const BadLine& bad)>;

  // Lines that are no entries go to `on_bad`. Without it next() throws at each, and the call after that goes on behind
  // it.
  explicit EntryReader(std::shared_ptr<const Files> files, OnBad on_bad = {}, Check check = {});

  // False at the end.
  // Errors   LedgerError, as LineReader, and at a bad line without on_bad: names file, line and offset.
  bool next(PlacedEntry& placed);

 private:
  LineReader lines_;
  OnBad on_bad_;
};

// Reads every entry of the files. Lines that are none are passed over, and counted in one warning of the log: the audit
// reports each.
void for_each_entry(const Files& files, const std::function<void(PlacedEntry&& placed)>& visit,
                    const Check& check = {});

}  // namespace cocoon::ledger
