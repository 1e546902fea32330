#pragma once
// One entry of the usage ledger, and its line format.
// The first eight keys are the Go engine's format, byte for byte; docs/ledger.md lists all of them in order.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/error.h"

namespace cocoon::metering {

enum class Kind : std::uint8_t {
  kVmComputeStart,
  kVmComputeStop,
  kVmStorageStart,
  kVmStorageStop,
  kSnapStorageStart,
  kSnapStorageStop,
};

enum class Reason : std::uint8_t {
  kBoot,
  kRestart,
  kClone,
  kRestore,
  kHibernateWake,
  kStopUser,
  kStopCrash,
  kVmRemove,
  kSnapshotRemove,
  kRelabel,
};

// What is billed. Units: cpu in vCPUs, the others in bytes. Never negative in a valid entry.
struct Shape {
  std::int64_t cpu = 0;
  std::int64_t mem_bytes = 0;
  std::int64_t storage_bytes = 0;
  bool operator==(const Shape&) const = default;
};

struct Entry {
  Kind kind = Kind::kVmComputeStart;
  std::string vm_id;
  std::string snapshot_id;
  std::string source_snapshot_id;
  std::optional<Reason> reason;
  std::string hypervisor;
  Shape shape;
  std::int64_t emitted_at_ns = 0;             // since the epoch, UTC
  std::optional<std::uint64_t> seq;           // from 1, gapless within one node
  std::optional<std::uint64_t> interval;      // seq of the entry that opened this interval
  std::map<std::string, std::string> labels;  // starts only
  std::optional<std::int64_t> ended_at_ns;    // when the VMM really died
  std::optional<std::int64_t> ended_uptime_ns;
  std::string evidence;                        // who saw it: shim, watch, log
  std::optional<std::int64_t> alive_until_ns;  // last proven alive, when the death was not seen
  std::string boot_id;                         // first 8 hex digits of the kernel's boot id
  std::optional<std::int64_t> uptime_ns;       // CLOCK_BOOTTIME at the transition
  bool operator==(const Entry&) const = default;
};

// What from_json throws. A reader of whole ledgers tells the faults apart, and counts the line's seq as seen.
class BadEntry : public InvalidArgument {
 public:
  enum class Fault : std::uint8_t {
    kJson,   // not one JSON object in UTF-8
    kKind,   // a kind that nobody has defined yet
    kField,  // a key that is missing, doubled or has a value that is not allowed
  };
  BadEntry(const std::string& message, Fault the_fault, std::optional<std::uint64_t> the_seq)
      : InvalidArgument(message), fault(the_fault), seq(the_seq) {}
  Fault fault;
  std::optional<std::uint64_t> seq;  // of the refused line, where it could be read all the same
};

// The wire strings: "vm.compute.start", "stop-user", …
std::string_view to_string(Kind kind);
std::string_view to_string(Reason reason);

std::optional<Reason> find_reason(std::string_view text);

// Errors   InvalidArgument naming the value and what is allowed.
Kind parse_kind(std::string_view text);
Reason parse_reason(std::string_view text);

bool is_start(Kind kind);
bool is_vm(Kind kind);  // of a VM, not of a snapshot

// What append_json checks before it writes, the encoding of text apart.
// Errors   InvalidArgument: a negative number, a seq or interval of 0 or past 2^63 - 1, an id missing or of the wrong
// kind.
void check(const Entry& entry);

// The ledger line of an entry, without '\n'. Keys in the order of docs/ledger.md, absent ones left out.
// Errors   InvalidArgument: a negative number, an id missing or of the wrong kind, text that is not UTF-8.
std::string to_json(const Entry& entry);

// Appends the same line to `out`; with room in `out` it allocates nothing.
void append_json(const Entry& entry, std::string& out);

// Reads any valid layout of a line: key order, white space, time offsets and unknown keys do not matter.
// Errors   BadEntry (an InvalidArgument) naming the field, its value and what is allowed.
Entry from_json(std::string_view line);

// RFC 3339. Writing: UTC, 'Z', up to nine fractional digits, trailing zeros cut. Reading: any offset, at most nine
// fractional digits; second 60 only where UTC can have a leap second (the last of a month), and it is, as in POSIX, the
// first of the next.
// Errors   InvalidArgument.
void append_time(std::int64_t ns, std::string& out);
std::string format_time(std::int64_t ns);
std::int64_t parse_time(std::string_view text);

}  // namespace cocoon::metering
