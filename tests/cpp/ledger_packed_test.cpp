// Packed files, parts, checkpoints and Arrow: what a reading gives is the same however the ledger lies on the disk.

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/arrow.h"
#include "cocoon/ledger/checkpoint.h"
#include "cocoon/ledger/iterate.h"
#include "cocoon/ledger/table.h"
#include "cocoon/metering/ledger_parts.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;
using metering::Entry;
using metering::Kind;

constexpr std::int64_t kSecondsLater = test::kMidnight + 100'000 * test::kSecond;

class PackedTest : public testing::Test {
 protected:
  fs::path put(std::string_view name, std::string_view text) {
    test::write_file(dir_ / name, text);
    return dir_ / name;
  }
  Files files_here() { return find_files(std::vector<std::string>{dir_.path().string()}); }

  static std::vector<std::uint64_t> seqs(const Files& files) {
    std::vector<std::uint64_t> all;
    for_each_entry(files, [&](const Batch::Item& item, const Position&) { all.push_back(item.entry.seq.value_or(0)); });
    return all;
  }
  static std::vector<metering::Entry> entries(const Files& files) {
    std::vector<metering::Entry> all;
    for_each_entry(files,
                   [&](const Batch::Item& item, const Position&) { all.push_back(metering::to_entry(item.entry)); });
    return all;
  }
  static std::vector<std::uint64_t> count_to(std::uint64_t last) {
    std::vector<std::uint64_t> all;
    for (std::uint64_t seq = 1; seq <= last; ++seq) all.push_back(seq);
    return all;
  }

  test::TempDir dir_;
};

test::LedgerText restarts(std::int64_t count) {
  test::LedgerText text;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string id = "vm-" + std::to_string(i % 7);
    if (i / 7 % 2 == 0) {
      text.vm_start(id, i, [&](Entry& e) { e.labels = {{"tenant", std::to_string(i % 3)}}; });
    } else {
      text.vm_stop(id, i);
    }
  }
  return text;
}

std::string gzip(std::string_view text) {
  std::string out(text.size() + 1024, '\0');
  z_stream state{};
  ::deflateInit2(&state, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&state, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - state.avail_out);
  ::deflateEnd(&state);
  return out;
}

TEST_F(PackedTest, PackedPartsAreReadInOrderBeforeTheCurrentFile) {
  const std::string text = restarts(8'000).text();
  const auto line_end = [&](std::size_t about) { return text.find('\n', about) + 1; };
  const std::size_t one = line_end(text.size() / 4);
  const std::size_t two = line_end(text.size() / 2);
  const auto lines = [&](std::size_t begin, std::size_t end) {
    return static_cast<std::uint64_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                                 text.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
  };
  const std::uint64_t first = lines(0, one);
  const std::uint64_t second = lines(0, two);
  put("ledger.jsonl", text.substr(two));
  put("ledger.1-" + std::to_string(first) + ".jsonl", text.substr(0, one));
  ASSERT_EQ(metering::pack_parts(dir_ / "ledger.jsonl"), 1U);
  EXPECT_EQ(metering::pack_parts(dir_ / "ledger.jsonl"), 0U);
  put("ledger." + std::to_string(first + 1) + "-" + std::to_string(second) + ".jsonl.gz",
      gzip(text.substr(one, two - one)));
  const Files files = files_here();
  ASSERT_EQ(files.size(), 3U);
  EXPECT_TRUE(files[0].string().ends_with(".zst"));
  EXPECT_EQ(seqs(files), count_to(8'000));
  for (const Finding& finding : audit(files).findings) {
    ASSERT_EQ(finding.code, Code::kComputeOutlivesStorage) << "these VMs have none, and nothing else is wrong";
  }
  EXPECT_EQ(files, find_files(Selection{{(dir_ / "ledger.jsonl").string()}, true}));
  EXPECT_EQ(metering::rotated_through(dir_ / "ledger.jsonl"), second);
}

TEST_F(PackedTest, APartThatIsThereTwiceIsReadOnce) {
  const std::string text = restarts(100).text();
  put("ledger.1-100.jsonl", text);
  const std::string part = (dir_ / "ledger.1-100.jsonl").string();
  ASSERT_EQ(metering::pack_parts(dir_ / "ledger.jsonl"), 1U);
  EXPECT_FALSE(fs::exists(part));
  put("ledger.1-100.jsonl", text);  // as if its packer had died before the last step
  put("ledger.1-100.jsonl.zst.part", "half");
  EXPECT_EQ(seqs(files_here()), count_to(100));
  EXPECT_EQ(seqs(find_files(std::vector<std::string>{(dir_ / "*").string() + "jsonl*"})), count_to(100));
  EXPECT_EQ(metering::pack_parts(dir_ / "ledger.jsonl"), 1U);
  EXPECT_FALSE(fs::exists(part));
  EXPECT_FALSE(fs::exists(part + ".zst.part"));
}

TEST_F(PackedTest, DamagedAndCutPackedFilesAreNamed) {
  put("ledger.1-2000.jsonl", restarts(2'000).text());
  ASSERT_EQ(metering::pack_parts(dir_ / "ledger.jsonl"), 1U);
  const fs::path packed = dir_ / "ledger.1-2000.jsonl.zst";
  const std::string good = test::read_file(packed);
  const std::string zipped = gzip(restarts(2'000).text());
  const auto whole = entries({packed});
  std::mt19937_64 random(test::test_seed());
  for (int round = 0; round < 60; ++round) {
    const bool zstd = round % 2 == 0;
    std::string bad = zstd ? good : zipped;
    const bool cut = round % 4 < 2;
    if (cut) {
      bad.resize(8 + random() % (bad.size() - 9));
    } else {
      char& byte = bad[8 + random() % (bad.size() - 8)];
      byte = static_cast<char>(static_cast<unsigned char>(byte) ^ (1U << (random() % 8)));
    }
    const fs::path path = zstd ? packed : put("x.jsonl.gz", bad);
    test::write_file(path, bad);
    try {
      // A bit that no decoder looks at, such as the padding behind zstd's tables, harms nothing.
      EXPECT_TRUE(entries({path}) == whole) << path << ", round " << round;
      EXPECT_FALSE(cut) << path << " was read, round " << round;
    } catch (const LedgerError& error) {
      EXPECT_EQ(error.path, path.string());
      const std::string what = error.what();
      EXPECT_NE(what.find(path.string()), std::string::npos) << what;
      EXPECT_NE(what.find(cut ? "cut off" : "damaged"), std::string::npos) << what;
    }
  }
}

TEST_F(PackedTest, SeveralFramesAndMembersAreOneFile) {
  put("a.1-5.jsonl", restarts(5).text());
  ASSERT_EQ(metering::pack_parts(dir_ / "a.jsonl"), 1U);
  const std::string frame = test::read_file(dir_ / "a.1-5.jsonl.zst");
  const fs::path zstd = put("z.jsonl.zst", frame + frame);
  const fs::path zipped = put("g.jsonl.gz", gzip(restarts(5).text()) + gzip(restarts(5).text()));
  EXPECT_EQ(seqs({zstd}), (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 1, 2, 3, 4, 5}));
  EXPECT_EQ(seqs({zipped}), seqs({zstd}));
}

// ---------------------------------------------------------------------------------------------------- other layouts

// The same entries in any valid layout give the same table.
TEST_F(PackedTest, EveryLayoutGivesTheSameIntervals) {
  std::mt19937_64 random(test::test_seed());
  const std::string own = restarts(3'000).text();
  std::string other;
  for (std::size_t begin = 0; begin < own.size();) {
    const std::size_t end = own.find('\n', begin);
    std::string line = own.substr(begin, end - begin);
    begin = end + 1;
    switch (random() % 4) {
      case 0:
        line.insert(1, R"("unknown": [1, {"a": null}], )");
        break;
      case 1:
        line.insert(0, "  ").append("\t\r");
        break;
      case 2:
        if (const std::size_t at = line.find("vm-"); at != std::string::npos) line.replace(at, 1, "\\u0076");
        break;
      default:
        break;
    }
    other += line + '\n';
  }
  ASSERT_NE(own, other);
  const Table a = intervals_table({put("a.jsonl", own)}, kSecondsLater);
  const Table b = intervals_table({put("b.jsonl", other)}, kSecondsLater);
  ASSERT_EQ(a.rows(), b.rows());
  for (std::size_t i = 0; i < a.columns().size(); ++i) {
    const Column& one = a.columns()[i];
    const Column& two = b.columns()[i];
    for (std::size_t row = 0; row < a.rows(); ++row) {
      ASSERT_EQ(one.is_null(row), two.is_null(row));
      if (one.is_null(row)) continue;
      const bool text =
          one.type() == ColumnType::kText || one.type() == ColumnType::kSymbol || one.type() == ColumnType::kLabels;
      if (text) {
        ASSERT_EQ(one.text(row), two.text(row)) << one.name();
      } else {
        ASSERT_EQ(one.integer(row), two.integer(row)) << one.name();
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------- iterating

TEST_F(PackedTest, IteratingGoesOnWhereTheLedgerIsRotatedMeanwhile) {
  test::LedgerText lines = restarts(12);
  const std::string text = lines.text();
  std::vector<std::string> line;
  for (std::size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) {
    line.push_back(text.substr(at, text.find('\n', at) + 1 - at));
  }
  const auto some = [&](std::size_t first, std::size_t last) {  // of these seqs
    std::string out;
    for (std::size_t i = first; i <= last; ++i) out += line[i - 1];
    return out;
  };
  const std::string go = metering::to_json(test::vm_entry(Kind::kVmComputeStart, "go", 0)) + "\n";
  for (std::size_t when = 0; when <= 11; ++when) {  // after so many entries
    put("ledger.1-4.jsonl", go + some(1, 4) + "no entry\n");
    put("ledger.jsonl", some(5, 8));
    Iterator iterator(Selection{{dir_.path().string()}, false});
    std::vector<std::uint64_t> got;
    int bad = 0;
    for (std::size_t count = 0;; ++count) {
      if (count == when) {
        fs::rename(dir_ / "ledger.jsonl", dir_ / "ledger.5-8.jsonl");
        metering::pack_parts(dir_ / "ledger.jsonl");
        put("ledger.jsonl", some(9, 12));
      }
      Entry entry;
      try {
        if (!iterator.next(entry)) break;
        got.push_back(entry.seq.value_or(0));
      } catch (const LedgerError& error) {
        EXPECT_NE(std::string_view(error.what()).find("ledger.1-4.jsonl"), std::string_view::npos) << error.what();
        ++bad;
      }
    }
    std::vector<std::uint64_t> expected = {0};
    for (const std::uint64_t seq : count_to(when <= 10 ? 12U : 8U)) expected.push_back(seq);
    EXPECT_EQ(got, expected) << "rotated after " << when;
    EXPECT_EQ(bad, 1) << "rotated after " << when;
    for (const auto& file : files_here()) fs::remove(file);
  }
}

// ---------------------------------------------------------------------------------------------------- checkpoints

class CheckpointTest : public PackedTest {
 protected:
  static constexpr std::int64_t kNow = test::kMidnight + 100'000 * test::kSecond;

  static bool same(const std::vector<UsageRow>& a, const std::vector<UsageRow>& b) {
    const auto equal = [](const UsageRow& x, const UsageRow& y) {
      return x.key == y.key && x.bucket_ns == y.bucket_ns && x.vcpu_ns == y.vcpu_ns && x.mem_byte_ns == y.mem_byte_ns &&
             x.storage_byte_ns == y.storage_byte_ns && x.intervals == y.intervals && x.open == y.open;
    };
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), equal);
  }
  // The answer from the checkpoint, which must be that of reading it all.
  void expect_exact(const std::string& why, const UsageQuery& query = {}) {
    const Files files = files_here();
    const auto rows = read_usage_from(checkpoint_, files, query, kNow);
    EXPECT_TRUE(same(rows, read_usage(files, query, kNow))) << why;
    EXPECT_TRUE(same(read_usage_from(checkpoint_, files, query, kNow), rows)) << why << ", again";
  }
  void append(const fs::path& path, std::string_view text) {
    std::ofstream(path, std::ios::binary | std::ios::app) << text;
  }

  fs::path checkpoint_ = dir_ / "usage.checkpoint";
};

TEST_F(CheckpointTest, GivesTheAnswerOfAWholeReadingWhateverHappened) {
  std::mt19937_64 random(test::test_seed());
  const std::string text = restarts(3'000).text();
  const fs::path path = put("ledger.jsonl", "");
  std::size_t written = 0;
  UsageQuery by_label;
  by_label.by = {"label:tenant", "hypervisor"};
  by_label.every_ns = 600 * test::kSecond;
  std::uint64_t part = 0;
  for (int round = 0; round < 120; ++round) {
    const std::size_t more = std::min<std::size_t>(text.size() - written, random() % 4'000);
    append(path, text.substr(written, more));
    written += more;
    switch (random() % 8) {
      case 0:
        test::write_file(path, test::read_file(path));  // the same text, another time
        break;
      case 1: {
        const std::string whole = test::read_file(path);
        if (whole.size() < 2) break;
        test::write_file(path, whole.substr(0, whole.size() / 2));  // cut
        expect_exact("cut");
        test::write_file(path, whole);
        break;
      }
      case 2: {
        fs::copy_file(path, dir_ / "copy");
        fs::rename(dir_ / "copy", path);  // replaced by the same
        break;
      }
      case 3: {
        std::string damaged = fs::exists(checkpoint_) ? test::read_file(checkpoint_) : "x";
        damaged[random() % damaged.size()] ^= 4;
        test::write_file(checkpoint_, damaged);
        break;
      }
      case 4: {
        if (random() % 2 == 0) break;
        ++part;
        fs::rename(path, dir_ / ("ledger." + std::to_string(part) + "-" + std::to_string(part) + ".jsonl"));
        expect_exact("rotated, and no new file yet");
        metering::pack_parts(path);
        put("ledger.jsonl", "");
        break;
      }
      default:
        break;
    }
    expect_exact("round " + std::to_string(round));
    if (round % 10 == 0) {
      expect_exact("another question", by_label);
      UsageQuery window;
      window.since_ns = test::kMidnight + 500 * test::kSecond;
      window.until_ns = test::kMidnight + 2'000 * test::kSecond;
      window.crash = CrashEnd::kEmitted;
      expect_exact("a window", window);
    }
    if (HasFailure()) return;
  }
}

TEST_F(CheckpointTest, RemembersWhatALateCopyRepeats) {
  const std::string text = restarts(100).text();
  const fs::path path = put("ledger.jsonl", text);
  expect_exact("first");
  const auto before = read_usage_from(checkpoint_, files_here(), {}, kNow);
  append(path, text.substr(0, text.rfind('\n', text.size() / 2) + 1));
  expect_exact("half of it once more");
  EXPECT_TRUE(same(read_usage_from(checkpoint_, files_here(), {}, kNow), before));
}

TEST_F(CheckpointTest, ReadsOnlyWhatIsNew) {
  put("ledger.jsonl", restarts(1'000).text());
  expect_exact("first");
  // A damaged line in what was read shows that it is not looked at again: this is what the header promises.
  std::string text = test::read_file(dir_ / "ledger.jsonl");
  const std::size_t middle = text.find('\n', text.size() / 2) + 1;
  text.replace(middle, 20, std::string(20, ' '));
  const Files files = files_here();
  const auto before = read_usage_from(checkpoint_, files, {}, kNow);
  {
    std::fstream out(dir_ / "ledger.jsonl", std::ios::binary | std::ios::in | std::ios::out);
    out << text;
  }
  append(dir_ / "ledger.jsonl", metering::to_json(test::vm_entry(Kind::kVmComputeStart, "new", kNow)) + "\n");
  const auto rows = read_usage_from(checkpoint_, files, {}, kNow);
  ASSERT_EQ(rows.size(), before.size() + 1);
  EXPECT_EQ(rows.back().key[0], "vm-6");
  const auto intervals = [](const std::vector<UsageRow>& all) {
    std::uint64_t sum = 0;
    for (const UsageRow& row : all) sum += row.intervals;
    return sum;
  };
  EXPECT_EQ(intervals(rows), intervals(before) + 1) << "the damage was not looked at";
}

TEST_F(CheckpointTest, SaysWhereItCannotBeWritten) {
  put("ledger.jsonl", restarts(10).text());
  const fs::path nowhere = dir_ / "none" / "checkpoint";
  try {
    read_usage_from(nowhere, files_here(), {}, kNow);
    ADD_FAILURE() << "it was written";
  } catch (const LedgerError& error) {
    EXPECT_EQ(error.path, nowhere.string());
  }
}

// ----------------------------------------------------------------------------------------------------------- Arrow

TEST_F(PackedTest, ArrowArraysOutliveTheirTableAndAreReleasedOnce) {
  const std::int64_t before = arrow_exports();
  ArrowSchema schema{};
  ArrowArray array{};
  ArrowArray end{};
  {
    ArrowArrayStream stream{};
    {
      const auto table =
          std::make_shared<const Table>(intervals_table({put("a.jsonl", restarts(500).text())}, kSecondsLater));
      export_stream(table, stream);
    }
    ASSERT_EQ(stream.get_schema(&stream, &schema), 0);
    ASSERT_EQ(stream.get_next(&stream, &array), 0);
    ASSERT_EQ(stream.get_next(&stream, &end), 0);
    EXPECT_EQ(stream.get_last_error(&stream), nullptr);
    stream.release(&stream);
    EXPECT_EQ(stream.release, nullptr);
  }
  EXPECT_EQ(end.release, nullptr);
  ASSERT_EQ(array.n_children, schema.n_children);
  EXPECT_EQ(array.length, 252);
  EXPECT_STREQ(schema.children[0]->name, "id");
  // A taker may keep one column and release the rest.
  ArrowArray column = *array.children[0];
  array.children[0]->release = nullptr;
  array.release(&array);
  schema.release(&schema);
  const auto* const offsets = static_cast<const std::int64_t*>(column.buffers[1]);
  const auto* const text = static_cast<const char*>(column.buffers[2]);
  EXPECT_EQ(std::string_view(text + offsets[6], static_cast<std::size_t>(offsets[7] - offsets[6])), "vm-6");
  EXPECT_GT(arrow_exports(), before);
  column.release(&column);
  EXPECT_EQ(arrow_exports(), before);
}

}  // namespace
}  // namespace cocoon::ledger
