#include "cocoon/ledger/selection.h"

#include <algorithm>
#include <utility>

#include "cocoon/ledger/once.h"

namespace cocoon::ledger {

std::vector<Interval> read_intervals_of(const Files& files, const std::set<std::string, std::less<>>& ids,
                                        std::int64_t until_ns, const Check& check) {
  std::vector<Interval> intervals;
  Pairer pairer(CrashEnd::kEnded, [&](const IntervalView& interval) { intervals.push_back(to_interval(interval)); });
  const auto visit = [&](const Batch& batch, std::size_t at) {
    const Batch::Item& item = batch.items[at];
    if (ids.contains(item.entry.id)) {
      pairer.add(item.entry, item.hash);
    }
  };
  for_each_once(files, visit, check);
  pairer.finish(until_ns);
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.ordinal < b.ordinal; });
  return intervals;
}

}  // namespace cocoon::ledger
