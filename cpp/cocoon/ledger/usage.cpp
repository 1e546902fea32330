#include "cocoon/ledger/usage.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/bytes.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

constexpr std::string_view kLabel = "label:";
constexpr std::string_view kAllowed = "vm_id, snapshot_id, hypervisor, kind, reason, label:KEY";
constexpr std::uint64_t kMostRows = 10'000'000;
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();  // the size of a part that is none

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
  for (const std::string& part : query_.by) {
    label_keys_.push_back(part.starts_with(kLabel) ? part.substr(kLabel.size()) : std::string());
  }
}

// The parts one behind the other, each with its size before it so that no two keys are the same text, and the bucket.
void Usage::set_key(const IntervalView& interval) {
  const bool snapshot = interval.dimension == Dimension::kSnapStorage;
  key_.clear();
  const auto add = [this](std::optional<std::string_view> part) {
    const std::uint32_t size = part ? static_cast<std::uint32_t>(part->size()) : kNone;
    key_.append(reinterpret_cast<const char*>(&size), sizeof size);
    if (part) key_ += *part;
  };
  const auto some = [&](std::string_view text) { add(text.empty() ? std::nullopt : std::optional(text)); };
  for (std::size_t i = 0; i < query_.by.size(); ++i) {
    const std::string& part = query_.by[i];
    if (!label_keys_[i].empty()) {
      if (parsed_ != interval.labels) {
        parsed_ = interval.labels;
        labels_ = parsed_.empty() ? std::map<std::string, std::string>() : metering::parse_labels(parsed_);
      }
      const auto label = labels_.find(label_keys_[i]);
      add(label == labels_.end() ? std::nullopt : std::optional<std::string_view>(label->second));
    } else if (part == "vm_id") {
      some(snapshot ? std::string_view() : interval.id);
    } else if (part == "snapshot_id") {
      some(snapshot ? interval.id : std::string_view());
    } else if (part == "hypervisor") {
      some(interval.hypervisor);
    } else if (part == "kind") {
      some(to_string(interval.dimension));
    } else {
      some(interval.start_reason ? to_string(*interval.start_reason) : std::string_view());
    }
  }
  key_.append(sizeof(std::int64_t), '\0');
}

// The row of key_, made where it is the first of it.
UsageRow& Usage::row_of_key() {
  const auto [at, fresh] = places_.try_emplace(key_, rows_.size());
  if (!fresh) return rows_[at->second];
  UsageRow& row = rows_.emplace_back();
  std::string_view rest = key_;
  for (std::size_t i = 0; i < query_.by.size(); ++i) {
    const auto size = take<std::uint32_t>(rest);
    row.key.push_back(size == kNone ? std::nullopt : std::optional<std::string>(take_bytes(rest, size)));
  }
  row.bucket_ns = take<std::int64_t>(rest);
  return row;
}

void Usage::count(const IntervalView& interval, std::int64_t bucket_ns, std::uint64_t length_ns) {
  std::memcpy(key_.data() + key_.size() - sizeof bucket_ns, &bucket_ns, sizeof bucket_ns);
  UsageRow& row = row_of_key();
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

void Usage::add(const IntervalView& interval) {
  const std::int64_t end = sum_to_end(interval.start_ns, interval.length_ns);
  const std::int64_t from = std::max(interval.start_ns, query_.since_ns.value_or(interval.start_ns));
  const std::int64_t to = query_.until_ns ? std::min(end, *query_.until_ns) : end;
  // An interval of no length touches the window that its instant lies in.
  const bool instant = interval.length_ns == 0 && from == interval.start_ns;
  const bool begins_too_late = query_.until_ns && interval.start_ns >= *query_.until_ns;
  if (begins_too_late || (from >= to && !instant)) {
    return;
  }
  set_key(interval);
  const auto length = [](std::int64_t begin, std::int64_t stop) {
    return static_cast<std::uint64_t>(stop) - static_cast<std::uint64_t>(begin);
  };
  if (!query_.every_ns) {
    count(interval, 0, length(from, std::max(from, to)));
    return;
  }
  if (from >= to) {
    count(interval, bucket_of(from, *query_.every_ns), 0);
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
    count(interval, bucket, length(at, stop));
    at = stop;
  }
}

void Usage::save(std::string& out) const {
  put(out, static_cast<std::uint64_t>(places_.size()));
  for (const auto& [key, place] : places_) {
    const UsageRow& row = rows_[place];
    put(out, std::string_view(key));
    put(out, row.vcpu_ns);
    put(out, row.mem_byte_ns);
    put(out, row.storage_byte_ns);
    put(out, row.intervals);
    put(out, row.open);
  }
}

void Usage::load(std::string_view& in) {
  for (auto count = take<std::uint64_t>(in); count > 0; --count) {
    key_ = take_text(in);
    UsageRow& row = row_of_key();
    row.vcpu_ns = take<Uint128>(in);
    row.mem_byte_ns = take<Uint128>(in);
    row.storage_byte_ns = take<Uint128>(in);
    row.intervals = take<std::uint64_t>(in);
    row.open = take<std::uint64_t>(in);
  }
}

std::vector<UsageRow> Usage::rows() const {
  std::vector<UsageRow> rows = rows_;
  std::sort(rows.begin(), rows.end(), [](const UsageRow& a, const UsageRow& b) {
    return std::tie(a.key, a.bucket_ns) < std::tie(b.key, b.bucket_ns);
  });
  return rows;
}

std::vector<UsageRow> read_usage(const Files& files, const UsageQuery& query, std::int64_t now_ns, const Check& check) {
  Usage usage(query, now_ns);
  Pairer pairer(query.crash, [&](const IntervalView& interval) { usage.add(interval); });
  for_each_once(files, pairing(pairer), check);
  pairer.finish(usage.until_ns());
  return usage.rows();
}

}  // namespace cocoon::ledger
