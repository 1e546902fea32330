#pragma once
// Rotated parts of a ledger: <stem>.<first>-<last>.jsonl beside <stem>.jsonl, and packed, the same with .zst.
//
// A rotation is one rename: the ledger gets a part's name, and the next entry begins a new file. So whoever dies, and
// whenever, every entry stands in exactly one of the two. Packing comes after it and may be done by anybody at any
// time: the packed part is written beside under a name that no reader looks at, synced, renamed, and only then the
// other one goes. Die before that last step: both are there, hold the same, and readers take one of them.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cocoon::metering {

struct PartName {
  std::string stem;
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  bool packed = false;
};

// Of "ledger.1-2000.jsonl", ".jsonl.zst" or ".jsonl.gz".
std::optional<PartName> parse_part_name(std::string_view name);

// "ledger" of "ledger.jsonl", "ledger.jsonl.zst", "ledger.jsonl.gz"; "" of any other name.
std::string_view ledger_stem(std::string_view name);

struct Part {
  std::filesystem::path path;
  PartName name;
};

// The parts of the ledger `path`, by their first seq. Errors   LedgerError: its folder cannot be read.
std::vector<Part> find_parts(const std::filesystem::path& path);

// The last seq of the last part, 0 without one.
std::uint64_t rotated_through(const std::filesystem::path& path);

// Renames the ledger to the part of these seqs, and syncs the name. Returns the part.
// Requires that the ledger is synced, and the lock that guards it.
// Errors   LedgerError: it cannot, or such a part is there already.
std::filesystem::path rename_to_part(const std::filesystem::path& path, std::uint64_t first, std::uint64_t last);

// Packs every part that is not, unless somebody else is at it; removes what an interrupted packing left. Returns how
// many it packed.
// Errors   LedgerError. The parts are whole nevertheless.
std::size_t pack_parts(const std::filesystem::path& path);

}  // namespace cocoon::metering
