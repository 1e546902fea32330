#include <array>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/metering/entry.h"

#include "metering_support.h"

namespace cocoon::metering {
namespace {

constexpr std::int64_t kAt = 1'795'402'835'819'597'778;  // 2026-11-23T03:00:35.819597778Z
constexpr std::string_view kMinimal =
    R"({"kind":"vm.compute.start","vm_id":"v1","shape":{},"emitted_at":"2026-11-23T03:00:35Z"})";

Entry full_entry() {
  Entry entry;
  entry.kind = Kind::kVmComputeStop;
  entry.vm_id = "abcdefghijklmnopqrstuvwxyz";
  entry.source_snapshot_id = "snapsnapsnapsnapsnapsnapsn";
  entry.reason = Reason::kStopCrash;
  entry.hypervisor = "cloud-hypervisor";
  entry.shape = {8, 6'442'450'944, 44'023'414'784};
  entry.emitted_at_ns = kAt;
  entry.seq = 42;
  entry.interval = 41;
  entry.labels = {{"tenant", "blue"}, {"app", "web <1> & co"}};
  entry.ended_at_ns = kAt - 819'597'778;
  entry.ended_uptime_ns = 1'000;
  entry.evidence = "shim";
  entry.alive_until_ns = kAt - 7'778;
  entry.boot_id = "0a1b2c3d";
  entry.uptime_ns = 99'000'000'001;
  return entry;
}

std::string fault_of(std::string_view line) {
  try {
    from_json(line);
  } catch (const BadEntry& error) {
    return error.what();
  }
  return {};
}

// -------------------------------------------------------------------------------------------------- writing

TEST(EntryJson, WritesEveryKeyInTheDocumentedOrder) {
  EXPECT_EQ(
      to_json(full_entry()),
      R"({"kind":"vm.compute.stop","vm_id":"abcdefghijklmnopqrstuvwxyz",)"
      R"("source_snapshot_id":"snapsnapsnapsnapsnapsnapsn","reason":"stop-crash","hypervisor":"cloud-hypervisor",)"
      R"("shape":{"cpu":8,"mem_bytes":6442450944,"storage_bytes":44023414784},)"
      R"("emitted_at":"2026-11-23T03:00:35.819597778Z","seq":42,"interval":41,)"
      R"("labels":{"app":"web \u003c1\u003e \u0026 co","tenant":"blue"},"ended_at":"2026-11-23T03:00:35Z",)"
      R"("ended_uptime_ns":1000,"evidence":"shim","alive_until":"2026-11-23T03:00:35.81959Z",)"
      R"("boot_id":"0a1b2c3d","uptime_ns":99000000001})");
}

TEST(EntryJson, LeavesAbsentKeysOutButAlwaysWritesTheShape) {
  EXPECT_EQ(to_json(from_json(kMinimal)), kMinimal);
  Entry entry;
  entry.kind = Kind::kSnapStorageStart;
  entry.snapshot_id = "s1";
  entry.shape.storage_bytes = 7;
  EXPECT_EQ(to_json(entry), R"({"kind":"snap.storage.start","snapshot_id":"s1","shape":{"storage_bytes":7},)"
                            R"("emitted_at":"1970-01-01T00:00:00Z"})");
}

// The expected text is what Go's encoding/json (1.26) prints for the same string.
TEST(EntryJson, EscapesWhatGoEscapes) {
  std::string text;
  for (char c = 0; c < 0x7F; ++c) {
    text += c;
  }
  text += "\x7F\u2028\u2029\u202Aé😀";
  Entry entry = from_json(kMinimal);
  entry.vm_id = text;
  const std::string escaped =
      R"(\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f\u0010\u0011\u0012\u0013\u0014)"
      R"(\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f !\"#$%\u0026'()*+,-./0123456789:;\u003c=)"
      R"(\u003e?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~)"
      "\x7F"
      R"(\u2028\u2029)"
      "\u202Aé😀";
  EXPECT_NE(to_json(entry).find('"' + escaped + '"'), std::string::npos) << to_json(entry);
  EXPECT_EQ(from_json(to_json(entry)), entry);
}

TEST(EntryJson, AppendAddsToWhatIsThereAndAllocatesNothing) {
  std::string out = "x";
  out.reserve(1024);
  const char* before = out.data();
  append_json(full_entry(), out);
  EXPECT_EQ(out, "x" + to_json(full_entry()));
  EXPECT_EQ(out.data(), before);
}

TEST(EntryJson, RefusesToWriteWhatIsNoEntry) {
  struct Case {
    std::function<void(Entry&)> spoil;
    std::string_view field;
  };
  const std::vector<Case> cases = {
      {[](Entry& e) { e.vm_id.clear(); }, "vm_id"},
      {[](Entry& e) { e.snapshot_id = "s"; }, "snapshot_id"},
      {[](Entry& e) { e.kind = Kind::kSnapStorageStop; }, "snapshot_id"},
      {[](Entry& e) { e.kind = Kind::kSnapStorageStop, e.snapshot_id = "s"; }, "vm_id"},
      {[](Entry& e) { e.shape.cpu = -1; }, "shape.cpu"},
      {[](Entry& e) { e.shape.mem_bytes = -1; }, "shape.mem_bytes"},
      {[](Entry& e) { e.shape.storage_bytes = std::numeric_limits<std::int64_t>::min(); }, "shape.storage_bytes"},
      {[](Entry& e) { e.seq = 0; }, "seq"},
      {[](Entry& e) { e.seq = std::uint64_t{1} << 63; }, "seq"},
      {[](Entry& e) { e.interval = 0; }, "interval"},
      {[](Entry& e) { e.uptime_ns = -1; }, "uptime_ns"},
      {[](Entry& e) { e.ended_uptime_ns = -1; }, "ended_uptime_ns"},
      {[](Entry& e) { e.vm_id = "\xFF"; }, "vm_id"},
      {[](Entry& e) { e.source_snapshot_id = "\xC0\x80"; }, "source_snapshot_id"},
      {[](Entry& e) { e.hypervisor = "\xED\xA0\x80"; }, "hypervisor"},
      {[](Entry& e) { e.boot_id = "\xF4\x90\x80\x80"; }, "boot_id"},
      {[](Entry& e) { e.evidence = "a\xE2\x80"; }, "evidence"},
      {[](Entry& e) { e.labels["\x80"] = "v"; }, "labels"},
      {[](Entry& e) { e.labels["k"] = "\xE0\x80\x80"; }, "labels"},
  };
  for (const Case& c : cases) {
    Entry entry = full_entry();
    c.spoil(entry);
    std::string out = "kept";
    try {
      append_json(entry, out);
      ADD_FAILURE() << "written in spite of its " << c.field << ": " << out;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(fmt::format("field {}:", c.field)), std::string::npos) << error.what();
    }
    EXPECT_EQ(out, "kept");
  }
}

// -------------------------------------------------------------------------------------------------- reading

TEST(EntryJson, ReadsBackWhatItWrites) { EXPECT_EQ(from_json(to_json(full_entry())), full_entry()); }

TEST(EntryJson, ReadsAnyOrderWhitespaceOffsetAndUnknownKeys) {
  const Entry entry = from_json(
      " {\t\"emitted_at\" : \"2026-11-23T11:00:35.819597778+08:00\", \"x\":{\"kind\":[1,{\"seq\":[]}],\"kind\":2},\r\n"
      "\"shape\":{\"storage_bytes\":1,\"gpu\":\"none\",\"cpu\":2} , \"seq\":7,\"vm_id\":\"NG6KPO7TSMTZID4IF4GFTNR2IY\","
      "\"y\":-1.5e300,\"z\":null,\"t\":true,\"kind\":\"vm.storage.stop\"}\r ");
  Entry expected;
  expected.kind = Kind::kVmStorageStop;
  expected.vm_id = "NG6KPO7TSMTZID4IF4GFTNR2IY";
  expected.shape = {2, 0, 1};
  expected.emitted_at_ns = kAt;
  expected.seq = 7;
  EXPECT_EQ(entry, expected);
}

class GoFixture : public testing::TestWithParam<std::string> {};

TEST_P(GoFixture, EveryLineIsReadAndWrittenWithTheSameMeaningAndOrder) {
  const auto lines = test::lines_of(test::read_file(std::string(COCOON_TEST_DATA) + "/go-engine/" + GetParam()));
  ASSERT_GT(lines.size(), 1U);
  for (const std::string& line : lines) {
    const Entry entry = from_json(line);
    const std::string ours = to_json(entry);
    EXPECT_EQ(from_json(ours), entry) << line;
    // Byte for byte the Go engine's, but that times are UTC here and in the host's zone there.
    const auto time = [](const std::string& text) {
      const std::size_t at = text.find(R"("emitted_at":")") + 14;
      return std::pair(at, text.find('"', at) - at);
    };
    std::string with_their_time = ours;
    const auto [to, to_size] = time(ours);
    const auto [from, from_size] = time(line);
    with_their_time.replace(to, to_size, line, from, from_size);
    EXPECT_EQ(with_their_time, line);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, GoFixture, testing::Values("vms.ledger.jsonl", "snapshots.ledger.jsonl"),
                         [](const auto& file) { return file.param.substr(0, file.param.find('.')); });

std::string with(std::string_view key, std::string_view value) {
  nlohmann::ordered_json line = nlohmann::ordered_json::parse(kMinimal);
  std::string text;
  for (const auto& [name, old] : line.items()) {
    if (name != key) {
      text += fmt::format(R"({}"{}":{})", text.empty() ? "" : ",", name, old.dump());
    }
  }
  if (!value.empty()) {
    text += fmt::format(R"(,"{}":{})", key, value);
  }
  return '{' + text + '}';
}

TEST(EntryJson, NamesTheFieldItsValueAndWhatIsAllowed) {
  struct Case {
    std::string line;
    BadEntry::Fault fault;
    std::vector<std::string_view> says;
  };
  using Fault = BadEntry::Fault;
  const std::string integer = "an integer from 0 to 9223372036854775807";
  const std::string from_one = "an integer from 1 to 9223372036854775807";
  const std::vector<Case> cases = {
      {with("kind", R"("vm.compute.begin")"), Fault::kKind, {"field kind", "vm.compute.begin", "vm.compute.start"}},
      {with("kind", "1"), Fault::kField, {"field kind", "1", "a string"}},
      {with("kind", ""), Fault::kField, {"field kind", "missing"}},
      {with("vm_id", ""), Fault::kField, {"field vm_id", "missing"}},
      {with("vm_id", R"("")"), Fault::kField, {"field vm_id", "missing"}},
      {with("vm_id", "null"), Fault::kField, {"field vm_id", "null", "a string"}},
      {with("snapshot_id", R"("s")"), Fault::kField, {"field snapshot_id", "\"s\""}},
      {with("source_snapshot_id", "[]"), Fault::kField, {"field source_snapshot_id", "an array", "a string"}},
      {with("reason", R"("because")"), Fault::kField, {"field reason", "because", "hibernate-wake"}},
      {with("reason", R"("")"), Fault::kField, {"field reason", "boot"}},
      {with("hypervisor", "true"), Fault::kField, {"field hypervisor", "true", "a string"}},
      {with("shape", ""), Fault::kField, {"field shape", "missing"}},
      {with("shape", "7"), Fault::kField, {"field shape", "7", "an object"}},
      {with("shape", "[1]"), Fault::kField, {"field shape", "an array", "an object"}},
      {with("shape", R"({"cpu":-1})"), Fault::kField, {"field shape.cpu", "-1", integer}},
      {with("shape", R"({"cpu":1.0})"), Fault::kField, {"field shape.cpu", "1.0", integer}},
      {with("shape", R"({"mem_bytes":1e3})"), Fault::kField, {"field shape.mem_bytes", "1e3", integer}},
      {with("shape", R"({"mem_bytes":9223372036854775808})"),
       Fault::kField,
       {"shape.mem_bytes", "9223372036854775808"}},
      {with("shape", R"({"mem_bytes":99999999999999999999})"), Fault::kField, {"shape.mem_bytes", integer}},
      {with("shape", R"({"storage_bytes":"1"})"), Fault::kField, {"field shape.storage_bytes", "\"1\"", integer}},
      {with("shape", R"({"storage_bytes":{}})"), Fault::kField, {"field shape.storage_bytes", "an object", integer}},
      {with("shape", R"({"cpu":1,"cpu":1})"), Fault::kField, {"field shape.cpu", "twice"}},
      {with("emitted_at", ""), Fault::kField, {"field emitted_at", "missing"}},
      {with("emitted_at", "12"), Fault::kField, {"field emitted_at", "12", "a string"}},
      {with("emitted_at", R"("yesterday")"), Fault::kField, {"field emitted_at", "yesterday", "RFC 3339"}},
      {with("seq", "0"), Fault::kField, {"field seq", "0", from_one}},
      {with("seq", "-5"), Fault::kField, {"field seq", "-5", from_one}},
      {with("seq", R"("5")"), Fault::kField, {"field seq", "\"5\"", from_one}},
      {with("seq", "9223372036854775808"), Fault::kField, {"field seq", "9223372036854775808", from_one}},
      {with("interval", "0"), Fault::kField, {"field interval", "0", from_one}},
      {with("interval", "null"), Fault::kField, {"field interval", "null", from_one}},
      {with("labels", R"("a")"), Fault::kField, {"field labels", "\"a\"", "an object"}},
      {with("labels", R"({"a":1})"), Fault::kField, {"field labels.\"a\"", "1", "a string"}},
      {with("labels", R"({"a":{"b":"c"}})"), Fault::kField, {"field labels.\"a\"", "an object", "a string"}},
      {with("labels", R"({"a":"1","a":"1"})"), Fault::kField, {"field labels.\"a\"", "twice"}},
      {with("ended_at", R"("2026-11-23")"), Fault::kField, {"field ended_at", "2026-11-23", "RFC 3339"}},
      {with("ended_uptime_ns", "-1"), Fault::kField, {"field ended_uptime_ns", "-1", integer}},
      {with("evidence", "1"), Fault::kField, {"field evidence", "1", "a string"}},
      {with("alive_until", "false"), Fault::kField, {"field alive_until", "false", "a string"}},
      {with("boot_id", "{}"), Fault::kField, {"field boot_id", "an object", "a string"}},
      {with("uptime_ns", "1.5"), Fault::kField, {"field uptime_ns", "1.5", integer}},
      {with("extra", R"(1,"extra":2)"), Fault::kField, {"\"extra\"", "twice"}},
      {with("seq", R"(4,"vm_id":"v2")"), Fault::kField, {"field vm_id", "twice"}},
      {"", Fault::kJson, {"not JSON"}},
      {"   ", Fault::kJson, {"not JSON"}},
      {"garbage", Fault::kJson, {"not JSON", "garbage"}},
      {"[]", Fault::kJson, {"not a JSON object"}},
      {"17", Fault::kJson, {"not a JSON object"}},
      {"\"text\"", Fault::kJson, {"not a JSON object"}},
      {"null", Fault::kJson, {"not a JSON object"}},
      {std::string(kMinimal) + "x", Fault::kJson, {"not JSON"}},
      {std::string(kMinimal).append(kMinimal), Fault::kJson, {"not JSON"}},
      {std::string(kMinimal) + '\0', Fault::kJson, {"not JSON", "NUL"}},
      {std::string(300, '\0'), Fault::kJson, {"not JSON", "NUL", "300 bytes"}},
      {with("hypervisor", "\"\xFF\""), Fault::kJson, {"not JSON", "\\xff"}},
      {with("hypervisor", R"("\ud800")"), Fault::kJson, {"not JSON"}},
      {with("hypervisor", "\"a\nb\""), Fault::kJson, {"not JSON"}},
      {with("x", std::string(100'000, '[')), Fault::kJson, {"not JSON"}},
      {with("x", "01"), Fault::kJson, {"not JSON"}},
      {with("x", "NaN"), Fault::kJson, {"not JSON"}},
      {with("x", "1e999"), Fault::kJson, {"not JSON"}},
  };
  for (const Case& c : cases) {
    try {
      from_json(c.line);
      ADD_FAILURE() << "accepted: " << c.line.substr(0, 200);
    } catch (const BadEntry& error) {
      EXPECT_EQ(error.fault, c.fault) << c.line.substr(0, 200) << '\n' << error.what();
      EXPECT_LT(std::string_view(error.what()).size(), 500U);
      for (const std::string_view word : c.says) {
        EXPECT_NE(std::string_view(error.what()).find(word), std::string_view::npos)
            << word << " is not in: " << error.what() << "\n for " << c.line.substr(0, 200);
      }
    }
  }
}

TEST(EntryJson, AFaultStillTellsTheSeq) {
  for (const std::string& line : {with("kind", R"("vm.gpu.start","seq":9)"), with("reason", R"("x","seq":9)")}) {
    try {
      from_json(line);
      ADD_FAILURE() << line;
    } catch (const BadEntry& error) {
      EXPECT_EQ(error.seq, 9U) << line;
    }
  }
}

TEST(EntryJson, CutAnywhereIsRefused) {
  const std::string line = to_json(full_entry());
  for (std::size_t size = 0; size < line.size(); ++size) {
    EXPECT_FALSE(fault_of(std::string_view(line).substr(0, size)).empty()) << line.substr(0, size);
  }
}

TEST(EntryJson, AnyByteFlippedIsReadOrRefusedButNeverCrashes) {
  const std::string line = to_json(full_entry());
  std::size_t refused = 0;
  for (std::size_t at = 0; at < line.size(); ++at) {
    for (const int flip : {0x01, 0x20, 0x80, 0xFF}) {
      std::string spoiled = line;
      spoiled[at] = static_cast<char>(spoiled[at] ^ flip);
      refused += fault_of(spoiled).empty() ? 0 : 1;
    }
  }
  EXPECT_GT(refused, 2 * line.size());
}

TEST(EntryJson, RandomEntriesComeBackEqual) {
  std::mt19937_64 random(test::test_seed());
  const auto below = [&](std::uint64_t limit) { return random() % limit; };
  const std::array<std::string, 12> pieces = {"a", "Z9", "-", "<", "&", "\"", "\\", "\n", "é", "\u2028", "😀", "\x01"};
  const auto text = [&](bool maybe_empty) {
    std::string out = maybe_empty ? "" : "i";
    for (std::uint64_t i = below(6); i > 0; --i) {
      out += pieces[below(pieces.size())];
    }
    return out;
  };
  const auto number = [&] { return static_cast<std::int64_t>(random() >> (1 + below(63))); };
  const auto any_time = [&] { return static_cast<std::int64_t>(random()) / (below(2) == 0 ? 1 : 1'000'000'000); };
  for (int round = 0; round < 3'000; ++round) {
    Entry entry;
    entry.kind = static_cast<Kind>(below(6));
    (is_vm(entry.kind) ? entry.vm_id : entry.snapshot_id) = text(false);
    entry.source_snapshot_id = text(true);
    if (below(2) == 0) entry.reason = static_cast<Reason>(below(10));
    entry.hypervisor = text(true);
    entry.shape = {number(), number(), below(2) == 0 ? 0 : number()};
    entry.emitted_at_ns = any_time();
    if (below(2) == 0) entry.seq = static_cast<std::uint64_t>(number()) | 1;
    if (below(2) == 0) entry.interval = static_cast<std::uint64_t>(number()) | 1;
    for (std::uint64_t i = below(4); i > 0; --i) entry.labels[text(true)] = text(true);
    if (below(2) == 0) entry.ended_at_ns = any_time();
    if (below(2) == 0) entry.ended_uptime_ns = number();
    entry.evidence = text(true);
    if (below(2) == 0) entry.alive_until_ns = any_time();
    entry.boot_id = text(true);
    if (below(2) == 0) entry.uptime_ns = number();
    const std::string line = to_json(entry);
    ASSERT_EQ(line.find('\n'), std::string::npos);
    ASSERT_EQ(from_json(line), entry) << line;
    ASSERT_EQ(to_json(from_json(line)), line);
    ASSERT_TRUE(nlohmann::json::accept(line)) << line;
  }
}

TEST(EntryNames, EveryKindAndReasonComesBack) {
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(parse_kind(to_string(static_cast<Kind>(i))), static_cast<Kind>(i));
    EXPECT_EQ(is_start(static_cast<Kind>(i)), to_string(static_cast<Kind>(i)).ends_with(".start"));
    EXPECT_EQ(is_vm(static_cast<Kind>(i)), to_string(static_cast<Kind>(i)).starts_with("vm."));
  }
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(parse_reason(to_string(static_cast<Reason>(i))), static_cast<Reason>(i));
  }
  for (const std::string_view wrong : {"", "VM.COMPUTE.START", "vm.compute.start ", "boot "}) {
    EXPECT_THROW(parse_kind(wrong), InvalidArgument);
    EXPECT_THROW(parse_reason(wrong), InvalidArgument);
  }
}

// -------------------------------------------------------------------------------------------------- time

TEST(EntryTime, WritesAsGoDoes) {
  EXPECT_EQ(format_time(0), "1970-01-01T00:00:00Z");
  EXPECT_EQ(format_time(1), "1970-01-01T00:00:00.000000001Z");
  EXPECT_EQ(format_time(10), "1970-01-01T00:00:00.00000001Z");
  EXPECT_EQ(format_time(100'000'000), "1970-01-01T00:00:00.1Z");
  EXPECT_EQ(format_time(-1), "1969-12-31T23:59:59.999999999Z");
  EXPECT_EQ(format_time(-1'000'000'000), "1969-12-31T23:59:59Z");
  EXPECT_EQ(format_time(1'234'567'890'120'000'000), "2009-02-13T23:31:30.12Z");
  EXPECT_EQ(format_time(std::numeric_limits<std::int64_t>::min()), "1677-09-21T00:12:43.145224192Z");
  EXPECT_EQ(format_time(std::numeric_limits<std::int64_t>::max()), "2262-04-11T23:47:16.854775807Z");
}

TEST(EntryTime, ReadsOffsetsAndFractions) {
  EXPECT_EQ(parse_time("1970-01-01T00:00:00Z"), 0);
  EXPECT_EQ(parse_time("1970-01-01t00:00:00.000000001z"), 1);
  EXPECT_EQ(parse_time("1970-01-01T08:00:00+08:00"), 0);
  EXPECT_EQ(parse_time("1969-12-31T18:15:00.5-05:45"), 500'000'000);
  EXPECT_EQ(parse_time("1970-01-01T00:00:00-00:00"), 0);
  EXPECT_EQ(parse_time("2000-02-29T00:00:00Z"), 951'782'400'000'000'000);
  EXPECT_EQ(parse_time("1677-09-21T00:12:43.145224192Z"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(parse_time("2262-04-11T23:47:16.854775807Z"), std::numeric_limits<std::int64_t>::max());
}

TEST(EntryTime, ALeapSecondIsTheFirstOfTheNextMonth) {
  EXPECT_EQ(parse_time("2016-12-31T23:59:60.25Z"), parse_time("2017-01-01T00:00:00.25Z"));
  EXPECT_EQ(parse_time("2017-01-01T07:59:60+08:00"), parse_time("2017-01-01T00:00:00Z"));
  EXPECT_THROW(parse_time("2016-12-31T23:58:60Z"), InvalidArgument);
  EXPECT_THROW(parse_time("2016-12-30T23:59:60Z"), InvalidArgument);
  EXPECT_THROW(parse_time("2016-12-31T23:59:60+01:00"), InvalidArgument);
}

TEST(EntryTime, RefusesWhatIsNotRfc3339) {
  for (const std::string_view wrong : {"",
                                       "2026",
                                       "2026-11-23",
                                       "2026-11-23T",
                                       "2026-11-23T03:00:35",
                                       "2026-11-23 03:00:35Z",
                                       "2026-11-23T03:00Z",
                                       "2026-13-01T00:00:00Z",
                                       "2026-00-01T00:00:00Z",
                                       "2026-02-29T00:00:00Z",
                                       "2100-02-29T00:00:00Z",
                                       "2026-04-31T00:00:00Z",
                                       "2026-01-00T00:00:00Z",
                                       "2026-01-01T24:00:00Z",
                                       "2026-01-01T00:60:00Z",
                                       "2026-01-01T00:00:61Z",
                                       "2026-01-01T00:00:00.Z",
                                       "2026-01-01T00:00:00.1234567890Z",
                                       "2026-01-01T00:00:00,5Z",
                                       "2026-01-01T00:00:00+08",
                                       "2026-01-01T00:00:00+0800",
                                       "2026-01-01T00:00:00+24:00",
                                       "2026-01-01T00:00:00+00:60",
                                       "2026-01-01T00:00:00ZZ",
                                       "2026-01-01T00:00:00Z ",
                                       " 2026-01-01T00:00:00Z",
                                       "26-01-01T00:00:00Z",
                                       "02026-01-01T00:00:00Z",
                                       "+2026-01-01T00:00:00Z",
                                       "2026-1-1T00:00:00Z",
                                       "0000-01-01T00:00:00Z",
                                       "1677-09-21T00:12:43.145224191Z",
                                       "2262-04-11T23:47:16.854775808Z",
                                       "9999-12-31T23:59:59Z"}) {
    EXPECT_THROW(parse_time(wrong), InvalidArgument) << wrong;
  }
}

TEST(EntryTime, EveryTimeComesBack) {
  std::mt19937_64 random(test::test_seed());
  for (int round = 0; round < 20'000; ++round) {
    const auto ns = static_cast<std::int64_t>(random());
    ASSERT_EQ(parse_time(format_time(ns)), ns);
  }
  for (std::int64_t day = -106'751; day <= 106'750; ++day) {
    const std::int64_t ns = day * 86'400'000'000'000;
    ASSERT_EQ(parse_time(format_time(ns)), ns);
    ASSERT_EQ(parse_time(format_time(ns - 1)), ns - 1);
  }
}

}  // namespace
}  // namespace cocoon::metering
