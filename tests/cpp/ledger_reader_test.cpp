#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/ledger/follow.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/table.h"

#include "ledger_support.h"

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;
using metering::Entry;
using metering::Kind;

std::string line_of(std::uint64_t seq) {
  Entry entry = test::vm_entry(Kind::kVmComputeStart, "v" + std::to_string(seq), 0);
  entry.seq = seq;
  return metering::to_json(entry) + '\n';
}

class LedgerReaderTest : public testing::Test {
 protected:
  fs::path put(std::string_view name, std::string_view text) {
    fs::create_directories((dir_ / name).parent_path());
    test::write_file(dir_ / name, text);
    return dir_ / name;
  }
  Files find(std::vector<std::string> patterns) {
    for (std::string& pattern : patterns) {
      pattern = (dir_ / pattern).string();
    }
    return find_files(patterns);
  }
  std::vector<std::string> names(const Files& files) {
    std::vector<std::string> names;
    for (const fs::path& file : files) {
      names.push_back(fs::relative(file, dir_.path()).string());
    }
    return names;
  }

  test::TempDir dir_;
};

struct Seen {
  std::string text;
  std::uint64_t line;
  std::uint64_t offset;
  bool torn;
  bool operator==(const Seen&) const = default;
};

// Lines that are no entries, which these are.
std::vector<Seen> lines_in(const Files& files) {
  std::vector<Seen> seen;
  for_each_line(
      std::make_shared<const Files>(files), [](const Batch::Item&, const Position&) { ADD_FAILURE() << "an entry"; },
      [&](const BadLine& bad) {
        seen.push_back({std::string(bad.line.text), bad.line.at.line, bad.line.at.offset, bad.line.torn});
      });
  return seen;
}

TEST_F(LedgerReaderTest, ExpandsFoldersAndGlobsInSeqOrder) {
  for (const char* name : {"m/ledger.jsonl", "m/ledger.1001-2000.jsonl", "m/ledger.1-1000.jsonl", "m/notes.txt",
                           "m/ledger.20001-30000.jsonl", "n/other.jsonl"}) {
    put(name, "");
  }
  const std::vector<std::string> in_order = {"m/ledger.1-1000.jsonl", "m/ledger.1001-2000.jsonl",
                                             "m/ledger.20001-30000.jsonl", "m/ledger.jsonl"};
  EXPECT_EQ(names(find({"m"})), in_order);
  EXPECT_EQ(names(find({"m/*.jsonl"})), in_order);
  EXPECT_EQ(names(find({"m/notes.txt"})), std::vector<std::string>{"m/notes.txt"});
  auto both = in_order;
  both.insert(both.begin(), "n/other.jsonl");
  EXPECT_EQ(names(find({"n", "m", "m/ledger.jsonl"})), both) << "once each";
  EXPECT_TRUE(find({}).empty());
}

TEST_F(LedgerReaderTest, AFileWhoseNameLooksLikeAPatternIsItself) {
  put("led[1].jsonl", "");
  EXPECT_EQ(names(find({"led[1].jsonl"})).size(), 1U);
}

TEST_F(LedgerReaderTest, SaysWhatCannotBeRead) {
  const auto error_of = [&](const std::vector<std::string>& patterns) {
    try {
      lines_in(find(patterns));
    } catch (const LedgerError& error) {
      return std::pair<std::string, std::string>(error.path, error.what());
    }
    return std::pair<std::string, std::string>();
  };
  put("z/ledger.1-2.jsonl.zst", "x");
  put("g.jsonl", "\x1F\x8B\x08");
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  fs::create_symlink("nowhere", dir_ / "broken.jsonl");
  EXPECT_EQ(error_of({"none.jsonl"}),
            std::pair((dir_ / "none.jsonl").string(),
                      "read ledger " + (dir_ / "none.jsonl").string() + ": No such file or directory"));
  EXPECT_NE(error_of({"none*"}).second.find("No such file"), std::string::npos);
  EXPECT_NE(error_of({"z"}).second.find("its name says that it is compressed"), std::string::npos);
  EXPECT_NE(error_of({"g.jsonl"}).second.find("its gzip data is cut off"), std::string::npos);
  EXPECT_NE(error_of({"fifo"}).second.find("not a regular file"), std::string::npos);
  EXPECT_NE(error_of({"broken.jsonl"}).second.find("No such file"), std::string::npos);
}

TEST_F(LedgerReaderTest, LinesHaveTheirNumberAndByteOffset) {
  const Files files = {put("a.jsonl", "one\n\nthree\nto"), put("empty.jsonl", ""), put("b.jsonl", "four\n")};
  EXPECT_EQ(lines_in(files), (std::vector<Seen>{{"one", 1, 0, false},
                                                {"", 2, 4, false},
                                                {"three", 3, 5, false},
                                                {"to", 4, 11, true},
                                                {"four", 1, 0, false}}));
}

TEST_F(LedgerReaderTest, LinesOfAnyLengthCrossBlocks) {
  std::string text;
  std::vector<Seen> expected;
  for (const std::size_t size : {1U, 1'048'575U, 1'048'576U, 3U, 2'500'000U, 0U, 16'000'000U, 7U}) {
    const std::string line(size, static_cast<char>('a' + expected.size()));
    expected.push_back({line, expected.size() + 1, text.size(), false});
    text += line + '\n';
  }
  EXPECT_TRUE(lines_in({put("a.jsonl", text)}) == expected);
}

TEST_F(LedgerReaderTest, AnOverlongLineIsPassedOver) {
  const std::size_t size = (std::size_t{16} << 20) + 5'000'000;
  const Files files = {put("a.jsonl", "a\n" + std::string(size, 'x') + "\nb\n")};
  std::vector<BadLine> bad;
  for_each_line(
      std::make_shared<const Files>(files), [](const Batch::Item&, const Position&) {},
      [&](const BadLine& line) { bad.push_back(line), bad.back().line.text = {}; });
  ASSERT_EQ(bad.size(), 3U);
  EXPECT_TRUE(bad[1].line.overlong);
  EXPECT_FALSE(bad[1].error);
  EXPECT_FALSE(bad[1].line.torn);
  EXPECT_EQ(bad[1].line.at.offset, 2U);
  EXPECT_EQ(bad[1].line.at.line, 2U);
  EXPECT_FALSE(bad[2].line.overlong);
  EXPECT_EQ(bad[2].line.at.line, 3U);
  EXPECT_EQ(bad[2].line.at.offset, 2 + size + 1);
}

TEST_F(LedgerReaderTest, ThrowsAtABadLineAndGoesOnBehindIt) {
  const fs::path path = put("a.jsonl", line_of(1) + "garbage\n" + line_of(2) + line_of(3).substr(0, 30));
  EntryReader reader(std::make_shared<const Files>(Files{path}));
  PlacedEntry placed;
  ASSERT_TRUE(reader.next(placed));
  EXPECT_EQ(placed.entry.seq, 1U);
  try {
    reader.next(placed);
    ADD_FAILURE() << "garbage was read";
  } catch (const LedgerError& error) {
    EXPECT_EQ(error.path, path.string());
    const std::string message = error.what();
    EXPECT_NE(message.find(path.string()), std::string::npos) << message;
    EXPECT_NE(message.find("line 2, byte " + std::to_string(line_of(1).size())), std::string::npos) << message;
    EXPECT_NE(message.find("not JSON"), std::string::npos) << message;
  }
  ASSERT_TRUE(reader.next(placed));
  EXPECT_EQ(placed.entry.seq, 2U);
  EXPECT_EQ(placed.at.line, 3U);
  try {
    reader.next(placed);
    ADD_FAILURE() << "a torn line was read";
  } catch (const LedgerError& error) {
    EXPECT_NE(std::string(error.what()).find("torn"), std::string::npos);
  }
  EXPECT_FALSE(reader.next(placed));
}

TEST_F(LedgerReaderTest, AWholeEntryWithoutItsNewlineIsTornToo) {
  const std::string line = line_of(1);
  const Files files = {put("a.jsonl", line.substr(0, line.size() - 1))};
  std::size_t bad = 0;
  EntryReader reader(std::make_shared<const Files>(files), [&](const BadLine& line_of_file) {
    ++bad;
    EXPECT_TRUE(line_of_file.line.torn);
    EXPECT_FALSE(line_of_file.error);
  });
  PlacedEntry placed;
  EXPECT_FALSE(reader.next(placed));
  EXPECT_EQ(bad, 1U);
}

TEST_F(LedgerReaderTest, TablesPassBadLinesOver) {
  const Files files = {put("a.jsonl", line_of(1) + "garbage\n" + line_of(2) + "{")};
  const Table table = entries_table(files);
  EXPECT_EQ(table.rows(), 2U);
  EXPECT_EQ(table.columns()[1].text(1), "v2");
  EXPECT_TRUE(table.columns()[2].is_null(0));
}

TEST_F(LedgerReaderTest, WhatTheCheckThrowsEndsTheReading) {
  std::string text;
  for (std::uint64_t seq = 1; seq <= 20'000; ++seq) {
    text += line_of(seq);
  }
  const Files files = {put("a.jsonl", text)};
  std::uint64_t read = 0;
  int checks = 0;
  const auto check = [&] {
    if (++checks == 3) throw Cancelled();
  };
  EXPECT_THROW(for_each_entry(files, [&](const Batch::Item&, const Position&) { ++read; }, check), Cancelled);
  EXPECT_GT(read, 0U);
  EXPECT_LT(read, 20'000U);
}

TEST_F(LedgerReaderTest, EntriesTableHoldsEveryField) {
  Entry entry = test::vm_entry(Kind::kVmComputeStart, "v", 123'456'789);
  entry.labels = {{"a", "1"}};
  entry.uptime_ns = 7;
  const Files files = {put("a.jsonl", metering::to_json(entry) + '\n')};
  const Table table = entries_table(files);
  const auto column = [&](std::string_view name) -> const Column& {
    for (const Column& one : table.columns()) {
      if (one.name() == name) return one;
    }
    throw std::out_of_range(std::string(name));
  };
  EXPECT_EQ(column("kind").text(0), "vm.compute.start");
  EXPECT_EQ(column("cpu").integer(0), 2);
  EXPECT_EQ(column("emitted_at").integer(0), 123'456'789);
  EXPECT_EQ(column("labels").text(0), R"({"a":"1"})");
  EXPECT_EQ(column("uptime_ns").integer(0), 7);
  EXPECT_TRUE(column("seq").is_null(0));
  EXPECT_EQ(column("seq").null_count(), 1U);
  EXPECT_TRUE(column("ended_at").is_null(0));
}

// -------------------------------------------------------------------------------------------------- following

class LedgerFollowTest : public LedgerReaderTest {
 protected:
  void append(const fs::path& path, std::string_view text) {
    std::ofstream out(path, std::ios::binary | std::ios::app);
    out << text;
  }
  static std::vector<std::uint64_t> drain(Follower& follower) {
    std::vector<std::uint64_t> seqs;
    while (const auto entry = follower.poll()) {
      seqs.push_back(entry->seq.value_or(0));
    }
    return seqs;
  }
  using Seqs = std::vector<std::uint64_t>;
};

TEST_F(LedgerFollowTest, DeliversWhatIsAppendedFromNowOn) {
  const fs::path path = put("ledger.jsonl", line_of(1));
  Follower follower(Selection{{path.string()}});
  EXPECT_EQ(drain(follower), Seqs{});
  append(path, line_of(2) + line_of(3).substr(0, 20));
  EXPECT_EQ(drain(follower), Seqs{2}) << "a line without its end waits";
  append(path, line_of(3).substr(20));
  EXPECT_EQ(drain(follower), Seqs{3});
  EXPECT_EQ(drain(follower), Seqs{});
}

TEST_F(LedgerFollowTest, CanBeginAtTheBeginning) {
  const fs::path path = put("ledger.jsonl", line_of(1) + line_of(2));
  Follower follower(Selection{{path.string()}}, true);
  EXPECT_EQ(drain(follower), (Seqs{1, 2}));
}

TEST_F(LedgerFollowTest, WaitsForAFileThatIsNotThereYet) {
  const fs::path path = dir_ / "ledger.jsonl";
  Follower follower(Selection{{path.string()}});
  EXPECT_EQ(drain(follower), Seqs{});
  put("ledger.jsonl", line_of(1));
  EXPECT_EQ(drain(follower), Seqs{1});
}

TEST_F(LedgerFollowTest, ReadsARotatedFileToItsEndAndGoesOnInTheNewOne) {
  const fs::path path = put("ledger.jsonl", line_of(1));
  Follower follower(Selection{{path.string()}});
  append(path, line_of(2));
  fs::rename(path, dir_ / "ledger.1-2.jsonl");
  put("ledger.jsonl", line_of(3));
  EXPECT_EQ(drain(follower), (Seqs{2, 3}));
  append(path, line_of(4));
  EXPECT_EQ(drain(follower), Seqs{4});
}

TEST_F(LedgerFollowTest, ACopyOfWhatWasReadIsNotReadAgain) {
  const fs::path path = put("m/ledger.jsonl", line_of(1) + line_of(2));
  Follower follower(Selection{{path.parent_path().string()}});
  put("m/ledger.1-2.jsonl", line_of(1) + line_of(2));
  append(path, line_of(3));
  EXPECT_EQ(drain(follower), Seqs{3});
}

TEST_F(LedgerFollowTest, AnotherLedgerOfTheFolderHasSeqsOfItsOwn) {
  const fs::path path = put("m/one.jsonl", line_of(1) + line_of(2));
  Follower follower(Selection{{path.parent_path().string()}});
  put("m/two.jsonl", line_of(1));
  append(path, line_of(3));
  EXPECT_EQ(drain(follower), (Seqs{3, 1}));
}

TEST_F(LedgerFollowTest, WhatIsCutAndWrittenAgainComesOnce) {
  const fs::path path = put("ledger.jsonl", "");
  Follower follower(Selection{{path.string()}});
  append(path, line_of(1) + line_of(2));
  EXPECT_EQ(drain(follower), (Seqs{1, 2}));
  test::write_file(path, line_of(1));
  EXPECT_EQ(drain(follower), Seqs{});
  append(path, line_of(2) + line_of(3));
  EXPECT_EQ(drain(follower), Seqs{3});
}

TEST_F(LedgerFollowTest, ThrowsAtABadLineAndGoesOn) {
  const fs::path path = put("ledger.jsonl", "");
  Follower follower(Selection{{path.string()}});
  append(path, line_of(1) + "garbage\n" + line_of(2));
  EXPECT_EQ(follower.poll()->seq, 1U);
  EXPECT_THROW(follower.poll(), LedgerError);
  EXPECT_EQ(follower.poll()->seq, 2U);
}

TEST_F(LedgerFollowTest, KeepsUpWithAWriter) {
  const fs::path path = put("ledger.jsonl", "");
  Follower follower(Selection{{path.string()}});
  constexpr std::uint64_t kLines = 300;
  std::thread writer([&] {
    for (std::uint64_t seq = 1; seq <= kLines; ++seq) {
      append(path, line_of(seq));
    }
  });
  Seqs seqs;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (seqs.size() < kLines && std::chrono::steady_clock::now() < deadline) {
    for (const std::uint64_t seq : drain(follower)) {
      seqs.push_back(seq);
    }
  }
  writer.join();
  ASSERT_EQ(seqs.size(), kLines);
  for (std::uint64_t seq = 1; seq <= kLines; ++seq) {
    ASSERT_EQ(seqs[seq - 1], seq);
  }
}

}  // namespace
}  // namespace cocoon::ledger
