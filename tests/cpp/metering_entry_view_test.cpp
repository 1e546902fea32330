// The parser of our own layout against from_json: whatever it takes, both read alike; what we write, it takes.

#include <random>
#include <string>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/entry_view.h"

#include "metering_support.h"

namespace cocoon::metering {
namespace {

using Random = std::mt19937_64;

// As a reader has it: a '\n', and bytes behind it that look like more.
struct Text {
  explicit Text(const std::string& line) : bytes(line + "\n"), size(bytes.size()) { bytes.append(kReadBehind, '7'); }
  [[nodiscard]] const char* parse(EntryView& out) const {
    return parse_own_layout(bytes.data(), bytes.data() + size, out);
  }
  std::string bytes;
  std::size_t size;
};

std::string some_text(Random& random, bool odd) {
  static constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyz234567-./ ,:{}[]";
  static const std::vector<std::string> kOdd = {"\"", "\\", "<", "&", "\n", "é", "\u2028", "\x7F", "\x01"};
  std::string text;
  const std::size_t size = 1 + random() % 40;
  while (text.size() < size) {
    if (odd && random() % 8 == 0) {
      text += kOdd[random() % kOdd.size()];
    } else {
      text += kPlain[random() % kPlain.size()];
    }
  }
  return text;
}

std::int64_t some_number(Random& random) { return static_cast<std::int64_t>((random() >> 1) >> (random() % 63)); }

Entry some_entry(Random& random, bool odd) {
  const auto chance = [&] { return random() % 2 == 0; };
  Entry entry;
  entry.kind = static_cast<Kind>(random() % 6);
  (is_vm(entry.kind) ? entry.vm_id : entry.snapshot_id) = some_text(random, odd);
  if (chance()) entry.source_snapshot_id = some_text(random, odd);
  if (chance()) entry.reason = static_cast<Reason>(random() % 10);
  if (chance()) entry.hypervisor = some_text(random, odd);
  if (chance()) entry.shape.cpu = some_number(random);
  if (chance()) entry.shape.mem_bytes = some_number(random);
  if (chance()) entry.shape.storage_bytes = some_number(random);
  const auto time = [&] {
    auto ns = static_cast<std::int64_t>(random());
    if (chance()) ns = ns / 1'000'000'000 * 1'000'000'000;
    if (chance()) ns = ns / 1'000 * 1'000;
    return ns;
  };
  entry.emitted_at_ns = time();
  if (chance()) entry.seq = static_cast<std::uint64_t>(some_number(random)) | 1;
  if (chance()) entry.interval = static_cast<std::uint64_t>(some_number(random)) | 1;
  for (std::size_t i = random() % 4; i > 1; --i) entry.labels[some_text(random, odd)] = some_text(random, odd);
  if (chance()) entry.ended_at_ns = time();
  if (chance()) entry.ended_uptime_ns = some_number(random);
  if (chance()) entry.evidence = some_text(random, odd);
  if (chance()) entry.alive_until_ns = time();
  if (chance()) entry.boot_id = some_text(random, odd);
  if (chance()) entry.uptime_ns = some_number(random);
  return entry;
}

void expect_alike(const std::string& line, std::uint64_t& taken) {
  const Text text(line);
  EntryView view;
  const char* const behind = text.parse(view);
  if (behind == nullptr) return;
  ++taken;
  ASSERT_EQ(behind, text.bytes.data() + text.size) << line;
  Entry general;
  ASSERT_NO_THROW(general = from_json(line)) << line;
  std::string labels;
  ASSERT_TRUE(view == view_of(general, labels)) << line << "\n" << to_json(to_entry(view));
  ASSERT_TRUE(to_entry(view) == general) << line;
}

TEST(OwnLayoutTest, TakesWhatIsWrittenHere) {
  Random random(test::test_seed());
  std::uint64_t taken = 0;
  constexpr std::uint64_t kRounds = 20'000;
  std::uint64_t should = 0;
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    Entry entry = some_entry(random, false);
    // 19 digits, and the years 1677 and 2262, are the general parser's.
    constexpr std::int64_t kMost = 999'999'999'999'999'999;
    const auto fits = [](std::int64_t ns) { return std::abs(ns / 1'000'000'000) < 9'200'000'000; };
    const bool digits = entry.shape.cpu <= kMost && entry.shape.mem_bytes <= kMost &&
                        entry.shape.storage_bytes <= kMost && entry.seq.value_or(0) <= kMost &&
                        entry.interval.value_or(0) <= kMost && entry.uptime_ns.value_or(0) <= kMost &&
                        entry.ended_uptime_ns.value_or(0) <= kMost;
    should += digits && fits(entry.emitted_at_ns) && fits(entry.ended_at_ns.value_or(0)) &&
                      fits(entry.alive_until_ns.value_or(0))
                  ? 1
                  : 0;
    expect_alike(to_json(entry), taken);
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(taken, should);
  EXPECT_GT(should, kRounds / 2);
}

TEST(OwnLayoutTest, WhatItTakesFromJsonReadsAlike) {
  Random random(test::test_seed());
  static const std::vector<std::string> kPieces = {"\"",
                                                   ",",
                                                   ":",
                                                   "{",
                                                   "}",
                                                   "0",
                                                   "00",
                                                   "-1",
                                                   "1.5",
                                                   "1e3",
                                                   "\\u0041",
                                                   "\\\"",
                                                   " ",
                                                   "\t",
                                                   "null",
                                                   "[]",
                                                   "\x80",
                                                   "\xC3\xA9",
                                                   "99999999999999999",
                                                   "9223372036854775808",
                                                   "Z",
                                                   "+08:00",
                                                   "-23:59",
                                                   "+24:00",
                                                   "2024-02-29T",
                                                   "2023-02-29T",
                                                   "T23:59:60Z",
                                                   ".",
                                                   "\"seq\":1,",
                                                   "\"cpu\":0",
                                                   "\"labels\":{},",
                                                   R"("labels":{"b":"1","a":"2"})",
                                                   "{}",
                                                   "\n",
                                                   std::string(1, '\0')};
  std::uint64_t taken = 0;
  for (int round = 0; round < 60'000; ++round) {
    std::string line = to_json(some_entry(random, random() % 3 == 0));
    for (std::uint64_t changes = random() % 3; changes > 0; --changes) {
      const std::size_t at = random() % (line.size() + 1);
      switch (random() % 5) {
        case 0:
          line.insert(at, kPieces[random() % kPieces.size()]);
          break;
        case 1:
          line.erase(at, 1 + random() % 12);
          break;
        case 2:
          if (at < line.size()) line[at] = static_cast<char>(random());
          break;
        case 3:
          if (at < line.size() && line[at] >= '0' && line[at] <= '9') line[at] = static_cast<char>('0' + random() % 10);
          break;
        default: {
          const std::string piece = line.substr(at, random() % 60);
          line.insert(random() % (line.size() + 1), piece);
        }
      }
    }
    if (line.find('\n') != std::string::npos) continue;
    expect_alike(line, taken);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(taken, 10'000U);
}

TEST(OwnLayoutTest, LeavesToTheOtherWhatCouldBeReadInTwoWays) {
  const std::string line =
      R"({"kind":"vm.compute.start","vm_id":"v","shape":{"cpu":1},"emitted_at":"2026-03-01T00:00:00Z","seq":7})";
  EntryView view;
  ASSERT_NE(Text(line).parse(view), nullptr);
  EXPECT_EQ(view.seq, 7U);
  const auto with = [&](std::string_view what, std::string_view by) {
    std::string changed = line;
    changed.replace(changed.find(what), what.size(), by);
    EntryView fresh;
    return Text(changed).parse(fresh) != nullptr;
  };
  EXPECT_FALSE(with("\"seq\":7", "\"seq\":07"));
  EXPECT_FALSE(with("\"seq\":7", "\"seq\":0"));
  EXPECT_FALSE(with("\"seq\":7", "\"seq\":7.0"));
  EXPECT_FALSE(with("\"seq\":7", "\"seq\":1234567890123456789"));
  EXPECT_TRUE(with("\"seq\":7", "\"seq\":123456789012345678"));
  EXPECT_FALSE(with("\"v\"", "\"v\\u0041\""));
  EXPECT_FALSE(with("\"v\"", "\"\""));
  EXPECT_FALSE(with("03-01", "02-29"));
  EXPECT_FALSE(with(":00Z", ":60Z"));
  EXPECT_FALSE(with("vm_id", "snapshot_id"));
  EXPECT_FALSE(with("\"seq\":7", "\"colour\":7"));
  EXPECT_FALSE(with("\"seq\":7", "\"labels\":{}"));
  EXPECT_FALSE(with("\"seq\":7", R"("labels":{"b":"1","a":"2"})"));
  EXPECT_FALSE(with("\"seq\":7", R"("labels":{"a":"1","a":"2"})"));
  EXPECT_TRUE(with("\"seq\":7", R"("labels":{"a":"1","b":"2"})"));
  EXPECT_FALSE(with("\"seq\":7}", "\"seq\":7} "));
}

TEST(OwnLayoutTest, NoPrefixOfALineIsOne) {
  Random random(test::test_seed());
  for (int round = 0; round < 200; ++round) {
    const std::string line = to_json(some_entry(random, false));
    for (std::size_t size = 0; size < line.size(); ++size) {
      // What is behind the cut must not be seen, whatever it is.
      const std::string text = line + "\n" + std::string(kReadBehind, '"');
      EntryView view;
      ASSERT_EQ(parse_own_layout(text.data(), text.data() + size, view), nullptr) << line.substr(0, size);
    }
  }
}

}  // namespace
}  // namespace cocoon::metering
