#include "cocoon/ledger/intervals.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/bytes.h"
#include "cocoon/ledger/same_text.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

using metering::EntryView;
using metering::Kind;
using metering::quote;

// Times of a hostile line may be 584 years apart.
std::int64_t difference(std::int64_t end, std::int64_t start) {
  std::int64_t length = 0;
  if (!__builtin_sub_overflow(end, start, &length)) {
    return length;
  }
  return end > start ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int64_t>::min();
}

std::string shape_text(const metering::Shape& shape) {
  return fmt::format("{} vCPUs, {} bytes of memory, {} bytes of storage", shape.cpu, shape.mem_bytes,
                     shape.storage_bytes);
}

// Most often both are empty.
void set(std::string& text, std::string_view value) {
  if (!text.empty() || !value.empty()) text = value;
}

// The Go engine leaves the shape of a snapshot's stop empty; ours repeats the start's.
bool is_go_snapshot_stop(const EntryView& entry) {
  return entry.kind == Kind::kSnapStorageStop && !entry.seq && entry.shape == metering::Shape{};
}

}  // namespace

std::string_view to_string(Dimension dimension) {
  switch (dimension) {
    case Dimension::kVmCompute:
      return "vm.compute";
    case Dimension::kVmStorage:
      return "vm.storage";
    case Dimension::kSnapStorage:
      return "snap.storage";
  }
  return {};
}

std::string_view to_string(LengthFrom from) {
  switch (from) {
    case LengthFrom::kUptime:
      return "uptime";
    case LengthFrom::kWall:
      return "wall";
  }
  return {};
}

CrashEnd parse_crash_end(std::string_view text) {
  if (text == "ended") return CrashEnd::kEnded;
  if (text == "emitted") return CrashEnd::kEmitted;
  if (text == "alive_until") return CrashEnd::kAliveUntil;
  throw InvalidArgument(fmt::format("crash: {} is not one of ended, emitted, alive_until", quote(text)));
}

Dimension dimension_of(Kind kind) {
  switch (kind) {
    case Kind::kVmComputeStart:
    case Kind::kVmComputeStop:
      return Dimension::kVmCompute;
    case Kind::kVmStorageStart:
    case Kind::kVmStorageStop:
      return Dimension::kVmStorage;
    case Kind::kSnapStorageStart:
    case Kind::kSnapStorageStop:
      return Dimension::kSnapStorage;
  }
  return Dimension::kVmCompute;
}

Interval to_interval(const IntervalView& view) {
  Interval own;
  own.ordinal = view.ordinal;
  own.id = view.id;
  own.dimension = view.dimension;
  own.hypervisor = view.hypervisor;
  own.shape = view.shape;
  own.start_ns = view.start_ns;
  own.stop_ns = view.stop_ns;
  own.start_reason = view.start_reason;
  own.stop_reason = view.stop_reason;
  own.source_snapshot_id = view.source_snapshot_id;
  if (!view.labels.empty()) {
    own.labels = metering::parse_labels(view.labels);
  }
  own.ended_at_ns = view.ended_at_ns;
  own.alive_until_ns = view.alive_until_ns;
  own.evidence = view.evidence;
  own.length_ns = view.length_ns;
  own.length_from = view.length_from;
  own.open = view.open;
  own.start_seq = view.start_seq;
  own.stop_seq = view.stop_seq;
  return own;
}

Pairer::Pairer(CrashEnd crash, OnInterval on_interval, OnAnomaly on_anomaly)
    : crash_(crash), on_interval_(std::move(on_interval)), on_anomaly_(std::move(on_anomaly)) {}

void Pairer::add(const EntryView& entry, std::uint64_t hash) {
  if (is_start(entry.kind)) {
    start(entry, hash);
  } else {
    stop(entry, hash);
  }
}

void Pairer::prefetch(const Batch& batch, std::size_t item) const {
  constexpr std::size_t kSlotAhead = 12;
  constexpr std::size_t kNodeAhead = 6;
  const auto tag = [&](std::size_t at) { return static_cast<std::uint8_t>(dimension_of(batch.items[at].entry.kind)); };
  if (const std::size_t at = item + kSlotAhead; at < batch.items.size()) {
    open_.prefetch_slot(batch.items[at].hash, tag(at));
  }
  if (const std::size_t at = item + kNodeAhead; at < batch.items.size()) {
    open_.prefetch_node(batch.items[at].hash, tag(at));
  }
}

IntervalView Pairer::view_of(const Table::Node& node, Dimension dimension) const {
  const Open& open = node.value;
  IntervalView view;
  view.ordinal = open.ordinal;
  view.id = node.id();
  view.dimension = dimension;
  view.hypervisor = symbols_.text_of(open.hypervisor);
  view.shape = open.shape;
  view.start_ns = open.start_ns;
  view.start_reason = open.reason;
  view.source_snapshot_id = open.source_snapshot_id;
  view.labels = open.labels;
  view.start_seq = open.seq;
  return view;
}

// `end` is what closes the interval: its stop, or a second start, which knows nothing of a crash.
void Pairer::set_length(const Open& open, const EntryView& end, IntervalView& interval) {
  const bool one_boot = open.boot != 0 && open.uptime_ns.has_value() && end.uptime_ns.has_value() &&
                        same_text(symbols_.text_of(open.boot), end.boot_id);
  const std::int64_t whole =
      one_boot ? difference(*end.uptime_ns, *open.uptime_ns) : difference(end.emitted_at_ns, interval.start_ns);
  std::int64_t length = whole;
  LengthFrom from = one_boot ? LengthFrom::kUptime : LengthFrom::kWall;
  if (crash_ != CrashEnd::kEmitted && end.ended_at_ns) {
    // The death's uptime is of the start's boot only if the stop's is too: a reboot in between began another count.
    if (one_boot && end.ended_uptime_ns) {
      length = difference(*end.ended_uptime_ns, *open.uptime_ns);
    } else {
      length = difference(*end.ended_at_ns, interval.start_ns);
      from = LengthFrom::kWall;
    }
  } else if (crash_ == CrashEnd::kAliveUntil && end.alive_until_ns) {
    length = difference(*end.alive_until_ns, interval.start_ns);
    from = LengthFrom::kWall;
  }
  if ((length < 0 || whole < 0) && on_anomaly_) {
    on_anomaly_(Anomaly::kNegativeLength, interval.start_seq,
                fmt::format("{} of {} is {} ns long: it stops before its start", to_string(interval.dimension),
                            quote(interval.id), std::min(length, whole)));
  }
  // The commit is the latest end there is, also where the wall clock was stepped between the two.
  interval.length_ns = std::clamp<std::int64_t>(length, 0, std::max<std::int64_t>(whole, 0));
  interval.length_from = from;
}

void Pairer::fill(const EntryView& entry, Open& open) {
  open.ordinal = starts_++;
  open.shape = entry.shape;
  open.start_ns = entry.emitted_at_ns;
  open.seq = entry.seq;
  open.name = entry.interval ? entry.interval : entry.seq;
  open.uptime_ns = entry.uptime_ns;
  open.reason = entry.reason;
  open.hypervisor = symbols_.id_of(entry.hypervisor);
  open.boot = symbols_.id_of(entry.boot_id);
  set(open.source_snapshot_id, entry.source_snapshot_id);
  set(open.labels, entry.labels);
}

void Pairer::start(const EntryView& entry, std::uint64_t hash) {
  const Dimension dimension = dimension_of(entry.kind);
  const auto tag = static_cast<std::uint8_t>(dimension);
  Table::Node* const open = open_.find(hash, tag, entry.id);
  if (open == nullptr) {
    fill(entry, open_.insert(hash, tag, entry.id).value);
    return;
  }
  IntervalView closed = view_of(*open, dimension);
  if (on_anomaly_) {
    on_anomaly_(Anomaly::kDoubleStart, closed.start_seq,
                fmt::format("{} of {} is started again while it is open since {}", to_string(dimension),
                            quote(closed.id), metering::format_time(closed.start_ns)));
  }
  closed.stop_ns = entry.emitted_at_ns;
  set_length(open->value, entry, closed);
  on_interval_(closed);
  fill(entry, open->value);
}

void Pairer::stop(const EntryView& entry, std::uint64_t hash) {
  const Dimension dimension = dimension_of(entry.kind);
  Table::Node* const open = open_.find(hash, static_cast<std::uint8_t>(dimension), entry.id);
  const bool named_another =
      open != nullptr && entry.interval && open->value.name && *entry.interval != *open->value.name;
  if (open == nullptr || named_another) {
    if (on_anomaly_) {
      const std::string other =
          named_another ? fmt::format("; open is interval {}", *open->value.name) : std::string("; nothing is open");
      const std::string wanted = entry.interval ? fmt::format(" (interval {})", *entry.interval) : std::string();
      on_anomaly_(Anomaly::kStopWithoutStart, entry.interval,
                  fmt::format("{} of {}{} has no open start{}", to_string(entry.kind), quote(entry.id), wanted, other));
    }
    return;
  }
  IntervalView interval = view_of(*open, dimension);
  if (on_anomaly_ && entry.shape != interval.shape && !is_go_snapshot_stop(entry)) {
    on_anomaly_(Anomaly::kShapeChanged, interval.start_seq,
                fmt::format("{} of {} has {}; its start has {}", to_string(entry.kind), quote(interval.id),
                            shape_text(entry.shape), shape_text(interval.shape)));
  }
  if (on_anomaly_ && entry.hypervisor != interval.hypervisor) {
    on_anomaly_(Anomaly::kHypervisorChanged, interval.start_seq,
                fmt::format("{} of {} says hypervisor {}; its start says {}", to_string(entry.kind), quote(interval.id),
                            quote(entry.hypervisor), quote(interval.hypervisor)));
  }
  interval.stop_ns = entry.emitted_at_ns;
  interval.stop_reason = entry.reason;
  interval.ended_at_ns = entry.ended_at_ns;
  interval.alive_until_ns = entry.alive_until_ns;
  interval.evidence = entry.evidence;
  interval.stop_seq = entry.seq;
  set_length(open->value, entry, interval);
  on_interval_(interval);
  open_.erase(*open);
}

void Pairer::finish(std::int64_t until_ns) {
  std::vector<IntervalView> rest;
  rest.reserve(open_.size());
  open_.for_each(
      [&](const Table::Node& node) { rest.push_back(view_of(node, static_cast<Dimension>(node.key_tag()))); });
  std::sort(rest.begin(), rest.end(),
            [](const IntervalView& a, const IntervalView& b) { return a.ordinal < b.ordinal; });
  for (IntervalView& interval : rest) {
    interval.open = true;
    interval.length_ns = std::max<std::int64_t>(difference(until_ns, interval.start_ns), 0);
    on_interval_(interval);
  }
  open_.clear();
}

void Pairer::save(std::string& out) const {
  put(out, starts_);
  put(out, static_cast<std::uint64_t>(open_.size()));
  open_.for_each([&](const Table::Node& node) {
    const Open& open = node.value;
    put(out, node.key_tag());
    put(out, node.id());
    put(out, open.ordinal);
    put(out, open.shape);
    put(out, open.start_ns);
    put(out, open.seq);
    put(out, open.name);
    put(out, open.uptime_ns);
    put(out, open.reason);
    put(out, symbols_.text_of(open.hypervisor));
    put(out, symbols_.text_of(open.boot));
    put(out, std::string_view(open.source_snapshot_id));
    put(out, std::string_view(open.labels));
  });
}

void Pairer::load(std::string_view& in) {
  starts_ = take<std::uint64_t>(in);
  for (auto count = take<std::uint64_t>(in); count > 0; --count) {
    const auto tag = take<std::uint8_t>(in);
    const std::string_view id = take_text(in);
    Open& open = open_.insert(hash_of(id), tag, id).value;
    open.ordinal = take<std::uint64_t>(in);
    open.shape = take<metering::Shape>(in);
    open.start_ns = take<std::int64_t>(in);
    open.seq = take_some<std::uint64_t>(in);
    open.name = take_some<std::uint64_t>(in);
    open.uptime_ns = take_some<std::int64_t>(in);
    open.reason = take_some<metering::Reason>(in);
    open.hypervisor = symbols_.id_of(take_text(in));
    open.boot = symbols_.id_of(take_text(in));
    open.source_snapshot_id = take_text(in);
    open.labels = take_text(in);
  }
}

std::vector<Interval> read_intervals(const Files& files, CrashEnd crash, std::int64_t until_ns, const Check& check) {
  std::vector<Interval> intervals;
  Pairer pairer(crash, [&](const IntervalView& interval) { intervals.push_back(to_interval(interval)); });
  for_each_once(files, pairing(pairer), check);
  pairer.finish(until_ns);
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.ordinal < b.ordinal; });
  return intervals;
}

}  // namespace cocoon::ledger
