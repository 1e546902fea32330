#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"

#include "lifecycle_test_support.h"

namespace cocoon::lifecycle {
namespace {

using Json = nlohmann::ordered_json;
// Every field away from its default.
VmRecord full_vm() {
  VmRecord vm;
  vm.id = "abcdefghijklmnopqrstuvwxyz";
  vm.hypervisor = "qemu";
  vm.state = VmState::kHibernated;
  vm.config.name = "web-1";
  vm.config.cpu = 4;
  vm.config.mem_bytes = 536870912;
  vm.config.storage_bytes = 10737418240;
  vm.config.kernel = "/boot/vmlinuz";
  vm.config.initrd = "/boot/initrd";
  vm.config.cmdline = "console=ttyS0 \"quoted\\\" \t";
  vm.config.disks = {{"/run/cow.qcow2", false, "qcow2", "cow", "cocoon-cow", 1000},
                     {"/data", true, "raw", "data", "d", 7}};
  vm.config.labels = {{"tenant", "größe 🚀"}, {"team", "x"}};
  vm.config.machine = "q35";
  vm.config.accelerator = "tcg";
  vm.config.network_namespace = "/run/netns/a";
  vm.shape = {4, 536870912, 10737418240};
  vm.generation = 9;
  vm.first_booted = true;
  vm.dirty = true;
  vm.created_at_ns = 1700000000000000001;
  vm.updated_at_ns = 1700000000000000002;
  vm.started = Instant{1700000000000000003, 42, "deadbeef"};
  vm.stopped_at_ns = 1700000000000000004;
  vm.compute_since = Instant{1700000000000000005, 43, "deadbeef"};
  vm.last_alive = Instant{1700000000000000006, 44, "deadbeef"};
  vm.compute_interval = 12;
  vm.storage_interval = std::numeric_limits<std::uint64_t>::max();
  vm.process = ProcessIdentity{77, 123456, "deadbeef"};
  vm.snapshot_ids = {"s1", "s2"};
  vm.kept_snapshot_id = "s2";
  vm.run_dir = "/run/x";
  vm.log_dir = "/log/x";
  return vm;
}

SnapshotRecord full_snapshot() {
  SnapshotRecord snapshot;
  snapshot.id = "zyxwvutsrqponmlkjihgfedcba";
  snapshot.name = "s";
  snapshot.description = "before the upgrade";
  snapshot.hypervisor = "firecracker";
  snapshot.vm_id = "abcdefghijklmnopqrstuvwxyz";
  snapshot.cpu = 2;
  snapshot.mem_bytes = 3;
  snapshot.storage_bytes = 4;
  snapshot.size_bytes = 5;
  snapshot.pending = false;
  snapshot.generation = 2;
  snapshot.created_at_ns = 6;
  snapshot.storage_interval = 7;
  snapshot.data_dir = "/snapshots/x";
  return snapshot;
}

std::string vm_error(const std::string& document) {
  return error_of([&] { vm_from_document(document); });
}

constexpr std::string_view kGoldenVm =
    R"({"id":"abcdefghijklmnopqrstuvwxyz","hypervisor":"qemu","state":"hibernated","config":{"name":"web-1","cpu":4,)"
    R"("mem_bytes":536870912,"storage_bytes":10737418240,"kernel":"/boot/vmlinuz","initrd":"/boot/initrd",)"
    R"("cmdline":"console=ttyS0 \"quoted\\\" \t","disks":[{"path":"/run/cow.qcow2","format":"qcow2","role":"cow",)"
    R"("serial":"cocoon-cow","size_bytes":1000},{"path":"/data","readonly":true,"serial":"d","size_bytes":7}],)"
    R"("labels":{"team":"x","tenant":"größe 🚀"},"machine":"q35","accelerator":"tcg",)"
    R"("network_namespace":"/run/netns/a"},"shape":{"cpu":4,"mem_bytes":536870912,"storage_bytes":10737418240},)"
    R"("generation":9,"first_booted":true,"dirty":true,"created_at_ns":1700000000000000001,)"
    R"("updated_at_ns":1700000000000000002,)"
    R"("started":{"wall_ns":1700000000000000003,"uptime_ns":42,"boot_id":"deadbeef"},)"
    R"("stopped_at_ns":1700000000000000004,)"
    R"("compute_since":{"wall_ns":1700000000000000005,"uptime_ns":43,"boot_id":"deadbeef"},)"
    R"("last_alive":{"wall_ns":1700000000000000006,"uptime_ns":44,"boot_id":"deadbeef"},)"
    R"("compute_interval":12,"storage_interval":18446744073709551615,)"
    R"("process":{"pid":77,"start_ticks":123456,"boot_id":"deadbeef"},"snapshot_ids":["s1","s2"],)"
    R"("kept_snapshot_id":"s2","run_dir":"/run/x","log_dir":"/log/x"})";

constexpr std::string_view kGoldenSnapshot =
    R"({"id":"zyxwvutsrqponmlkjihgfedcba","name":"s","description":"before the upgrade","hypervisor":"firecracker",)"
    R"("vm_id":"abcdefghijklmnopqrstuvwxyz","cpu":2,"mem_bytes":3,"storage_bytes":4,"size_bytes":5,"pending":false,)"
    R"("generation":2,"created_at_ns":6,"storage_interval":7,"data_dir":"/snapshots/x"})";

TEST(LifecycleDocumentTest, GoldenVm) {
  EXPECT_EQ(to_document(full_vm()), kGoldenVm);
  EXPECT_EQ(vm_from_document(kGoldenVm), full_vm());
}

TEST(LifecycleDocumentTest, GoldenSnapshot) {
  EXPECT_EQ(to_document(full_snapshot()), kGoldenSnapshot);
  EXPECT_EQ(snapshot_from_document(kGoldenSnapshot), full_snapshot());
}

TEST(LifecycleDocumentTest, LeavesOutEmptyAndDefaultFields) {
  VmRecord vm;
  vm.id = "a";
  vm.hypervisor = "qemu";
  vm.config.name = "n";
  const std::string golden =
      R"({"id":"a","hypervisor":"qemu","state":"creating","config":{"name":"n"},"generation":0,"created_at_ns":0,"updated_at_ns":0})";
  EXPECT_EQ(to_document(vm), golden);
  EXPECT_EQ(vm_from_document(golden), vm);
  SnapshotRecord snapshot;
  snapshot.id = "a";
  EXPECT_EQ(to_document(snapshot), R"({"id":"a","pending":true,"generation":0,"created_at_ns":0})");
  EXPECT_EQ(snapshot_from_document(to_document(snapshot)), snapshot);
}

TEST(LifecycleDocumentTest, TheOrderOfFieldsAndWhiteSpaceAreFree) {
  // The plain json type sorts keys.
  const std::string sorted = nlohmann::json::parse(kGoldenVm).dump(4);
  ASSERT_NE(sorted, kGoldenVm);
  EXPECT_EQ(vm_from_document(sorted), full_vm());
  EXPECT_EQ(snapshot_from_document(nlohmann::json::parse(kGoldenSnapshot).dump(1, '\t')), full_snapshot());
}

std::string join(const std::string& path, const std::string& key) {
  return path.empty() ? key : fmt::format("{}.{}", path, key);
}

// Visits every object of a document, depth first, with its path.
void visit_objects(Json& value, const std::string& path, const std::function<void(Json&, const std::string&)>& visit) {
  if (value.is_object()) {
    visit(value, path);
    for (auto& [key, child] : value.items()) visit_objects(child, join(path, key), visit);
  } else if (value.is_array()) {
    for (std::size_t i = 0; i < value.size(); ++i) visit_objects(value[i], fmt::format("{}[{}]", path, i), visit);
  }
}

template <typename Read>
void expect_strict(std::string_view golden, std::vector<std::string> required, const Read& read) {
  std::vector<std::string> found_required;
  Json document = Json::parse(golden);
  int cases = 0;
  visit_objects(document, "", [&](Json& object, const std::string& path) {
    const Json whole = object;
    for (const auto& [key, value] : whole.items()) {
      const std::string field = join(path, key);
      object = whole;
      object.erase(key);
      const std::string missing = error_of([&] { read(document.dump()); });
      if (!missing.empty()) {
        EXPECT_TRUE(contains(missing, field + ": the field is missing"));
        found_required.push_back(field);
      }
      for (const Json& other : {Json(nullptr), Json(true), Json(1.5), Json("text"), Json(7), Json::array({Json(1)}),
                                Json::object({{"x", Json::array()}})}) {
        const bool same_type = other.type() == value.type() || (other.is_number_integer() && value.is_number_integer());
        if (same_type && !other.is_array() && !other.is_object()) continue;
        object = whole;
        object[key] = other;
        ++cases;
        EXPECT_TRUE(contains(error_of([&] { read(document.dump()); }), ": " + field)) << document.dump();
      }
    }
    object = whole;
    if (path.ends_with("labels")) return;
    object["zzz"] = 1;
    EXPECT_TRUE(contains(error_of([&] { read(document.dump()); }), "unknown field \"zzz\""));
    object = whole;
  });
  EXPECT_GT(cases, 50);
  std::sort(found_required.begin(), found_required.end());
  std::sort(required.begin(), required.end());
  EXPECT_EQ(found_required, required);
}

TEST(LifecycleDocumentTest, EachMissingMistypedOrUnknownFieldOfAVmIsNamed) {
  expect_strict(kGoldenVm,
                {"id",
                 "hypervisor",
                 "state",
                 "config",
                 "config.name",
                 "config.disks[0].path",
                 "config.disks[1].path",
                 "generation",
                 "created_at_ns",
                 "updated_at_ns",
                 "started.wall_ns",
                 "started.uptime_ns",
                 "started.boot_id",
                 "compute_since.wall_ns",
                 "compute_since.uptime_ns",
                 "compute_since.boot_id",
                 "last_alive.wall_ns",
                 "last_alive.uptime_ns",
                 "last_alive.boot_id",
                 "process.pid",
                 "process.start_ticks",
                 "process.boot_id"},
                [](const std::string& text) { vm_from_document(text); });
}

TEST(LifecycleDocumentTest, EachMissingMistypedOrUnknownFieldOfASnapshotIsNamed) {
  expect_strict(kGoldenSnapshot, {"id", "pending", "generation", "created_at_ns"},
                [](const std::string& text) { snapshot_from_document(text); });
}

TEST(LifecycleDocumentTest, RefusesWhatJsonDoesNotAllow) {
  const std::string tail =
      R"(,"hypervisor":"q","state":"created","config":{"name":"n"},"generation":1,"created_at_ns":1,"updated_at_ns":1})";
  EXPECT_EQ(vm_from_document(R"({"id":"a")" + tail).id, "a");
  EXPECT_EQ(vm_from_document(R"({"id":"\u00e9\ud83d\ude80\/\n")" + tail).id, "é🚀/\n");
  for (const std::string id :
       {R"("\ud83d")", R"("\ude80\ud83d")", R"("\u12g4")", R"("\x")", "\"\n\"", "\"\xff\"", "\"\xc0\x80\"",
        "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", R"("a)", "\"\\\xff\"", "", "a"}) {
    EXPECT_TRUE(contains(vm_error(fmt::format("{{\"id\":{}{}", id, tail)), "InvalidArgument: VM record: ")) << id;
  }
  EXPECT_TRUE(contains(vm_error(R"({"id":"a","id":"a")" + tail), "id: the field is there twice"));
  EXPECT_TRUE(contains(vm_error(R"({"id":"a")" + tail + "x"), "after the end"));
  EXPECT_TRUE(contains(vm_error(R"({"id":"a",)" + tail), "VM record: bad JSON at byte 10: expected a field's name"));
  for (const std::string number : {"01", "-", "1.0", "1e3", "9223372036854775808", "+1", "0x1", "1 2", "NaN", "--1"}) {
    EXPECT_TRUE(contains(vm_error(R"({"id":"a","generation":)" + number + "}"), "VM record: ")) << number;
    EXPECT_FALSE(contains(vm_error(R"({"id":"a","generation":)" + number + "}"), "missing")) << number;
  }
  EXPECT_TRUE(contains(vm_error(R"({"compute_interval":-1})"), "compute_interval: expected a whole number"));
  EXPECT_TRUE(
      contains(vm_error(R"({"config":{"labels":{"a":"1","a":"2"}}})"), "config.labels.a: the field is there twice"));
  EXPECT_TRUE(contains(vm_error(R"({"state":"asleep"})"), "state: unknown state \"asleep\""));
  EXPECT_TRUE(contains(vm_error(R"({"config":{"disks":[{"path":"/a"},{"path":7}]}})"),
                       "config.disks[1].path: expected a string, found \"7\""));
}

TEST(LifecycleDocumentTest, EveryCutAndEveryFlippedByteIsReadOrRefusedNeverMisread) {
  const std::string golden(kGoldenVm);
  for (std::size_t length = 0; length < golden.size(); ++length) {
    EXPECT_TRUE(contains(vm_error(golden.substr(0, length)), "InvalidArgument: VM record: ")) << length;
  }
  int accepted = 0;
  for (std::size_t at = 0; at < golden.size(); ++at) {
    for (const char mask : {'\x01', '\x20', '\x80'}) {
      std::string flipped = golden;
      flipped[at] = static_cast<char>(flipped[at] ^ mask);
      VmRecord vm;
      const std::string error = error_of([&] { vm = vm_from_document(flipped); });
      if (!error.empty()) {
        EXPECT_TRUE(contains(error, "InvalidArgument: VM record: ")) << flipped;
        continue;
      }
      ++accepted;
      EXPECT_TRUE(nlohmann::json::accept(flipped)) << flipped;
      EXPECT_EQ(vm_from_document(to_document(vm)), vm);
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(LifecycleDocumentTest, RefusesToWriteTextThatIsNotUtf8) {
  VmRecord vm = full_vm();
  vm.config.cmdline = "a\xff";
  EXPECT_TRUE(contains(error_of([&] { to_document(vm); }), "is not UTF-8"));
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t below(std::uint64_t n) { return engine_() % n; }
  bool coin() { return below(2) == 1; }
  std::int64_t number() {
    return below(8) == 0 ? std::numeric_limits<std::int64_t>::max()
                         : static_cast<std::int64_t>(engine_() >> below(64) >> 1);
  }
  std::string text() {
    static const std::vector<std::string> kPieces = {
        "a", "Z", "9", "\"", "\\", "/", "\n", "\x01", "\x7f", "é", "€", "🚀", std::string(1, '\0'), " ", "{", ",", "]"};
    std::string out;
    for (std::uint64_t i = below(12); i > 0; --i) out += kPieces[below(kPieces.size())];
    return out;
  }
  Instant instant() { return {number(), number(), text()}; }
  template <typename T>
  std::optional<T> maybe(T value) {
    return coin() ? std::optional<T>(std::move(value)) : std::nullopt;
  }

 private:
  std::mt19937_64 engine_;
};

VmRecord random_vm(Random& random) {
  VmRecord vm;
  vm.id = random.text();
  vm.hypervisor = random.text();
  vm.state = static_cast<VmState>(random.below(6));
  vm.config.name = random.text();
  vm.config.cpu = random.number();
  vm.config.mem_bytes = -random.number();
  vm.config.cmdline = random.text();
  for (auto i = random.below(4); i > 0; --i) {
    vm.config.disks.push_back(
        {random.text(), random.coin(), random.text(), random.text(), random.text(), random.number()});
  }
  for (auto i = random.below(4); i > 0; --i) vm.config.labels[random.text()] = random.text();
  vm.shape = {random.number(), random.number(), random.coin() ? 0 : random.number()};
  vm.generation = random.number();
  vm.first_booted = random.coin();
  vm.dirty = random.coin();
  vm.created_at_ns = random.number();
  vm.started = random.maybe(random.instant());
  vm.stopped_at_ns = random.maybe(random.number());
  vm.compute_since = random.maybe(random.instant());
  vm.last_alive = random.maybe(random.instant());
  vm.compute_interval = random.below(3);
  vm.storage_interval = random.below(3);
  vm.process = random.maybe(ProcessIdentity{random.number(), random.below(9), random.text()});
  for (auto i = random.below(3); i > 0; --i) vm.snapshot_ids.push_back(random.text());
  vm.kept_snapshot_id = random.text();
  vm.run_dir = random.text();
  return vm;
}

TEST(LifecycleDocumentTest, RandomRecordsRoundTripAndAreTheJsonThatOthersRead) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Random random(seed);
  for (int i = 0; i < 2000 && !testing::Test::HasFailure(); ++i) {
    const VmRecord vm = random_vm(random);
    const std::string document = to_document(vm);
    EXPECT_EQ(vm_from_document(document), vm) << document;
    EXPECT_EQ(Json::parse(document).dump(), document);
    EXPECT_EQ(vm_from_document(nlohmann::json::parse(document).dump(-1, ' ', true)), vm) << document;
    SnapshotRecord snapshot = full_snapshot();
    snapshot.name = random.text();
    snapshot.description = random.text();
    snapshot.pending = random.coin();
    snapshot.size_bytes = random.number();
    EXPECT_EQ(snapshot_from_document(to_document(snapshot)), snapshot);
  }
}

// Against a general parser that does nothing with what it reads, in the same process: a limit that a loaded machine and
// the sanitizers do not move.
TEST(LifecycleDocumentTest, ReadingIsFasterThanAGeneralParser) {
  const std::string document(kGoldenVm);
  const auto time = [](const auto& action) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 500; ++i) action();
    return std::chrono::steady_clock::now() - start;
  };
  std::vector<double> ratios;
  std::size_t total = 0;
  for (int round = 0; round < 7; ++round) {
    const auto ours = time([&] { total += vm_from_document(document).id.size(); });
    const auto theirs = time([&] { total += Json::parse(document).size(); });
    ratios.push_back(static_cast<double>(ours.count()) / static_cast<double>(theirs.count()));
  }
  std::sort(ratios.begin(), ratios.end());
  RecordProperty("ratio", fmt::format("{:.3f}", ratios[3]));
  EXPECT_GT(total, 0U);
  EXPECT_LT(ratios[3], 1.0);
}

TEST(LifecycleDocumentTest, StatesByName) {
  for (const auto* name : {"creating", "created", "running", "stopped", "hibernated", "error"}) {
    EXPECT_EQ(to_string(parse_state(name)), name);
  }
  EXPECT_TRUE(contains(error_of([] { parse_state("Running"); }), "VM state \"Running\": allowed are creating, "));
}

TEST(LifecycleDocumentTest, ShapeCountsTheOwnDiskAndWritableDataDisks) {
  VmConfig config = full_vm().config;
  config.storage_bytes = 100;
  config.disks = {{"/l", true, "raw", "layer", "", 1},    {"/c", false, "raw", "cow", "", 2},
                  {"/d", false, "raw", "data", "", 4},    {"/r", true, "raw", "data", "", 8},
                  {"/e", false, "qcow2", "data", "", 16}, {"/i", true, "raw", "cidata", "", 32}};
  EXPECT_EQ(shape_of(config), (metering::Shape{4, 536870912, 120}));
  config.disks[2].size_bytes = -1;
  EXPECT_TRUE(contains(error_of([&] { shape_of(config); }), "storage of -1 bytes"));
  config.disks[2].size_bytes = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(contains(error_of([&] { shape_of(config); }), "storage of "));
  config.disks.clear();
  config.cpu = -1;
  EXPECT_TRUE(contains(error_of([&] { shape_of(config); }), "cpu -1"));
}

}  // namespace
}  // namespace cocoon::lifecycle
