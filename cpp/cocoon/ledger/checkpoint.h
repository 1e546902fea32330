#pragma once
// Usage without reading again what was read: a checkpoint holds the sums of all intervals that are closed, what is
// open, and how far each file was read. The answer is that of a whole reading. Where anything does not fit (another
// question, a file that was replaced, cut, rotated or changed, a checkpoint that is damaged) the whole ledger is read.
//
// What was read is taken to stand still, as a ledger does: of a file that grew, its beginning and the last bytes that
// were read are compared. A file of the same size must also have the same time of change.

#include <cstdint>
#include <filesystem>
#include <vector>

#include "cocoon/ledger/usage.h"

namespace cocoon::ledger {

// As read_usage, and leaves the checkpoint for the next one, with one rename.
// Errors   LedgerError: also where the checkpoint cannot be written.
std::vector<UsageRow> read_usage_from(const std::filesystem::path& checkpoint, const Files& files,
                                      const UsageQuery& query, std::int64_t now_ns, const Check& check = {});

}  // namespace cocoon::ledger
