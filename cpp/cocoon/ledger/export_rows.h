#pragma once
// Single rows of an export. Internal to ledger.

#include <cstdint>
#include <string>
#include <string_view>

#include "cocoon/ledger/intervals.h"

namespace cocoon::ledger {

extern const std::string_view kCsvHeading;
extern const std::string_view kFocusHeading;

// The columns of kCsvHeading; empty: null. Text is quoted where CSV wants it.
void append_csv_row(const metering::Entry& entry, std::string& out);

// `unnumbered`: which of the entries without a seq this is, from 1, where it is one.
void append_cloud_event(const metering::Entry& entry, std::string_view node_id, std::uint64_t unnumbered,
                        std::string& out);

// One interval as FOCUS rows. Valid as long as the view.
class FocusInterval {
 public:
  FocusInterval(const IntervalView& interval, std::string_view node_id);

  [[nodiscard]] std::int64_t begin_ns() const { return interval_.start_ns; }
  [[nodiscard]] std::int64_t end_ns() const { return end_ns_; }

  // Its row of [bucket, next); nothing was used there if it does not reach into it.
  void append(std::int64_t bucket_ns, std::int64_t next_ns, std::string& out) const;

 private:
  const IntervalView& interval_;
  std::int64_t end_ns_;
  std::string row_id_;  // up to the bucket
  std::string rest_;    // the columns that do not depend on the bucket, behind those that do
};

}  // namespace cocoon::ledger
