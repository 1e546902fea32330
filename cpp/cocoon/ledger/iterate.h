#pragma once
// All entries of a ledger, one at a time, also where the ledger is rotated meanwhile: then names move from file to
// file, and what was not opened yet is another file, or none. It is read again, without what was handed out.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cocoon/ledger/once.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/metering/entry.h"

namespace cocoon::ledger {

class Iterator {
 public:
  // Errors   LedgerError, as find_files.
  explicit Iterator(Selection selection);
  Iterator(const Iterator&) = delete;
  Iterator& operator=(const Iterator&) = delete;

  // False at the end. Asks `check` now and then, even where nothing is handed out.
  // Errors   LedgerError: a file cannot be read; a bad line, naming file, line and offset: the next call goes on behind
  // it. What `check` throws.
  bool next(metering::Entry& entry, const Check& check = {});

 private:
  void begin();
  [[nodiscard]] bool moved() const;
  bool is_another(const std::filesystem::path& file);
  bool is_new(const PlacedEntry& placed);

  Selection selection_;
  std::shared_ptr<const Files> files_;
  std::vector<std::string> identities_;
  std::unique_ptr<EntryReader> reader_;
  const std::filesystem::path* file_ = nullptr;  // of the entry before
  Once once_;
  std::map<std::string, std::uint64_t> unnumbered_;  // handed out, by stream_of()
  std::map<std::string, std::uint64_t> passed_;      // of these, met again in this reading
  bool begun_ = false;                               // an entry was handed out, or a bad line
  bool again_ = false;                               // of what was handed out; nothing new was met yet
  bool at_bad_line_ = false;
  int readings_ = 0;
};

}  // namespace cocoon::ledger
