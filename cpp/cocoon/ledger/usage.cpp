#include "cocoon/ledger/usage.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

using Key = std::vector<std::optional<std::string>>;

constexpr std::string_view kLabel = "label:";
constexpr std::string_view kAllowed = "vm_id, snapshot_id, hypervisor, kind, reason, label:KEY";
constexpr std::uint64_t kMostRows = 10'000'000;
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;

void check_by(const std::vector<std::string>& by) {
  constexpr std::array<std::string_view, 5> kNames = {"vm_id", "snapshot_id", "hypervisor", "kind", "reason"};
  for (auto part = by.begin(); part != by.end(); ++part) {
    const bool label = part->starts_with(kLabel) && part->size() > kLabel.size();
    if (!label && std::find(kNames.begin(), kNames.end(), *part) == kNames.end()) {
      throw InvalidArgument(fmt::format("by: {} is not one of {}", metering::quote(*part), kAllowed));
    }
    if (std::find(by.begin(), part, *part) != part) {
      throw InvalidArgument(fmt::format("by: {} is there twice; allowed is once", metering::quote(*part)));
    }
  }
}

std::optional<std::string> some(std::string_view text) {
  return text.empty() ? std::nullopt : std::optional<std::string>(text);
}

std::optional<std::string> value_of(const Interval& interval, const std::string& part) {
  const bool snapshot = interval.dimension == Dimension::kSnapStorage;
  if (part == "vm_id") return snapshot ? std::nullopt : some(interval.id);
  if (part == "snapshot_id") return snapshot ? some(interval.id) : std::nullopt;
  if (part == "hypervisor") return some(interval.hypervisor);
  if (part == "kind") return some(to_string(interval.dimension));
  if (part == "reason") return interval.start_reason ? some(to_string(*interval.start_reason)) : std::nullopt;
  const auto label = interval.labels.find(part.substr(kLabel.size()));
  return label == interval.labels.end() ? std::nullopt : std::optional<std::string>(label->second);
}

// The bucket's begin at or before `at`; the first bucket of all may begin before the clock does.
std::int64_t bucket_of(std::int64_t at, std::int64_t every) {
  const std::int64_t rest = at % every;
  std::int64_t begin = 0;
  if (__builtin_sub_overflow(at, rest < 0 ? rest + every : rest, &begin)) {
    return std::numeric_limits<std::int64_t>::min();
  }
  return begin;
}

std::int64_t sum_to_end(std::int64_t start, std::int64_t length) {
  std::int64_t end = 0;
  return __builtin_add_overflow(start, length, &end) ? kForever : end;
}

// Neither factor is negative, so one product fits in 126 bits.
void add_product(std::uint64_t length_ns, std::int64_t units, Uint128& sum) {
  if (__builtin_add_overflow(sum, Uint128{length_ns} * static_cast<std::uint64_t>(units), &sum)) {
    throw Error("usage: a sum does not fit in 128 bits");
  }
}

}  // namespace

double per_second(Uint128 sum_ns) {
  const Uint128 whole = sum_ns / kNsPerSecond;  // exact so far: this is the last division
  return static_cast<double>(whole) +
         static_cast<double>(static_cast<std::uint64_t>(sum_ns % kNsPerSecond)) / static_cast<double>(kNsPerSecond);
}

Usage::Usage(UsageQuery query, std::int64_t now_ns) : query_(std::move(query)), now_ns_(now_ns) {
  check_by(query_.by);
  if (query_.every_ns && *query_.every_ns < 1) {
    throw InvalidArgument(fmt::format("every: {} ns is not positive", *query_.every_ns));
  }
  if (query_.since_ns && query_.until_ns && *query_.since_ns > *query_.until_ns) {
    throw InvalidArgument(fmt::format("since: {} is after until, {}", metering::format_time(*query_.since_ns),
                                      metering::format_time(*query_.until_ns)));
  }
}

Key Usage::key_of(const Interval& interval) const {
  Key key;
  key.reserve(query_.by.size());
  for (const std::string& part : query_.by) {
    key.push_back(value_of(interval, part));
  }
  return key;
}

void Usage::count(const Interval& interval, const Key& key, std::int64_t bucket_ns, std::uint64_t length_ns) {
  const auto [at, fresh] = rows_.try_emplace({key, bucket_ns});
  UsageRow& row = at->second;
  if (fresh) {
    row.key = key;
    row.bucket_ns = bucket_ns;
  }
  switch (interval.dimension) {
    case Dimension::kVmCompute:
      add_product(length_ns, interval.shape.cpu, row.vcpu_ns);
      add_product(length_ns, interval.shape.mem_bytes, row.mem_byte_ns);
      break;
    case Dimension::kVmStorage:
    case Dimension::kSnapStorage:
      add_product(length_ns, interval.shape.storage_bytes, row.storage_byte_ns);
      break;
  }
  ++row.intervals;
  row.open += interval.open ? 1 : 0;
}

void Usage::add(const Interval& interval) {
  const std::int64_t end = sum_to_end(interval.start_ns, interval.length_ns);
  const std::int64_t from = std::max(interval.start_ns, query_.since_ns.value_or(interval.start_ns));
  const std::int64_t to = query_.until_ns ? std::min(end, *query_.until_ns) : end;
  // An interval of no length touches the window that its instant lies in.
  const bool instant = interval.length_ns == 0 && from == interval.start_ns;
  const bool begins_too_late = query_.until_ns && interval.start_ns >= *query_.until_ns;
  if (begins_too_late || (from >= to && !instant)) {
    return;
  }
  const Key key = key_of(interval);
  const auto length = [](std::int64_t begin, std::int64_t stop) {
    return static_cast<std::uint64_t>(stop) - static_cast<std::uint64_t>(begin);
  };
  if (!query_.every_ns) {
    count(interval, key, 0, length(from, std::max(from, to)));
    return;
  }
  if (from >= to) {
    count(interval, key, bucket_of(from, *query_.every_ns), 0);
    return;
  }
  // Buckets of other intervals and keys may be the same ones, so this refuses nothing that fits.
  const std::uint64_t buckets = length(from, to) / static_cast<std::uint64_t>(*query_.every_ns);
  if (std::max<std::uint64_t>(buckets, rows_.size()) > kMostRows) {
    throw InvalidArgument(
        fmt::format("every: {} ns makes more than {} rows of this ledger; allowed is a longer bucket "
                    "or a shorter window",
                    *query_.every_ns, kMostRows));
  }
  for (std::int64_t at = from; at < to;) {
    const std::int64_t bucket = bucket_of(at, *query_.every_ns);
    const std::int64_t bucket_end = std::max(sum_to_end(bucket, *query_.every_ns), at + 1);
    const std::int64_t stop = std::min(bucket_end, to);
    count(interval, key, bucket, length(at, stop));
    at = stop;
  }
}

std::vector<UsageRow> Usage::rows() const {
  std::vector<UsageRow> rows;
  rows.reserve(rows_.size());
  for (const auto& [key, row] : rows_) {
    rows.push_back(row);
  }
  return rows;
}

std::vector<UsageRow> read_usage(const Files& files, const UsageQuery& query, std::int64_t now_ns, const Check& check) {
  Usage usage(query, now_ns);
  Pairer pairer(query.crash, [&](Interval&& interval) { usage.add(interval); });
  for_each_entry(files, [&](PlacedEntry&& placed) { pairer.add(placed.entry); }, check);
  pairer.finish(usage.until_ns());
  return usage.rows();
}

}  // namespace cocoon::ledger
