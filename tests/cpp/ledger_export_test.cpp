// The bytes of an export, for a ledger that never changes: what a sink has stored once must come again the same.

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/export.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

// Of the Go engine, without a seq; then ours: labels that CSV and JSON must quote, a snapshot, a clone, a crash that
// its parent saw and one that nobody saw.
constexpr std::array<std::string_view, 8> kLines = {
    R"({"kind":"vm.storage.start","vm_id":"G","reason":"boot","hypervisor":"firecracker","shape":{"storage_bytes":7},)"
    R"("emitted_at":"2026-11-22T09:00:35.8Z"})",
    R"({"kind":"vm.storage.start","vm_id":"v1","reason":"boot","hypervisor":"qemu",)"
    R"("shape":{"cpu":2,"mem_bytes":512,"storage_bytes":1024},"emitted_at":"2026-11-23T00:00:00Z","seq":1,"interval":1,)"
    R"("labels":{"team":"a, \"b\"","tenant":"blue"},"boot_id":"0a1b2c3d","uptime_ns":1000000000})",
    R"({"kind":"vm.compute.start","vm_id":"v1","reason":"boot","hypervisor":"qemu",)"
    R"("shape":{"cpu":2,"mem_bytes":512,"storage_bytes":1024},"emitted_at":"2026-11-23T00:00:01.000000001Z","seq":2,)"
    R"("interval":2,"labels":{"team":"a, \"b\"","tenant":"blue"},"boot_id":"0a1b2c3d","uptime_ns":2000000001})",
    R"({"kind":"snap.storage.start","snapshot_id":"s1","hypervisor":"qemu","shape":{"storage_bytes":4096},)"
    R"("emitted_at":"2026-11-23T00:00:05Z","seq":3,"interval":3,"boot_id":"0a1b2c3d","uptime_ns":6000000000})",
    R"({"kind":"vm.compute.start","vm_id":"v\"2","source_snapshot_id":"s1","reason":"clone","hypervisor":"qemu",)"
    R"("shape":{"cpu":2,"mem_bytes":512},"emitted_at":"2026-11-23T00:00:06Z","seq":4,"interval":4,)"
    R"("boot_id":"0a1b2c3d","uptime_ns":7000000000})",
    R"({"kind":"vm.compute.stop","vm_id":"v1","reason":"stop-crash","hypervisor":"qemu",)"
    R"("shape":{"cpu":2,"mem_bytes":512,"storage_bytes":1024},"emitted_at":"2026-11-23T00:00:20Z","seq":5,"interval":2,)"
    R"("ended_at":"2026-11-23T00:00:09.5Z","ended_uptime_ns":10500000000,"evidence":"shim","boot_id":"0a1b2c3d",)"
    R"("uptime_ns":21000000000})",
    R"({"kind":"vm.compute.stop","vm_id":"v\"2","reason":"stop-crash","hypervisor":"qemu",)"
    R"("shape":{"cpu":2,"mem_bytes":512},"emitted_at":"2026-11-23T00:00:21Z","seq":6,"interval":4,)"
    R"("alive_until":"2026-11-23T00:00:19Z","boot_id":"0a1b2c3d","uptime_ns":22000000000})",
    R"({"kind":"snap.storage.stop","snapshot_id":"s1","reason":"snap-rm","hypervisor":"qemu",)"
    R"("shape":{"storage_bytes":4096},"emitted_at":"2026-11-24T00:00:00Z","seq":7,"interval":3,"boot_id":"0a1b2c3d",)"
    R"("uptime_ns":86401000000000})",
};
constexpr std::uint64_t kLast = 7;  // seq

constexpr std::string_view kHeading =
    "seq,kind,vm_id,snapshot_id,source_snapshot_id,reason,hypervisor,cpu,mem_bytes,storage_bytes,emitted_at,interval,"
    "labels,ended_at,ended_uptime_ns,evidence,alive_until,boot_id,uptime_ns\n";

// Without the line end.
constexpr std::array<std::string_view, 8> kCsv = {
    ",vm.storage.start,G,,,boot,firecracker,0,0,7,2026-11-22T09:00:35.8Z,,,,,,,,",
    R"(1,vm.storage.start,v1,,,boot,qemu,2,512,1024,2026-11-23T00:00:00Z,1,)"
    R"("{""team"":""a, \""b\"""",""tenant"":""blue""}",,,,,0a1b2c3d,1000000000)",
    R"(2,vm.compute.start,v1,,,boot,qemu,2,512,1024,2026-11-23T00:00:01.000000001Z,2,)"
    R"("{""team"":""a, \""b\"""",""tenant"":""blue""}",,,,,0a1b2c3d,2000000001)",
    "3,snap.storage.start,,s1,,,qemu,0,0,4096,2026-11-23T00:00:05Z,3,,,,,,0a1b2c3d,6000000000",
    R"(4,vm.compute.start,"v""2",,s1,clone,qemu,2,512,0,2026-11-23T00:00:06Z,4,,,,,,0a1b2c3d,7000000000)",
    "5,vm.compute.stop,v1,,,stop-crash,qemu,2,512,1024,2026-11-23T00:00:20Z,2,,2026-11-23T00:00:09.5Z,10500000000,shim,"
    ","
    "0a1b2c3d,21000000000",
    R"(6,vm.compute.stop,"v""2",,,stop-crash,qemu,2,512,0,2026-11-23T00:00:21Z,4,,,,,2026-11-23T00:00:19Z,)"
    "0a1b2c3d,22000000000",
    "7,snap.storage.stop,,s1,,snap-rm,qemu,0,0,4096,2026-11-24T00:00:00Z,3,,,,,,0a1b2c3d,86401000000000",
};

// What stands before the entry itself; behind it stands "}".
constexpr std::array<std::string_view, 8> kEvents = {
    R"({"specversion":"1.0","id":"n1/u1","source":"urn:cocoon:node:n1","type":"cocoon.vm.storage.start","subject":"G",)"
    R"("time":"2026-11-22T09:00:35.8Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/1","source":"urn:cocoon:node:n1","type":"cocoon.vm.storage.start","subject":"v1",)"
    R"("time":"2026-11-23T00:00:00Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/2","source":"urn:cocoon:node:n1","type":"cocoon.vm.compute.start","subject":"v1",)"
    R"("time":"2026-11-23T00:00:01.000000001Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/3","source":"urn:cocoon:node:n1","type":"cocoon.snap.storage.start","subject":"s1",)"
    R"("time":"2026-11-23T00:00:05Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/4","source":"urn:cocoon:node:n1","type":"cocoon.vm.compute.start",)"
    R"("subject":"v\"2","time":"2026-11-23T00:00:06Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/5","source":"urn:cocoon:node:n1","type":"cocoon.vm.compute.stop","subject":"v1",)"
    R"("time":"2026-11-23T00:00:20Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/6","source":"urn:cocoon:node:n1","type":"cocoon.vm.compute.stop",)"
    R"("subject":"v\"2","time":"2026-11-23T00:00:21Z","datacontenttype":"application/json","data":)",
    R"({"specversion":"1.0","id":"n1/7","source":"urn:cocoon:node:n1","type":"cocoon.snap.storage.stop","subject":"s1",)"
    R"("time":"2026-11-24T00:00:00Z","datacontenttype":"application/json","data":)",
};

struct Golden {
  ExportFormat format;
  std::string_view heading;
  std::vector<std::string> rows;  // with their line ends

  // Lines from this one on; line 0 has no seq, and line n has seq n.
  [[nodiscard]] std::string from(std::size_t first, std::size_t last = kLast) const {
    std::string text(heading);
    for (std::size_t i = first; i <= last && i < rows.size(); ++i) text += rows[i];
    return text;
  }
};

std::vector<Golden> goldens() {
  Golden jsonl{ExportFormat::kJsonl, {}, {}};
  Golden csv{ExportFormat::kCsv, kHeading, {}};
  Golden events{ExportFormat::kCloudEvents, {}, {}};
  for (std::size_t i = 0; i < kLines.size(); ++i) {
    jsonl.rows.push_back(fmt::format("{}\n", kLines[i]));
    csv.rows.push_back(fmt::format("{}\n", kCsv[i]));
    events.rows.push_back(fmt::format("{}{}}}\n", kEvents[i], kLines[i]));
  }
  return {jsonl, csv, events};
}

class ExportTest : public testing::Test {
 protected:
  ExportTest() { put("ledger.jsonl", 0, kLast); }

  // Lines `first` to `last`.
  void put(std::string_view name, std::size_t first, std::size_t last) const {
    std::string text;
    for (std::size_t i = first; i <= last; ++i) text += fmt::format("{}\n", kLines[i]);
    test::write_file(dir_ / name, text);
  }

  [[nodiscard]] std::string exported(ExportFormat format, std::uint64_t since = 1,
                                     std::optional<std::uint64_t> until = {}) const {
    const std::vector<std::string> folder = {dir_.path().string()};
    std::string text;
    const ExportQuery query{.format = format, .node_id = "n1", .since_seq = since, .until_seq = until};
    const auto rows = export_ledger(find_files(folder), query, [&](std::string_view block) {
      EXPECT_TRUE(block.ends_with('\n')) << "whole rows";
      text += block;
    });
    const auto lines = static_cast<std::uint64_t>(std::count(text.begin(), text.end(), '\n'));
    EXPECT_EQ(rows, lines - (format == ExportFormat::kCsv ? 1 : 0));
    return text;
  }

  test::TempDir dir_;
};

TEST_F(ExportTest, IsTheseBytes) {
  for (const Golden& golden : goldens()) {
    EXPECT_EQ(exported(golden.format), golden.from(0));
    EXPECT_EQ(exported(golden.format), golden.from(0)) << "and again";
  }
}

TEST_F(ExportTest, FromASeqOnItIsTheTailOfTheWhole) {
  for (const Golden& golden : goldens()) {
    for (std::uint64_t since = 2; since <= kLast + 1; ++since)
      EXPECT_EQ(exported(golden.format, since), golden.from(since)) << "from seq " << since;
  }
}

TEST_F(ExportTest, ItsPiecesAreTheWhole) {
  for (const Golden& golden : goldens()) {
    for (std::uint64_t until = 1; until < kLast; ++until) {
      const auto rest = exported(golden.format, until + 1);
      EXPECT_EQ(exported(golden.format, 1, until) + rest.substr(golden.heading.size()), golden.from(0))
          << "cut behind seq " << until;
      EXPECT_EQ(exported(golden.format, until, until), golden.from(until == 1 ? 0 : until, until));
    }
  }
}

TEST_F(ExportTest, IsTheSameAfterARotation) {
  put("ledger.1-4.jsonl", 0, 4);
  put("ledger.jsonl", 5, kLast);
  for (const Golden& golden : goldens()) {
    EXPECT_EQ(exported(golden.format), golden.from(0));
    EXPECT_EQ(exported(golden.format, 4), golden.from(4));
  }
}

TEST_F(ExportTest, WhatStandsThereTwiceIsExportedOnce) {
  put("ledger.1-4.jsonl", 1, 4);
  put("ledger.jsonl", 3, kLast);
  for (const Golden& golden : goldens()) EXPECT_EQ(exported(golden.format), golden.from(1));
}

TEST_F(ExportTest, NumbersOfTwoNodesInOneFolderAreNotMixed) {
  put("other.jsonl", 1, 3);
  const auto all = goldens();
  EXPECT_EQ(exported(ExportFormat::kJsonl), all[0].from(0) + all[0].from(1, 3));
  EXPECT_EQ(exported(ExportFormat::kCsv), all[1].from(0) + all[1].from(1, 3).substr(kHeading.size()));
  for (const auto format : {ExportFormat::kCloudEvents, ExportFormat::kFocus})
    EXPECT_THROW(static_cast<void>(exported(format)), InvalidArgument) << "one id would name two entries";
  put("other.jsonl", 0, 0);
  EXPECT_NO_THROW(static_cast<void>(exported(ExportFormat::kCloudEvents))) << "no numbers, no node of its own";
}

}  // namespace
}  // namespace cocoon::ledger
