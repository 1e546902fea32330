#include "cocoon/ledger/selection.h"

#include <algorithm>
#include <utility>

namespace cocoon::ledger {

std::vector<Interval> read_intervals_of(const Files& files, const std::set<std::string>& ids, std::int64_t until_ns,
                                        const Check& check) {
  std::vector<Interval> intervals;
  Pairer pairer(CrashEnd::kEnded, [&](Interval&& interval) { intervals.push_back(std::move(interval)); });
  const auto visit = [&](PlacedEntry&& placed) {
    if (ids.contains(id_of(placed.entry))) {
      pairer.add(placed.entry);
    }
  };
  for_each_entry(files, visit, check);
  pairer.finish(until_ns);
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.ordinal < b.ordinal; });
  return intervals;
}

}  // namespace cocoon::ledger
