#include "cocoon/ledger/iterate.h"

#include <utility>

#include "cocoon/error.h"

namespace cocoon::ledger {
namespace {

constexpr int kMostReadings = 5;  // of a ledger that is rotated all the time

}  // namespace

Iterator::Iterator(Selection selection) : selection_(std::move(selection)) { begin(); }

void Iterator::begin() {
  files_ = std::make_shared<const Files>(find_files(selection_));
  identities_ = identities(*files_);
  once_.set_files(*files_);
  passed_.clear();
  file_ = nullptr;
  ++readings_;
  again_ = begun_;
  reader_ = std::make_unique<EntryReader>(files_, [this](const BadLine& bad) {
    if (again_) return;  // it was reported
    at_bad_line_ = begun_ = true;
    throw LedgerError("read ledger " + describe(bad), bad.line.at.file->string());
  });
}

// Its name may have been given to another file before it was opened: what was in it comes first. The names tell, for a
// rotation makes one; the file itself does not, since it may have got the number of one that was removed.
bool Iterator::is_another(const std::filesystem::path& file) {
  if (&file == file_) return false;
  file_ = &file;
  return moved();
}

bool Iterator::moved() const { return readings_ < kMostReadings && identities(find_files(selection_)) != identities_; }

// A number that comes again is handed out in the first reading: it stands there. In another one nobody can tell.
bool Iterator::is_new(const PlacedEntry& placed) {
  const auto file = static_cast<std::size_t>(placed.at.file - files_->data());
  if (placed.entry.seq) return once_.is_new(placed.entry.seq, file) || readings_ == 1;
  const std::string stream = stream_of(*placed.at.file);
  std::uint64_t& passed = passed_[stream];
  std::uint64_t& handed_out = unnumbered_[stream];
  if (++passed <= handed_out) return false;
  handed_out = passed;
  return true;
}

bool Iterator::next(metering::Entry& entry, const Check& check) {
  constexpr std::uint64_t kOften = 4096;
  PlacedEntry placed;
  for (std::uint64_t passed = 1;; ++passed) {
    if (check && passed % kOften == 0) check();
    bool got = false;
    try {
      got = reader_->next(placed);
    } catch (const LedgerError&) {
      if (std::exchange(at_bad_line_, false) || !moved()) throw;
      begin();
      continue;
    }
    if (!got) {
      if (!moved()) return false;
      begin();
    } else if (is_another(*placed.at.file)) {
      begin();
    } else if (is_new(placed)) {
      again_ = false;
      begun_ = true;
      entry = std::move(placed.entry);
      return true;
    }
  }
}

}  // namespace cocoon::ledger
