#pragma once
// The intervals of a few VMs and snapshots out of a large ledger. Memory: these, and what is open.

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "cocoon/ledger/intervals.h"

namespace cocoon::ledger {

// In the order of their starts. Errors   LedgerError. Bad lines are passed over, as in for_each_once.
std::vector<Interval> read_intervals_of(const Files& files, const std::set<std::string, std::less<>>& ids,
                                        std::int64_t until_ns, const Check& check = {});

}  // namespace cocoon::ledger
