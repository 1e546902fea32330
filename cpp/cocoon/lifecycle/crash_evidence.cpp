#include <algorithm>
#include <array>
#include <string_view>

#include "cocoon/lifecycle/entries.h"

namespace cocoon::lifecycle {
namespace {

constexpr std::array<std::string_view, 3> kWitnesses = {"shim", "watch", "log"};

// Uptimes of different boots say nothing about each other.
bool earlier_on_one_boot(const Instant& a, const Instant& b) {
  return a.boot_id == b.boot_id && a.uptime_ns < b.uptime_ns;
}

// A VMM dies on the boot it was started on, not before that start and not after now. The wall clock has no say: it
// steps. The exit file this comes from may be another VMM's, or forged.
bool is_credible(const Death& death, const Instant& started, const Instant& now) {
  if (std::find(kWitnesses.begin(), kWitnesses.end(), death.evidence) == kWitnesses.end()) return false;
  if (death.at.wall_ns < 0) return false;  // no ledger line can hold it
  if (death.at.boot_id != started.boot_id || death.at.uptime_ns < started.uptime_ns) return false;
  return !earlier_on_one_boot(now, death.at);
}

}  // namespace

void add_crash_evidence(const VmRecord& record, const std::optional<Death>& death, const Instant& now,
                        metering::Entry& stop) {
  const Instant& started = *record.started;
  const Instant& opened = record.compute_since ? *record.compute_since : started;
  if (death && is_credible(*death, started, now)) {
    // A relabel may have closed and reopened the interval of a VMM that nobody knew was dead: nothing of the new one
    // was used. A relabel on a later boot follows every death on the boot before.
    const bool died_before =
        death->at.boot_id == opened.boot_id ? death->at.uptime_ns < opened.uptime_ns : record.compute_since.has_value();
    const Instant& ended = died_before ? opened : death->at;
    stop.ended_at_ns = ended.wall_ns;
    stop.ended_uptime_ns = ended.uptime_ns;
    stop.evidence = death->evidence;
    return;
  }
  // Any proof of life that is kept is younger than the interval: opening it forgets older ones.
  Instant alive = record.last_alive.value_or(opened);
  if (earlier_on_one_boot(alive, opened)) alive = opened;
  if (earlier_on_one_boot(now, alive)) alive = now;
  stop.alive_until_ns = alive.wall_ns;
}

}  // namespace cocoon::lifecycle
