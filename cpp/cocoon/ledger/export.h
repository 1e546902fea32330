#pragma once
// The ledger in the formats of others, as text in a stream of blocks. The same range of the same ledger gives the same
// bytes, whenever and however often it is exported. Memory: one block, and for FOCUS the open intervals.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/ledger/reader.h"

namespace cocoon::ledger {

enum class ExportFormat : std::uint8_t {
  kJsonl,        // the entries, as the engine writes them
  kCsv,          // the same in columns, with a heading
  kCloudEvents,  // a CloudEvents 1.0 document per entry and line, id "<node>/<seq>"
  kFocus,        // CSV of FOCUS 1.2, a row per interval and bucket
};

// "jsonl", "csv", "cloudevents", "focus". Errors InvalidArgument.
ExportFormat parse_export_format(std::string_view text);

struct ExportQuery {
  ExportFormat format = ExportFormat::kJsonl;
  std::string node_id;                     // in CloudEvents and FOCUS: letters, digits and ._~:-
  std::uint64_t since_seq = 1;             // the range; entries without a seq belong to one that begins at 1
  std::optional<std::uint64_t> until_seq;  // inclusive; none: to the end
  // FOCUS: buckets begin at multiples of it since the epoch. Whole minutes, a divisor of a day: so none lies in two
  // months, which are the billing periods.
  std::int64_t every_ns = 86'400'000'000'000;
};

// Whole rows, about 1 MiB of them.
using Sink = std::function<void(std::string_view block)>;
// Bytes of the ledger that were read, and that there are.
using ExportProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

// Returns the number of rows, the heading not counted. Bad lines are passed over, as in for_each_once.
//
// FOCUS knows an interval by the seq of its start, and a row by that and its bucket: x_RowId. A range brings the
// intervals that it closes or leaves open (counted up to its last entry), in the buckets that were not over at its
// begin. If a VM turns out to have died earlier than an earlier range could know, its buckets since then come again,
// with what is right. Whoever replaces rows by x_RowId has after each range what one export of all would give.
// Errors   LedgerError; InvalidArgument: the range, every_ns or node_id; CloudEvents or FOCUS of several nodes' files.
std::uint64_t export_ledger(const Files& files, const ExportQuery& query, const Sink& sink,
                            const ExportProgress& progress = {}, const Check& check = {});

}  // namespace cocoon::ledger
