#pragma once
// The ledger entries of one transition. Internal to lifecycle.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cocoon/lifecycle/transition.h"

namespace cocoon::lifecycle {

// Gives the entries of one transition their common instant and consecutive seq.
class Entries {
 public:
  explicit Entries(const Context& context) : context_(context) {}

  // Opens an interval; its number is the entry's own seq, returned to be kept in the record.
  std::uint64_t start(metering::Entry entry) {
    entry.interval = next_seq();
    add(std::move(entry));
    return *entries_.back().seq;
  }

  // Closes the interval that `interval` opened, which becomes 0. It is 0 already if nobody knows it.
  void stop(metering::Entry entry, std::uint64_t& interval) {
    if (interval != 0) entry.interval = std::exchange(interval, 0);
    add(std::move(entry));
  }

  std::vector<metering::Entry> take() { return std::move(entries_); }

 private:
  [[nodiscard]] std::uint64_t next_seq() const { return context_.next_seq + entries_.size(); }

  void add(metering::Entry entry) {
    entry.seq = next_seq();
    entry.emitted_at_ns = context_.now.wall_ns;
    entry.boot_id = context_.now.boot_id;
    entry.uptime_ns = context_.now.uptime_ns;
    entries_.push_back(std::move(entry));
  }

  const Context& context_;
  std::vector<metering::Entry> entries_;
};

// What the stop of a crashed VM's compute interval says of its end: `ended_at` and who saw it if the death is credible,
// else `alive_until`. Both lie between the interval's start and `now` on the uptime clock, whatever the wall clock did.
// Requires record.compute_open().
void add_crash_evidence(const VmRecord& record, const std::optional<Death>& death, const Instant& now,
                        metering::Entry& stop);

}  // namespace cocoon::lifecycle
