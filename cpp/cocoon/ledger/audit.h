#pragma once
// What is wrong with a ledger. Each fault is reported once, where it stands; what follows from a fault that is reported
// already (a stop whose start lies in a gap) is not reported again.
// What the Go engine writes differently (no seq, local time offsets, upper-case ids, a snapshot's stop without a shape)
// is no fault.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/reader.h"

namespace cocoon::ledger {

// The codes, in the order of docs/ledger.md.
enum class Code : std::uint8_t {
  kTornLine,  // the file ends inside a line
  kBadJson,   // not one JSON object
  kBadField,  // a key missing, doubled, of a wrong type or value
  kUnknownKind,
  kSeqGap,        // numbers are missing
  kSeqRepeat,     // a number comes again
  kSeqBackwards,  // a missing number comes late
  kDoubleStart,   // started while open
  kStopWithoutStart,
  kShapeChanged,            // a stop's shape is not its start's
  kHypervisorChanged,       // the same of the hypervisor
  kClockStepped,            // wall clock and uptime went on by different amounts between two entries of one boot
  kNegativeLength,          // a stop, or the death it reports, lies before its start
  kComputeOutlivesStorage,  // a VM computes while it has no storage
  kAfterRemoval,            // an id goes on after vm-rm or snap-rm
  kUnknownSourceSnapshot,   // cloned or restored from a snapshot that this ledger never opened
};

std::string_view to_string(Code code);  // "torn-line", …

struct Finding {
  Code code = Code::kTornLine;
  std::string file;
  std::optional<std::uint64_t> line;    // from 1; of a seq-gap: the line behind it, none at the end
  std::optional<std::uint64_t> offset;  // of the line's first byte
  std::optional<std::uint64_t> seq;     // of a seq-gap: the first that is missing
  std::string vm_id;
  std::string snapshot_id;
  std::string message;
};

struct AuditReport {
  std::uint64_t entries = 0;  // well-formed lines
  std::vector<Finding> findings;
  [[nodiscard]] bool ok() const { return findings.empty(); }
};

// One pass. The files of one folder are one node's ledger: their seq goes on from file to file, from 1.
// Memory: open intervals, findings, and 8 to 16 bytes per removed id and per snapshot.
// `expected`: the node says that its ledger holds everything up to this seq; 0: nobody says.
// Errors   LedgerError: a file cannot be read.
AuditReport audit(const Files& files, const Check& check = {}, std::uint64_t expected = 0);

}  // namespace cocoon::ledger
