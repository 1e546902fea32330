#pragma once
// An entry as a reader of many lines wants it: the same fields as Entry, its texts as views, and a parser of our own
// layout that allocates nothing. What it does not recognize is no fault: from_json reads any valid layout, and whatever
// this parser takes, from_json reads alike.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/metering/entry.h"

namespace cocoon::metering {

struct EntryView {
  Kind kind = Kind::kVmComputeStart;
  std::optional<Reason> reason;
  std::string_view id;  // of the VM or the snapshot, as the kind says
  std::string_view source_snapshot_id;
  std::string_view hypervisor;
  std::string_view labels;  // as append_labels writes them; empty: none
  std::string_view evidence;
  std::string_view boot_id;
  Shape shape;
  std::int64_t emitted_at_ns = 0;
  std::optional<std::uint64_t> seq;
  std::optional<std::uint64_t> interval;
  std::optional<std::int64_t> ended_at_ns;
  std::optional<std::int64_t> ended_uptime_ns;
  std::optional<std::int64_t> alive_until_ns;
  std::optional<std::int64_t> uptime_ns;
  bool operator==(const EntryView&) const = default;
};

// What parse_own_layout may read behind the end of its text.
constexpr std::size_t kReadBehind = 32;

// The line that begins at `at`, if it is laid out as append_json does it, and ends with '\n' before `end`: fills `out`
// with views into the text and returns what stands behind the '\n'. Else nullptr, and `out` is not to be used.
// Requires a fresh `out`, and kReadBehind readable bytes behind `end`.
const char* parse_own_layout(const char* at, const char* end, EntryView& out);

// The same entry as views. `labels` holds the text of its labels; entry and labels must outlive the view.
EntryView view_of(const Entry& entry, std::string& labels);
Entry to_entry(const EntryView& view);

// An entry's labels as they stand in its line: a JSON object, keys sorted. Nothing if there are none.
void append_labels(const std::map<std::string, std::string>& labels, std::string& out);
std::map<std::string, std::string> parse_labels(std::string_view text);

}  // namespace cocoon::metering
