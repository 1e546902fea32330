#include "cocoon/ledger/audit.h"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "cocoon/ledger/id_set.h"
#include "cocoon/ledger/id_table.h"
#include "cocoon/ledger/intervals.h"
#include "cocoon/ledger/sequence.h"
#include "cocoon/metering/ledger_file.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

using metering::BadEntry;
using metering::EntryView;
using metering::Kind;
using metering::quote;
using metering::Reason;

// A clock that is slewed runs up to 0.05 % off, and the two clocks of an entry are read one after the other, by a
// process that may lose its processor in between. A step is more than that.
constexpr std::int64_t kStepNs = 500'000'000;
constexpr std::int64_t kSlewDivisor = 1'000;

Code code_of(Anomaly anomaly) {
  switch (anomaly) {
    case Anomaly::kDoubleStart:
      return Code::kDoubleStart;
    case Anomaly::kStopWithoutStart:
      return Code::kStopWithoutStart;
    case Anomaly::kShapeChanged:
      return Code::kShapeChanged;
    case Anomaly::kHypervisorChanged:
      return Code::kHypervisorChanged;
    case Anomaly::kNegativeLength:
      return Code::kNegativeLength;
  }
  return Code::kBadField;
}

Code code_of(BadEntry::Fault fault) {
  switch (fault) {
    case BadEntry::Fault::kJson:
      return Code::kBadJson;
    case BadEntry::Fault::kKind:
      return Code::kUnknownKind;
    case BadEntry::Fault::kField:
      return Code::kBadField;
  }
  return Code::kBadJson;
}

bool is_removal(const EntryView& entry) {
  return (entry.kind == Kind::kVmStorageStop && entry.reason == Reason::kVmRemove) ||
         (entry.kind == Kind::kSnapStorageStop && entry.reason == Reason::kSnapshotRemove);
}

class Auditor {
 public:
  Auditor(const Files& files, std::uint64_t expected);

  AuditReport run(const Check& check);

 private:
  // One node's ledger.
  struct Node {
    Sequence sequence;
    std::string boot_id;  // of the last entry that had both clocks
    std::int64_t wall_ns = 0;
    std::int64_t uptime_ns = 0;
  };
  struct Vm {
    bool storage = false;
    bool compute = false;
    // Storage was stopped before compute. That is the order of a relabel, which closes and opens all at one instant: it
    // is a fault if the VM's next entry is of another instant, or never comes.
    std::optional<Finding> outlived;
    std::int64_t outlived_at_ns = 0;
  };

  using Vms = IdTable<Vm>;

  void look_at(const Batch::Item& item, const Position& at);
  void look_at(const BadLine& bad);
  void look_at_clocks(const EntryView& entry);
  void look_at_interval_name(const EntryView& entry);
  void look_at_vm(const EntryView& entry, std::uint64_t hash);
  void look_at_source(const EntryView& entry);
  void finish();

  Node& node_of(const Position& at);
  Finding finding(Code code, const Position& at, std::string message) const;
  void add(Code code, const EntryView& entry, std::string message);

  void find_missing_end();

  std::shared_ptr<const Files> files_;
  std::uint64_t expected_;
  AuditReport report_;
  std::map<std::string, Node> nodes_;  // by stream_of()
  const std::filesystem::path* file_ = nullptr;
  Node* node_ = nullptr;  // of file_
  Position at_;           // of the entry that is looked at
  bool removed_ = false;  // its id was removed before: that is all there is to say of it
  Pairer pairer_;
  const EntryView* paired_ = nullptr;  // the entry that the pairer is given
  IdSet removed_vms_;
  IdSet removed_snapshots_;
  IdSet snapshots_;  // ever opened
  Vms vms_;          // with storage or compute
};

Auditor::Auditor(const Files& files, std::uint64_t expected)
    : files_(std::make_shared<const Files>(files)),
      expected_(expected),
      pairer_(
          CrashEnd::kEnded, [](const IntervalView& /*interval*/) {},
          [this](Anomaly anomaly, std::optional<std::uint64_t> opened_by, const std::string& message) {
            const EntryView& entry = *paired_;
            if (removed_) {
              return;
            }
            // The start, or the stop in between, may be what a gap or a bad line has swallowed: that is reported.
            const Sequence& sequence = node_->sequence;
            if (anomaly == Anomaly::kStopWithoutStart && opened_by && sequence.lost_within(*opened_by, *opened_by)) {
              return;
            }
            if (anomaly == Anomaly::kDoubleStart && opened_by && entry.seq &&
                sequence.lost_within(*opened_by, *entry.seq)) {
              return;
            }
            add(code_of(anomaly), entry, message);
          }) {}

Auditor::Node& Auditor::node_of(const Position& at) {
  if (at.file != file_) {
    file_ = at.file;
    node_ = &nodes_[stream_of(*at.file)];
  }
  return *node_;
}

Finding Auditor::finding(Code code, const Position& at, std::string message) const {
  Finding found;
  found.code = code;
  found.file = at.file->string();
  found.line = at.line;
  found.offset = at.offset;
  found.message = std::move(message);
  return found;
}

void Auditor::add(Code code, const EntryView& entry, std::string message) {
  Finding found = finding(code, at_, std::move(message));
  found.seq = entry.seq;
  (is_vm(entry.kind) ? found.vm_id : found.snapshot_id) = entry.id;
  report_.findings.push_back(std::move(found));
}

void Auditor::look_at(const BadLine& bad) {
  Sequence& sequence = node_of(bad.line.at).sequence;
  if (bad.line.torn) {
    // Nothing follows it in this file; its entry is not lost: its writer appends it again.
    report_.findings.push_back(finding(Code::kTornLine, bad.line.at,
                                       fmt::format("the file ends without a '\\n' behind {}", quote(bad.line.text))));
    return;
  }
  if (!bad.error) {
    report_.findings.push_back(finding(Code::kBadJson, bad.line.at, "the line is longer than 16 MiB"));
    return;
  }
  Finding found = finding(code_of(bad.error->fault), bad.line.at, bad.error->what());
  found.seq = bad.error->seq;
  report_.findings.push_back(std::move(found));
  sequence.see_bad(bad.error->seq.value_or(metering::line_seq(bad.line.text)));
}

void Auditor::look_at(const Batch::Item& item, const Position& at) {
  const EntryView& entry = item.entry;
  Node& node = node_of(at);
  at_ = at;
  ++report_.entries;
  if (!entry.seq) {
    node.sequence.see_unnumbered();
  } else {
    switch (node.sequence.see(*entry.seq, at_)) {
      case Sequence::Verdict::kNext:
        break;
      case Sequence::Verdict::kLate:
        add(Code::kSeqBackwards, entry, fmt::format("seq {} comes after higher ones", *entry.seq));
        break;
      case Sequence::Verdict::kRepeat:
        // Said twice, it happened once: the rest of the checks would report the same line again.
        add(Code::kSeqRepeat, entry, fmt::format("seq {} was there before", *entry.seq));
        return;
    }
  }
  look_at_clocks(entry);
  look_at_interval_name(entry);
  const std::string_view id = entry.id;
  IdSet& removed_ids = is_vm(entry.kind) ? removed_vms_ : removed_snapshots_;
  removed_ = removed_ids.contains(item.hash);
  if (removed_) {
    add(Code::kAfterRemoval, entry, fmt::format("{} of {} after its removal", to_string(entry.kind), quote(id)));
  }
  pairer_.prefetch(*at.batch, at.item);
  paired_ = &entry;
  pairer_.add(entry, item.hash);
  paired_ = nullptr;
  if (!removed_) {
    look_at_source(entry);
    if (is_vm(entry.kind)) {
      look_at_vm(entry, item.hash);
    }
  }
  if (entry.kind == Kind::kSnapStorageStart) {
    snapshots_.insert(item.hash);
  }
  if (is_removal(entry)) {
    removed_ids.insert(item.hash);
  }
}

void Auditor::look_at_clocks(const EntryView& entry) {
  if (entry.boot_id.empty() || !entry.uptime_ns) {
    return;
  }
  Node& node = *node_;
  if (node.boot_id == entry.boot_id) {
    std::int64_t wall = 0;
    std::int64_t off = 0;
    const std::int64_t uptime = *entry.uptime_ns - node.uptime_ns;  // neither is negative
    const bool overflow = __builtin_sub_overflow(entry.emitted_at_ns, node.wall_ns, &wall) ||
                          __builtin_sub_overflow(wall, uptime, &off) || off == std::numeric_limits<std::int64_t>::min();
    if (overflow || std::abs(off) > kStepNs + std::abs(uptime) / kSlewDivisor) {
      add(Code::kClockStepped, entry,
          fmt::format("since the entry before the wall clock went on by {} ns, the uptime by {} ns", wall, uptime));
    }
  }
  node.boot_id = entry.boot_id;
  node.wall_ns = entry.emitted_at_ns;
  node.uptime_ns = *entry.uptime_ns;
}

void Auditor::look_at_interval_name(const EntryView& entry) {
  if (!entry.seq || !entry.interval) {
    return;
  }
  if (is_start(entry.kind) && *entry.interval != *entry.seq) {
    add(Code::kBadField, entry,
        fmt::format("entry field interval: {} is not the start's own seq, {}", *entry.interval, *entry.seq));
  } else if (!is_start(entry.kind) && *entry.interval >= *entry.seq) {
    add(Code::kBadField, entry,
        fmt::format("entry field interval: {} is not before the stop's own seq, {}", *entry.interval, *entry.seq));
  }
}

void Auditor::look_at_vm(const EntryView& entry, std::uint64_t hash) {
  Vms::Node* known = vms_.find(hash, 0, entry.id);
  Vms::Node& node = known != nullptr ? *known : vms_.insert(hash, 0, entry.id);
  if (known == nullptr) node.value = {};
  Vm& vm = node.value;
  if (vm.outlived && (vm.outlived_at_ns != entry.emitted_at_ns)) {
    report_.findings.push_back(*std::exchange(vm.outlived, std::nullopt));
  }
  switch (entry.kind) {
    case Kind::kVmComputeStart:
      // A ledger that does not begin with its first entry may have opened the storage before.
      if (!vm.storage && !vm.outlived && node_->sequence.complete()) {
        add(Code::kComputeOutlivesStorage, entry,
            fmt::format("{} starts to compute while its storage is not open", quote(entry.id)));
      }
      vm.compute = true;
      break;
    case Kind::kVmComputeStop:
      vm.compute = false;
      break;
    case Kind::kVmStorageStart:
      vm.storage = true;
      break;
    case Kind::kVmStorageStop:
      vm.storage = false;
      if (vm.compute) {
        vm.outlived = finding(Code::kComputeOutlivesStorage, at_,
                              fmt::format("the storage of {} is stopped while it computes", quote(entry.id)));
        vm.outlived->seq = entry.seq;
        vm.outlived->vm_id = entry.id;
        vm.outlived_at_ns = entry.emitted_at_ns;
      }
      break;
    case Kind::kSnapStorageStart:
    case Kind::kSnapStorageStop:
      break;
  }
  if (vm.storage || !vm.compute) {
    vm.outlived.reset();
  }
  if (!vm.storage && !vm.compute) {
    vms_.erase(node);
  }
}

void Auditor::look_at_source(const EntryView& entry) {
  // The Go engine keeps snapshots in a ledger of their own, and a start in a gap is a start too: only a ledger that is
  // whole up to here can say that a snapshot never was.
  if (!entry.source_snapshot_id.empty() && node_->sequence.complete() &&
      !snapshots_.contains(hash_of(entry.source_snapshot_id))) {
    add(Code::kUnknownSourceSnapshot, entry,
        fmt::format("{} of {} comes from snapshot {}, which this ledger never opened", to_string(entry.kind),
                    quote(entry.id), quote(entry.source_snapshot_id)));
  }
}

// What the node has written, and the ledger no longer has, because somebody cut it or took it away.
void Auditor::find_missing_end() {
  std::uint64_t last = 0;
  for (const auto& [stream, node] : nodes_) {
    last = std::max(last, node.sequence.last());
  }
  if (last >= expected_) {
    return;
  }
  Finding found;
  found.code = Code::kSeqGap;
  found.file = files_->empty() ? std::string() : files_->back().string();
  found.seq = last + 1;
  found.message = fmt::format("seq {} to {} are missing: the node wrote them, but the ledger ends before them",
                              last + 1, expected_);
  report_.findings.push_back(std::move(found));
}

void Auditor::finish() {
  vms_.for_each([&](Vms::Node& node) {
    if (node.value.outlived) {
      report_.findings.push_back(std::move(*node.value.outlived));
    }
  });
  if (expected_ > 0) {
    find_missing_end();
  }
  for (const auto& [stream, node] : nodes_) {
    for (const auto& [first, gap] : node.sequence.gaps()) {
      Finding found = finding(Code::kSeqGap, gap.before,
                              first == gap.last ? fmt::format("seq {} is missing", first)
                                                : fmt::format("seq {} to {} are missing", first, gap.last));
      found.seq = first;
      report_.findings.push_back(std::move(found));
    }
  }
  std::map<std::string, std::size_t> order;
  for (const auto& file : *files_) {
    order.emplace(file.string(), order.size());
  }
  std::stable_sort(report_.findings.begin(), report_.findings.end(), [&](const Finding& a, const Finding& b) {
    // What has no offset is missing behind the end.
    return std::tuple(order[a.file], !a.offset, a.offset, a.code) <
           std::tuple(order[b.file], !b.offset, b.offset, b.code);
  });
}

AuditReport Auditor::run(const Check& check) {
  for_each_line(
      files_, [this](const Batch::Item& item, const Position& at) { look_at(item, at); },
      [this](const BadLine& bad) { look_at(bad); }, check);
  finish();
  return std::move(report_);
}

}  // namespace

std::string_view to_string(Code code) {
  switch (code) {
    case Code::kTornLine:
      return "torn-line";
    case Code::kBadJson:
      return "bad-json";
    case Code::kBadField:
      return "bad-field";
    case Code::kUnknownKind:
      return "unknown-kind";
    case Code::kSeqGap:
      return "seq-gap";
    case Code::kSeqRepeat:
      return "seq-repeat";
    case Code::kSeqBackwards:
      return "seq-backwards";
    case Code::kDoubleStart:
      return "double-start";
    case Code::kStopWithoutStart:
      return "stop-without-start";
    case Code::kShapeChanged:
      return "shape-changed";
    case Code::kHypervisorChanged:
      return "hypervisor-changed";
    case Code::kClockStepped:
      return "clock-stepped";
    case Code::kNegativeLength:
      return "negative-length";
    case Code::kComputeOutlivesStorage:
      return "compute-outlives-storage";
    case Code::kAfterRemoval:
      return "after-removal";
    case Code::kUnknownSourceSnapshot:
      return "unknown-source-snapshot";
  }
  return {};
}

AuditReport audit(const Files& files, const Check& check, std::uint64_t expected) {
  return Auditor(files, expected).run(check);
}

}  // namespace cocoon::ledger
