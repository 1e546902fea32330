#pragma once
// Starts and stops paired into intervals.
// A stop that says its `interval` is paired with the start of that seq, another one with the open start of the same id
// and dimension. A second start of what is open closes the first at that moment: the rule of the Go engine, whose lines
// have no `interval`, and the only one that bills nothing twice.
// A line whose seq was there before opens and closes nothing: for_each_once passes it over.
// Memory is bounded by open intervals: each is handed out as soon as it is closed.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/ledger/id_table.h"
#include "cocoon/ledger/once.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/symbols.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/entry_view.h"

namespace cocoon::ledger {

enum class Dimension : std::uint8_t { kVmCompute, kVmStorage, kSnapStorage };
enum class LengthFrom : std::uint8_t { kUptime, kWall };

// Up to when an interval counts whose VMM died unattended.
enum class CrashEnd : std::uint8_t {
  kEnded,       // its death, where somebody saw it; else the stop's emitted_at
  kEmitted,     // the stop's emitted_at
  kAliveUntil,  // its death, else the last time it was proven alive, else the stop's emitted_at
};

std::string_view to_string(Dimension dimension);  // "vm.compute", …
std::string_view to_string(LengthFrom from);      // "uptime", "wall"

// "ended", "emitted", "alive_until". Errors InvalidArgument.
CrashEnd parse_crash_end(std::string_view text);

Dimension dimension_of(metering::Kind kind);

template <typename Text, typename Labels>
struct BasicInterval {
  std::uint64_t ordinal = 0;  // place of its start among all starts that were read, from 0
  Text id;
  Dimension dimension = Dimension::kVmCompute;
  Text hypervisor;
  metering::Shape shape;                // the start's
  std::int64_t start_ns = 0;            // wall clock
  std::optional<std::int64_t> stop_ns;  // wall clock, the stop's emitted_at; none while open
  std::optional<metering::Reason> start_reason;
  std::optional<metering::Reason> stop_reason;
  Text source_snapshot_id;
  Labels labels;
  std::optional<std::int64_t> ended_at_ns;
  std::optional<std::int64_t> alive_until_ns;
  Text evidence;
  // Never negative. Usage counts from start_ns for this long: the wall clock may have been stepped between the ends.
  std::int64_t length_ns = 0;
  LengthFrom length_from = LengthFrom::kWall;
  bool open = false;
  std::optional<std::uint64_t> start_seq;
  std::optional<std::uint64_t> stop_seq;  // none too where a second start closed it
};

using Interval = BasicInterval<std::string, std::map<std::string, std::string>>;

// Valid as long as the call that hands it out. Labels as in EntryView.
using IntervalView = BasicInterval<std::string_view, std::string_view>;

Interval to_interval(const IntervalView& view);

enum class Anomaly : std::uint8_t {
  kDoubleStart,
  kStopWithoutStart,
  kShapeChanged,
  kHypervisorChanged,
  kNegativeLength,
};

class Pairer {
 public:
  using OnInterval = std::function<void(const IntervalView& interval)>;
  // `opened_by` is the seq of the start that the entry met or named, where it has one.
  using OnAnomaly =
      std::function<void(Anomaly anomaly, std::optional<std::uint64_t> opened_by, const std::string& message)>;

  explicit Pairer(CrashEnd crash, OnInterval on_interval, OnAnomaly on_anomaly = {});

  // Calls on_interval at most once, on_anomaly for what is wrong with this entry. `hash` is that of its id.
  void add(const metering::EntryView& entry, std::uint64_t hash);
  void add(const metering::EntryView& entry) { add(entry, hash_of(entry.id)); }

  // To be called for entries that will soon be added: waits for memory overlap then.
  void prefetch(const Batch& batch, std::size_t item) const;

  // Hands out what is open, in the order of the starts; it counts up to `until_ns`.
  void finish(std::int64_t until_ns);

  [[nodiscard]] std::size_t open_count() const { return open_.size(); }
  // Of starts, so far: the ordinal of the next.
  [[nodiscard]] std::uint64_t starts() const { return starts_; }

  // What is open, as bytes, and back: for a checkpoint. Errors   LedgerError: not what save() made.
  void save(std::string& out) const;
  void load(std::string_view& in);

 private:
  struct Open {
    std::uint64_t ordinal = 0;
    metering::Shape shape;
    std::int64_t start_ns = 0;
    std::optional<std::uint64_t> seq;
    std::optional<std::uint64_t> name;  // what stops call it: its `interval`
    std::optional<std::int64_t> uptime_ns;
    std::optional<metering::Reason> reason;
    Symbols::Id hypervisor = 0;
    Symbols::Id boot = 0;
    std::string source_snapshot_id;
    std::string labels;
  };
  using Table = IdTable<Open>;

  void start(const metering::EntryView& entry, std::uint64_t hash);
  void stop(const metering::EntryView& entry, std::uint64_t hash);
  void fill(const metering::EntryView& entry, Open& open);
  [[nodiscard]] IntervalView view_of(const Table::Node& node, Dimension dimension) const;
  void set_length(const Open& open, const metering::EntryView& end, IntervalView& interval);

  CrashEnd crash_;
  OnInterval on_interval_;
  OnAnomaly on_anomaly_;
  Symbols symbols_;  // hypervisors and boots: few, and many starts name each
  Table open_;       // the tag is the dimension
  std::uint64_t starts_ = 0;
};

// Every entry to the pairer: a visitor of for_each_once.
inline auto pairing(Pairer& pairer) {
  return [&pairer](const Batch& batch, std::size_t item) {
    pairer.prefetch(batch, item);
    pairer.add(batch.items[item].entry, batch.items[item].hash);
  };
}

// All intervals, in the order of their starts.
// Errors   LedgerError. Bad lines are passed over, as in for_each_once.
std::vector<Interval> read_intervals(const Files& files, CrashEnd crash, std::int64_t until_ns,
                                     const Check& check = {});

}  // namespace cocoon::ledger
