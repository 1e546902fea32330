#pragma once
// A ledger written by hand, as a node writes it: each entry gets the next seq, a stop the interval of its start, both
// clocks go on by the second. What a test wants to be wrong it spoils in the entry, or in the text.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cocoon/ledger/audit.h"
#include "cocoon/ledger/intervals.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/metering/entry.h"

#include "metering_support.h"

namespace cocoon::test {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kMidnight = 1'795'392'000 * kSecond;  // 2026-11-23T00:00:00Z

class LedgerText {
 public:
  using Spoil = std::function<void(metering::Entry& entry)>;

  // One entry, `seconds` after midnight.
  LedgerText& add(metering::Kind kind, const std::string& id, std::int64_t seconds, const Spoil& spoil = {}) {
    const std::int64_t at = kMidnight + seconds * kSecond;
    metering::Entry entry = metering::is_vm(kind) ? vm_entry(kind, id, at) : snap_entry(kind, id, at);
    entry.seq = ++seq_;
    entry.boot_id = "0a1b2c3d";
    entry.uptime_ns = (1'000 + seconds) * kSecond;
    std::uint64_t& opened = opened_[std::to_string(static_cast<int>(ledger::dimension_of(kind))) + id];
    if (metering::is_start(kind)) {
      opened = seq_;
    }
    entry.interval = opened == 0 ? seq_ : opened;
    if (spoil) {
      spoil(entry);
    }
    lines_.push_back(metering::to_json(entry));
    return *this;
  }
  LedgerText& vm_start(const std::string& id, std::int64_t seconds, const Spoil& spoil = {}) {
    return add(metering::Kind::kVmComputeStart, id, seconds, spoil);
  }
  LedgerText& vm_stop(const std::string& id, std::int64_t seconds, const Spoil& spoil = {}) {
    return add(metering::Kind::kVmComputeStop, id, seconds, spoil);
  }
  LedgerText& vm_create(const std::string& id, std::int64_t seconds, const Spoil& spoil = {}) {
    return add(metering::Kind::kVmStorageStart, id, seconds, spoil);
  }
  LedgerText& vm_remove(const std::string& id, std::int64_t seconds, const Spoil& spoil = {}) {
    return add(metering::Kind::kVmStorageStop, id, seconds, [&](metering::Entry& entry) {
      entry.reason = metering::Reason::kVmRemove;
      if (spoil) spoil(entry);
    });
  }
  LedgerText& line(std::string text) {
    lines_.push_back(std::move(text));
    return *this;
  }
  LedgerText& drop_last() {
    lines_.pop_back();
    return *this;
  }
  LedgerText& swap_last_two() {
    std::swap(lines_[lines_.size() - 1], lines_[lines_.size() - 2]);
    return *this;
  }
  LedgerText& repeat_last() {
    lines_.push_back(lines_.back());
    return *this;
  }
  // The line once more, behind the last.
  LedgerText& repeat(std::size_t line) {
    lines_.push_back(lines_.at(line));
    return *this;
  }
  std::string& last() { return lines_.back(); }
  [[nodiscard]] std::uint64_t seq() const { return seq_; }

  [[nodiscard]] std::string text() const {
    std::string out;
    for (const std::string& one : lines_) {
      out += one + '\n';
    }
    return out;
  }
  ledger::Files write(const std::filesystem::path& path) const {
    write_file(path, text());
    return {path};
  }

 private:
  std::vector<std::string> lines_;
  std::uint64_t seq_ = 0;
  std::map<std::string, std::uint64_t> opened_;
};

inline void pair(ledger::Pairer& pairer, const metering::Entry& entry) {
  std::string labels;
  pairer.add(metering::view_of(entry, labels));
}

// A node's quiet day: created, started, stopped, restarted, removed; a snapshot made and a clone started from it.
inline LedgerText quiet_day() {
  LedgerText text;
  const auto reason = [](metering::Reason why) { return [why](metering::Entry& entry) { entry.reason = why; }; };
  text.vm_create("v1", 0, reason(metering::Reason::kBoot))
      .vm_start("v1", 1, reason(metering::Reason::kBoot))
      .vm_stop("v1", 11, reason(metering::Reason::kStopUser))
      .add(metering::Kind::kSnapStorageStart, "s1", 12)
      .vm_start("v1", 20, reason(metering::Reason::kRestart));
  const auto clone = [](metering::Entry& entry) {
    entry.reason = metering::Reason::kClone;
    entry.source_snapshot_id = "s1";
    entry.labels = {{"tenant", "blue"}};
  };
  text.vm_create("v2", 30, clone)
      .vm_start("v2", 30, clone)
      .add(metering::Kind::kSnapStorageStop, "s1", 40, reason(metering::Reason::kSnapshotRemove))
      .vm_stop("v1", 50, reason(metering::Reason::kStopCrash))
      .vm_remove("v1", 50);
  return text;
}

}  // namespace cocoon::test
