#include "cocoon/ledger/export_rows.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cocoon/ledger/usage.h"

namespace cocoon::ledger {

using metering::Entry;

const std::string_view kCsvHeading =
    "seq,kind,vm_id,snapshot_id,source_snapshot_id,reason,hypervisor,cpu,mem_bytes,storage_bytes,emitted_at,interval,"
    "labels,ended_at,ended_uptime_ns,evidence,alive_until,boot_id,uptime_ns\n";

// The mandatory columns of FOCUS 1.2 and those that a provider of usage can fill; then ours.
const std::string_view kFocusHeading =
    "BillingPeriodStart,BillingPeriodEnd,ChargePeriodStart,ChargePeriodEnd,ConsumedQuantity,PricingQuantity,"
    "x_VcpuSeconds,x_MemByteSeconds,x_StorageByteSeconds,x_RowId,"
    "ConsumedUnit,PricingUnit,BilledCost,EffectiveCost,ListCost,ContractedCost,BillingCurrency,BillingAccountId,"
    "BillingAccountName,ChargeCategory,ChargeClass,ChargeFrequency,ChargeDescription,ProviderName,PublisherName,"
    "InvoiceIssuerName,ServiceCategory,ServiceSubcategory,ServiceName,ResourceId,ResourceType,Tags,"
    "x_Hypervisor,x_StartReason,x_StopReason,x_StartSeq,x_StopSeq,x_Open\n";

namespace {

constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint64_t kSecondsPerHour = 3'600;
constexpr std::uint64_t kGib = std::uint64_t{1} << 30;

// RFC 4180: quoted if it holds what would end it; a quote is doubled.
void append_cell(std::string_view text, std::string& out) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) {
    out += text;
    return;
  }
  out += '"';
  for (const char c : text) {
    out += c;
    if (c == '"') {
      out += c;
    }
  }
  out += '"';
}

class Cells {
 public:
  explicit Cells(std::string& out) : out_(out) {}

  Cells& text(std::string_view value) {
    separate();
    append_cell(value, out_);
    return *this;
  }
  template <typename Number>
  Cells& number(const std::optional<Number>& value) {
    separate();
    if (value) fmt::format_to(std::back_inserter(out_), "{}", *value);
    return *this;
  }
  Cells& time(const std::optional<std::int64_t>& ns) {
    separate();
    if (ns) metering::append_time(*ns, out_);
    return *this;
  }
  Cells& labels(const std::map<std::string, std::string>& value) {
    std::string json;
    metering::append_labels(value, json);
    return text(json);
  }
  Cells& reason(const std::optional<metering::Reason>& value) {
    return text(value ? to_string(*value) : std::string_view());
  }

 private:
  void separate() {
    if (!std::exchange(first_, false)) out_ += ',';
  }

  std::string& out_;
  bool first_ = true;
};

template <typename Number>
std::optional<Number> some(Number value) {
  return value;
}

// sum / divisor with nine decimals, rounded down, trailing zeros cut. Exact where the divisor is 10^9.
std::string decimal(Uint128 sum, Uint128 divisor) {
  const auto whole = static_cast<Uint128>(sum / divisor);
  // The divisor has at most 72 bits, so this has at most 102.
  const auto fraction = static_cast<std::uint64_t>(sum % divisor * kNsPerSecond / divisor);
  std::string text = fmt::format("{}", whole);
  if (fraction != 0) {
    text += fmt::format(".{:09}", fraction);
    text.resize(text.find_last_not_of('0') + 1);
  }
  return text;
}

// "2026-03-01T00:00:00Z" of the month that `ns` lies in, and of the next.
std::pair<std::string, std::string> month_of(std::int64_t ns) {
  const std::string text = metering::format_time(ns);
  const int year = std::stoi(text.substr(0, 4));
  const int month = std::stoi(text.substr(5, 2));
  const auto first = [](int y, int m) { return fmt::format("{:04}-{:02}-01T00:00:00Z", y, m); };
  return {first(year, month), month == 12 ? first(year + 1, 1) : first(year, month + 1)};
}

struct Service {
  std::string_view category;
  std::string_view subcategory;
  std::string_view name;
  std::string_view resource_type;
  std::string_view consumed_unit;
  std::string_view pricing_unit;
};

Service service_of(Dimension dimension) {
  switch (dimension) {
    case Dimension::kVmCompute:
      return {"Compute", "Virtual Machines", "VM compute", "VM", "vCPU-Seconds", "vCPU-Hours"};
    case Dimension::kVmStorage:
      return {"Storage", "Block Storage", "VM storage", "VM", "B-Seconds", "GiB-Hours"};
    case Dimension::kSnapStorage:
      return {"Storage", "Block Storage", "Snapshot storage", "Snapshot", "B-Seconds", "GiB-Hours"};
  }
  return {};
}

std::int64_t end_of(const IntervalView& interval) {
  std::int64_t end = 0;
  return __builtin_add_overflow(interval.start_ns, interval.length_ns, &end) ? std::numeric_limits<std::int64_t>::max()
                                                                             : end;
}

// What never changes for the same interval, whether the ledger numbers its entries or not.
std::string interval_name(const IntervalView& interval) {
  return interval.start_seq ? std::to_string(*interval.start_seq) : fmt::format("u{}", interval.ordinal);
}

}  // namespace

void append_csv_row(const Entry& e, std::string& out) {
  Cells(out)
      .number(e.seq)
      .text(to_string(e.kind))
      .text(e.vm_id)
      .text(e.snapshot_id)
      .text(e.source_snapshot_id)
      .reason(e.reason)
      .text(e.hypervisor)
      .number(some(e.shape.cpu))
      .number(some(e.shape.mem_bytes))
      .number(some(e.shape.storage_bytes))
      .time(e.emitted_at_ns)
      .number(e.interval)
      .labels(e.labels)
      .time(e.ended_at_ns)
      .number(e.ended_uptime_ns)
      .text(e.evidence)
      .time(e.alive_until_ns)
      .text(e.boot_id)
      .number(e.uptime_ns);
  out += '\n';
}

void append_cloud_event(const Entry& entry, std::string_view node_id, std::uint64_t unnumbered, std::string& out) {
  const auto to = std::back_inserter(out);
  fmt::format_to(to, R"({{"specversion":"1.0","id":"{}/)", node_id);
  entry.seq ? fmt::format_to(to, "{}", *entry.seq) : fmt::format_to(to, "u{}", unnumbered);
  fmt::format_to(to, R"(","source":"urn:cocoon:node:{}","type":"cocoon.{}","subject":{},"time":")", node_id,
                 to_string(entry.kind), nlohmann::json(is_vm(entry.kind) ? entry.vm_id : entry.snapshot_id).dump());
  metering::append_time(entry.emitted_at_ns, out);
  out += R"(","datacontenttype":"application/json","data":)";
  metering::append_json(entry, out);
  out += "}\n";
}

FocusInterval::FocusInterval(const IntervalView& interval, std::string_view node_id)
    : interval_(interval), end_ns_(end_of(interval)), row_id_(fmt::format("{}/{}/", node_id, interval_name(interval))) {
  const Service service = service_of(interval.dimension);
  std::string description = fmt::format("{} of {}", service.name, interval.id);
  Cells(rest_)
      .text(service.consumed_unit)
      .text(service.pricing_unit)
      .text("0")
      .text("0")
      .text("0")
      .text("0")
      .text("XXX")  // ISO 4217: no currency
      .text(node_id)
      .text("")
      .text("Usage")
      .text("")
      .text("Usage-Based")
      .text(description)
      .text("cocoon")
      .text("cocoon")
      .text("cocoon")
      .text(service.category)
      .text(service.subcategory)
      .text(service.name)
      .text(interval.id)
      .text(service.resource_type)
      .text(interval.labels)
      .text(interval.hypervisor)
      .reason(interval.start_reason)
      .reason(interval.stop_reason)
      .number(interval.start_seq)
      .number(interval.stop_seq)
      .text(interval.open ? "true" : "false");
}

void FocusInterval::append(std::int64_t bucket_ns, std::int64_t next_ns, std::string& out) const {
  const std::int64_t from = std::max(bucket_ns, interval_.start_ns);
  const std::int64_t to = std::min(next_ns, end_ns_);
  const Uint128 length = from < to ? static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from) : 0;
  const bool compute = interval_.dimension == Dimension::kVmCompute;
  const auto used = [&](std::int64_t units, bool counts) {
    return counts ? length * static_cast<std::uint64_t>(units) : Uint128{0};
  };
  const Uint128 vcpu = used(interval_.shape.cpu, compute);
  const Uint128 memory = used(interval_.shape.mem_bytes, compute);
  const Uint128 storage = used(interval_.shape.storage_bytes, !compute);
  const Uint128 per_hour = Uint128{kNsPerSecond} * kSecondsPerHour * (compute ? 1 : kGib);
  const auto [month, next_month] = month_of(bucket_ns);
  Cells(out)
      .text(month)
      .text(next_month)
      .time(bucket_ns)
      .time(next_ns)
      .text(decimal(compute ? vcpu : storage, kNsPerSecond))
      .text(decimal(compute ? vcpu : storage, per_hour))
      .text(decimal(vcpu, kNsPerSecond))
      .text(decimal(memory, kNsPerSecond))
      .text(decimal(storage, kNsPerSecond))
      .text(row_id_ + metering::format_time(bucket_ns));
  out += ',';
  out += rest_;
  out += '\n';
}

}  // namespace cocoon::ledger
