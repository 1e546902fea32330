#pragma once
// Ledger files as a stream of entries, each with its place. Memory: a few blocks of a file, whatever the files' size.
// Threads  a reader belongs to one thread at a time.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/scan.h"
#include "cocoon/ledger/source.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/entry_view.h"

namespace cocoon::ledger {

// What a caller names, as files in reading order: a file is itself; a folder is its *.jsonl, *.jsonl.zst and
// *.jsonl.gz, the rotated parts (name.<first>-<last>.jsonl…) by their first seq before the current file; anything else
// is a glob pattern, in the same order. A file that is named twice is read once, and so is a part that stands there
// twice, packed and not, because a rotation was interrupted. Errors   LedgerError: nothing is there, or it cannot be
// looked at.
Files find_files(std::span<const std::string> patterns);

// Which ledger a file is of: its folder and its name, without what a part and a packed file have more. The files of one
// go on from each other's seqs; another one, also in the same folder, is another node's and has seqs of its own.
std::string stream_of(const std::filesystem::path& file);

// What a caller means by a ledger.
struct Selection {
  std::vector<std::string> patterns;  // as find_files takes them
  bool with_parts = false;            // each names a current ledger, and its rotated parts are meant too
};

// Errors   LedgerError, as find_files.
Files find_files(const Selection& selection);

// Which files these are now: differs if one was replaced, removed or, under the same name, is another.
// Between looking for files and opening them a ledger may be rotated: what was read then is to be read again.
std::vector<std::string> identities(const Files& files);

// Where a line stands. `file` points into the list of files that is read.
struct Position {
  const std::filesystem::path* file = nullptr;
  std::uint64_t line = 0;    // from 1, in its file
  std::uint64_t offset = 0;  // of its first byte
  // Of an entry that for_each_line hands out: where those that follow it are.
  const Batch* batch = nullptr;
  std::size_t item = 0;
};

struct Line {
  std::string_view text;  // without '\n'; valid as long as the call that hands it out
  Position at;
  bool torn = false;      // the file ends without a '\n' behind it
  bool overlong = false;  // more than 16 MiB: `text` is empty
};

struct BadLine {
  Line line;
  std::optional<metering::BadEntry> error;  // none: the line is torn or overlong, and was not looked at
};

// What is wrong, in words: "ledger.jsonl, line 7, byte 1204: …".
std::string describe(const Position& at);
std::string describe(const BadLine& bad);

BadLine bad_line(const Files& files, const Batch& batch, const Batch::Bad& bad);

using OnBad = std::function<void(const BadLine& bad)>;
using OnEntry = std::function<void(const Batch::Item& item, const Position& at)>;

// Every line of the files, in order.
// Errors   LedgerError: a file cannot be read.
void for_each_line(const std::shared_ptr<const Files>& files, const OnEntry& on_entry, const OnBad& on_bad,
                   const Check& check = {});

// The same of entries alone. Lines that are none are passed over, and counted in one warning of the log: the audit
// reports each.
void for_each_entry(const Files& files, const OnEntry& on_entry, const Check& check = {});

// Counts what is passed over, and says it when it goes.
class PassedOver {
 public:
  void add(const BadLine& bad);
  void say() const;

 private:
  std::uint64_t lines_ = 0;
  std::string first_;
};

struct PlacedEntry {
  metering::Entry entry;
  Position at;
};

// One entry at a time, for callers that want to stop in between.
class EntryReader {
 public:
  // Lines that are no entries go to `on_bad`. Without it next() throws at each, and the call after that goes on behind
  // it.
  explicit EntryReader(std::shared_ptr<const Files> files, OnBad on_bad = {});

  // False at the end.
  // Errors   LedgerError: a file cannot be read; a bad line, without on_bad: names file, line and offset.
  bool next(PlacedEntry& placed);

 private:
  std::shared_ptr<const Files> files_;
  OnBad on_bad_;
  Source source_;
  Batch batch_;
  std::size_t item_ = 0;  // next ones of the batch
  std::size_t bad_ = 0;
};

}  // namespace cocoon::ledger
