#include "cocoon/ledger/intervals.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

using metering::Entry;
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

std::string key_of(const Entry& entry) {
  std::string key;
  const std::string& id = id_of(entry);
  key.reserve(id.size() + 1);
  key += static_cast<char>(dimension_of(entry.kind));
  key += id;
  return key;
}

std::string shape_text(const metering::Shape& shape) {
  return fmt::format("{} vCPUs, {} bytes of memory, {} bytes of storage", shape.cpu, shape.mem_bytes,
                     shape.storage_bytes);
}

// The Go engine leaves the shape of a snapshot's stop empty; ours repeats the start's.
bool is_go_snapshot_stop(const Entry& entry) {
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

const std::string& id_of(const Entry& entry) { return is_vm(entry.kind) ? entry.vm_id : entry.snapshot_id; }

Pairer::Pairer(CrashEnd crash, OnInterval on_interval, OnAnomaly on_anomaly)
    : crash_(crash), on_interval_(std::move(on_interval)), on_anomaly_(std::move(on_anomaly)) {}

void Pairer::report(Anomaly anomaly, std::optional<std::uint64_t> opened_by, const std::string& message) {
  if (on_anomaly_) {
    on_anomaly_(anomaly, opened_by, message);
  }
}

void Pairer::add(const Entry& entry) {
  if (is_start(entry.kind)) {
    start(entry);
  } else {
    stop(entry);
  }
}

// `end` is what closes the interval: its stop, or a second start, which knows nothing of a crash.
void Pairer::set_length(const Open& open, const Entry& end, Interval& interval) {
  const bool one_boot =
      !open.boot_id.empty() && open.boot_id == end.boot_id && open.uptime_ns.has_value() && end.uptime_ns.has_value();
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
  if (length < 0 || whole < 0) {
    report(Anomaly::kNegativeLength, interval.start_seq,
           fmt::format("{} of {} is {} ns long: it stops before its start", to_string(interval.dimension),
                       quote(interval.id), std::min(length, whole)));
  }
  // The commit is the latest end there is, also where the wall clock was stepped between the two.
  interval.length_ns = std::clamp<std::int64_t>(length, 0, std::max<std::int64_t>(whole, 0));
  interval.length_from = from;
}

void Pairer::start(const Entry& entry) {
  Open opened;
  Interval& interval = opened.interval;
  interval.ordinal = starts_++;
  interval.id = id_of(entry);
  interval.dimension = dimension_of(entry.kind);
  interval.hypervisor = entry.hypervisor;
  interval.shape = entry.shape;
  interval.start_ns = entry.emitted_at_ns;
  interval.start_reason = entry.reason;
  interval.source_snapshot_id = entry.source_snapshot_id;
  interval.labels = entry.labels;
  interval.start_seq = entry.seq;
  opened.name = entry.interval ? entry.interval : entry.seq;
  opened.boot_id = entry.boot_id;
  opened.uptime_ns = entry.uptime_ns;

  const auto [at, fresh] = open_.try_emplace(key_of(entry));
  if (fresh) {
    at->second = std::move(opened);
    return;
  }
  Open first = std::exchange(at->second, std::move(opened));
  report(Anomaly::kDoubleStart, first.interval.start_seq,
         fmt::format("{} of {} is started again while it is open since {}", to_string(first.interval.dimension),
                     quote(first.interval.id), metering::format_time(first.interval.start_ns)));
  Interval closed = first.interval;
  closed.stop_ns = entry.emitted_at_ns;
  set_length(first, entry, closed);
  on_interval_(std::move(closed));
}

void Pairer::stop(const Entry& entry) {
  const auto at = open_.find(key_of(entry));
  const bool named_another =
      at != open_.end() && entry.interval && at->second.name && *entry.interval != *at->second.name;
  if (at == open_.end() || named_another) {
    const std::string other =
        named_another ? fmt::format("; open is interval {}", *at->second.name) : std::string("; nothing is open");
    const std::string wanted = entry.interval ? fmt::format(" (interval {})", *entry.interval) : std::string();
    report(Anomaly::kStopWithoutStart, entry.interval,
           fmt::format("{} of {}{} has no open start{}", to_string(entry.kind), quote(id_of(entry)), wanted, other));
    return;
  }
  Open open = std::move(at->second);
  open_.erase(at);
  Interval interval = open.interval;
  if (entry.shape != interval.shape && !is_go_snapshot_stop(entry)) {
    report(Anomaly::kShapeChanged, interval.start_seq,
           fmt::format("{} of {} has {}; its start has {}", to_string(entry.kind), quote(interval.id),
                       shape_text(entry.shape), shape_text(interval.shape)));
  }
  if (entry.hypervisor != interval.hypervisor) {
    report(Anomaly::kHypervisorChanged, interval.start_seq,
           fmt::format("{} of {} says hypervisor {}; its start says {}", to_string(entry.kind), quote(interval.id),
                       quote(entry.hypervisor), quote(interval.hypervisor)));
  }
  interval.stop_ns = entry.emitted_at_ns;
  interval.stop_reason = entry.reason;
  interval.ended_at_ns = entry.ended_at_ns;
  interval.alive_until_ns = entry.alive_until_ns;
  interval.evidence = entry.evidence;
  interval.stop_seq = entry.seq;
  set_length(open, entry, interval);
  on_interval_(std::move(interval));
}

void Pairer::finish(std::int64_t until_ns) {
  std::vector<Interval> rest;
  rest.reserve(open_.size());
  for (auto& [key, open] : open_) {
    rest.push_back(std::move(open.interval));
  }
  open_.clear();
  std::sort(rest.begin(), rest.end(), [](const Interval& a, const Interval& b) { return a.ordinal < b.ordinal; });
  for (Interval& interval : rest) {
    interval.open = true;
    interval.length_ns = std::max<std::int64_t>(difference(until_ns, interval.start_ns), 0);
    on_interval_(std::move(interval));
  }
}

std::vector<Interval> read_intervals(const Files& files, CrashEnd crash, std::int64_t until_ns, const Check& check) {
  std::vector<Interval> intervals;
  Pairer pairer(crash, [&](Interval&& interval) { intervals.push_back(std::move(interval)); });
  for_each_entry(files, [&](PlacedEntry&& placed) { pairer.add(placed.entry); }, check);
  pairer.finish(until_ns);
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.ordinal < b.ordinal; });
  return intervals;
}

}  // namespace cocoon::ledger
