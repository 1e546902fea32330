#pragma once
// What was used: vCPU-seconds, memory and storage byte-seconds, by VM, label and so on, in a window and in buckets.
// Sums are exact: nanoseconds × units in 128 bits, divided once, at the end. So the parts of any split (by label, by
// bucket) add up to the whole.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cocoon/ledger/intervals.h"

namespace cocoon::ledger {

__extension__ using Uint128 = unsigned __int128;

struct UsageQuery {
  // Each of vm_id, snapshot_id, hypervisor, kind (of the interval: "vm.compute" …), reason (the start's), label:KEY.
  std::vector<std::string> by = {"vm_id"};
  std::optional<std::int64_t> since_ns;  // the window is [since, until)
  std::optional<std::int64_t> until_ns;  // none: all that is closed, and open intervals up to now
  std::optional<std::int64_t> every_ns;  // buckets begin at multiples of it since the epoch, UTC
  CrashEnd crash = CrashEnd::kEnded;
};

struct UsageRow {
  std::vector<std::optional<std::string>> key;  // as `by`; none where an interval has no such thing
  std::int64_t bucket_ns = 0;                   // its begin; 0 without `every`
  Uint128 vcpu_ns = 0;
  Uint128 mem_byte_ns = 0;
  Uint128 storage_byte_ns = 0;
  std::uint64_t intervals = 0;  // that touch the window and the bucket
  std::uint64_t open = 0;       // of these
};

// Units × seconds of a sum, rounded once.
double per_second(Uint128 sum_ns);

// Adds intervals up; memory is bounded by the rows of the answer.
class Usage {
 public:
  // Errors   InvalidArgument: an unknown `by`, one that is there twice, every_ns < 1, since after until.
  Usage(UsageQuery query, std::int64_t now_ns);

  // Up to here open intervals count: Pairer::finish wants it.
  [[nodiscard]] std::int64_t until_ns() const { return query_.until_ns.value_or(now_ns_); }

  // Errors   InvalidArgument: `every` makes more than ten million rows.
  void add(const IntervalView& interval);

  // By key (none first), then bucket.
  [[nodiscard]] std::vector<UsageRow> rows() const;

  // The sums as bytes, and back: for a checkpoint. Errors   LedgerError: not what save() made.
  void save(std::string& out) const;
  void load(std::string_view& in);

 private:
  void set_key(const IntervalView& interval);
  UsageRow& row_of_key();
  void count(const IntervalView& interval, std::int64_t bucket_ns, std::uint64_t length_ns);

  UsageQuery query_;
  std::int64_t now_ns_;
  std::vector<std::string> label_keys_;                  // of `by`, "" where it is no label
  std::vector<UsageRow> rows_;                           // in the order in which they began
  std::unordered_map<std::string, std::size_t> places_;  // in rows_, by what key_ holds
  std::string key_;     // of the interval that is added: its parts and a place for the bucket
  std::string parsed_;  // the labels that labels_ was made of
  std::map<std::string, std::string> labels_;
};

// Errors   InvalidArgument; LedgerError. Bad lines are passed over, as in for_each_once.
std::vector<UsageRow> read_usage(const Files& files, const UsageQuery& query, std::int64_t now_ns,
                                 const Check& check = {});

}  // namespace cocoon::ledger
