// The ledger file: finding its last seq from the tail, ending or cutting a torn line, appending, being replaced.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/metering/ledger_file.h"

#include "metering_support.h"

namespace cocoon::metering {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::write_file;

std::string line(std::uint64_t seq, std::size_t padding = 0) {
  return R"({"kind":"vm.compute.start","vm_id":"x)" + std::string(padding, 'x') + R"(","shape":{},"seq":)" +
         std::to_string(seq) + R"(,"interval":1})" + "\n";
}

std::string lines(std::uint64_t first, std::uint64_t last) {
  std::string text;
  for (auto seq = first; seq <= last; ++seq) text += line(seq);
  return text;
}

class LedgerFileTest : public testing::Test {
 protected:
  static bool cut_torn(std::string_view) { return false; }
  static bool keep_torn(std::string_view) { return true; }
  // The last seq of a file with this text, which is then in `path`.
  std::uint64_t last_seq_of(std::string_view text) {
    write_file(path, text);
    LedgerFile file(path);
    file.refresh();
    return file.last_seq(cut_torn);
  }
  // "offset:seq" of each line that is visited.
  std::vector<std::string> visited(std::string_view text, std::uint64_t through) {
    write_file(path, text);
    LedgerFile file(path);
    file.refresh();
    std::vector<std::string> all;
    file.for_each_after(through, [&](std::string_view found, std::uint64_t offset) {
      EXPECT_EQ(text.substr(offset, found.size()), found);
      EXPECT_EQ(text.at(offset + found.size()), '\n');
      all.push_back(std::to_string(offset) + ":" + std::to_string(line_seq(found)));
      return true;
    });
    return all;
  }

  test::TempDir dir;
  fs::path path = dir / "ledger.jsonl";
};

TEST(LineSeqTest, ReadsItFromALine) {
  EXPECT_EQ(line_seq(R"({"kind":"x","seq":17,"interval":3})"), 17U);
  EXPECT_EQ(line_seq(R"({"seq":18446744073709551615})"), 18446744073709551615U);
  EXPECT_EQ(line_seq(" { \"seq\" : 5 , \"a\": 1 } \r"), 5U);
  EXPECT_EQ(line_seq(R"({"vm_id":"seq","seq":4})"), 4U);
  EXPECT_EQ(line_seq(R"({"labels":{"seq":"9"},"seq":4})"), 4U);
  EXPECT_EQ(line_seq(R"({"vm_id":"\"seq\":9,","seq":4})"), 4U);
}

TEST(LineSeqTest, IsZeroWithoutOne) {
  for (const std::string_view text :
       {R"({"kind":"x"})", R"({"labels":{"seq":"9"}})", R"({"vm_id":"\"seq\":9,"})", R"("seq":9)", R"({"seq":9)",
        R"("seq":9})", R"({"seq":})", R"({"seq":-1})", R"({"seq":1.5})", R"({"seq":18446744073709551616})", "", "{",
        "}", "{}", R"({"seq")", R"({"seq":"9"})", R"({"seq":null})"})
    EXPECT_EQ(line_seq(text), 0U) << text;
  EXPECT_EQ(line_seq(std::string(40, '\0') + R"("seq":9})"), 0U);
}

TEST_F(LedgerFileTest, IsMadePrivateWithItsFolders) {
  const auto deep = dir / "a" / "b" / "ledger.jsonl";
  LedgerFile file(deep);
  EXPECT_FALSE(fs::exists(deep));
  EXPECT_TRUE(file.refresh());
  EXPECT_EQ(fs::status(deep).permissions(), fs::perms(0600));
  EXPECT_EQ(fs::status(deep.parent_path()).permissions(), fs::perms(0750));
  EXPECT_FALSE(file.refresh());
  EXPECT_EQ(file.last_seq(cut_torn), 0U);
}

TEST_F(LedgerFileTest, FindsTheLastSeq) {
  EXPECT_EQ(last_seq_of(""), 0U);
  EXPECT_EQ(last_seq_of("\n"), 0U);
  EXPECT_EQ(last_seq_of(lines(1, 3)), 3U);
  EXPECT_EQ(last_seq_of(lines(1, 3) + "garbage\n\n{\"kind\":\"x\"}\n"), 3U);
  EXPECT_EQ(last_seq_of(lines(1, 3) + line(2)), 2U) << "the highest-placed one";
  EXPECT_EQ(last_seq_of("garbage\n{\"kind\":\"x\"}\n"), 0U);
}

TEST_F(LedgerFileTest, FindsTheLastSeqBehindMuchElse) {
  // Lines and stretches around the sizes in which the tail is read.
  for (const std::size_t padding :
       {std::size_t{1}, std::size_t{8000}, std::size_t{8192}, std::size_t{100'000}, std::size_t{3'000'000}}) {
    EXPECT_EQ(last_seq_of(line(1) + line(2, padding)), 2U) << padding;
    EXPECT_EQ(last_seq_of(line(1) + std::string(padding, 'x') + "\n"), 1U) << padding;
    EXPECT_EQ(last_seq_of(std::string(padding, 'x') + "\n"), 0U) << padding;
  }
  std::string many;
  for (int i = 0; i < 50'000; ++i) many += "{\"kind\":\"x\"}\n";
  EXPECT_EQ(last_seq_of(line(7) + many), 7U);
}

TEST_F(LedgerFileTest, CutsATornLineAtEveryLength) {
  const auto whole = lines(1, 3);
  const auto two = lines(1, 2);
  for (auto size = two.size(); size <= whole.size(); ++size) {
    const bool torn = size < whole.size();
    EXPECT_EQ(last_seq_of(whole.substr(0, size)), torn ? 2U : 3U);
    EXPECT_EQ(read_file(path), torn ? two : whole);
  }
  EXPECT_EQ(last_seq_of(two + std::string(300'000, '\0')), 2U);
  EXPECT_EQ(read_file(path), two);
  EXPECT_EQ(last_seq_of("{\"kind\""), 0U);
  EXPECT_EQ(read_file(path), "");
}

TEST_F(LedgerFileTest, EndsATornLineThatIsToBeKept) {
  const auto whole = lines(1, 3);
  write_file(path, whole.substr(0, whole.size() - 1));
  LedgerFile file(path);
  file.refresh();
  std::string seen;
  EXPECT_EQ(file.last_seq([&](std::string_view torn) {
    seen = torn;
    return true;
  }),
            3U);
  EXPECT_EQ(seen + "\n", line(3));
  EXPECT_EQ(read_file(path), whole);
  EXPECT_FALSE(file.refresh());
  file.append(line(4), 4);
  EXPECT_EQ(read_file(path), lines(1, 4));
}

TEST_F(LedgerFileTest, VisitsTheLinesAfterASeq) {
  using Lines = std::vector<std::string>;
  const auto at = [](std::uint64_t seq) {
    return std::to_string(lines(1, seq - 1).size()) + ":" + std::to_string(seq);
  };
  EXPECT_EQ(visited(lines(1, 4), 2), (Lines{at(3), at(4)}));
  EXPECT_EQ(visited(lines(1, 4), 4), Lines{});
  EXPECT_EQ(visited(lines(1, 4), 9), Lines{});
  EXPECT_EQ(visited(lines(1, 3), 0), (Lines{at(1), at(2), at(3)}));
  EXPECT_EQ(visited("", 0), Lines{});
  // From the last line that is old enough, garbage and all.
  const auto three = lines(1, 3);
  EXPECT_EQ(visited(three + "x\n\n" + line(4), 2),
            (Lines{at(3), std::to_string(three.size()) + ":0", std::to_string(three.size() + 2) + ":0",
                   std::to_string(three.size() + 3) + ":4"}));
  // Without 2 and 3: from the beginning.
  EXPECT_EQ(visited(lines(5, 6), 2).size(), 2U);
  // An unterminated line is nobody's.
  EXPECT_EQ(visited(lines(1, 3) + "{\"seq\":4", 2), Lines{at(3)});
}

TEST_F(LedgerFileTest, VisitsManyLinesAndStopsWhenTold) {
  const auto text = lines(1, 40'000);
  EXPECT_EQ(visited(text, 3).size(), 39'997U);
  LedgerFile file(path);
  file.refresh();
  int seen = 0;
  file.for_each_after(0, [&](std::string_view, std::uint64_t) { return ++seen < 5; });
  EXPECT_EQ(seen, 5);
}

TEST_F(LedgerFileTest, KnowsWhatItLeft) {
  LedgerFile file(path);
  file.refresh();
  file.append(lines(1, 3), 3);
  EXPECT_FALSE(file.refresh());
  EXPECT_EQ(file.last_seq(cut_torn), 3U);
  file.append("{\"kind\":\"x\"}\n", 0);
  EXPECT_EQ(file.last_seq(cut_torn), 3U);

  write_file(dir / "more", "");
  {
    LedgerFile other(path);
    other.refresh();
    other.append(line(4), 4);
  }
  EXPECT_TRUE(file.refresh());
  EXPECT_TRUE(file.grew());
  EXPECT_EQ(file.last_seq(cut_torn), 4U);

  fs::resize_file(path, lines(1, 2).size());
  EXPECT_TRUE(file.refresh());
  EXPECT_FALSE(file.grew());
  EXPECT_EQ(file.last_seq(cut_torn), 2U);

  fs::rename(path, dir / "rotated");
  EXPECT_TRUE(file.refresh());
  EXPECT_FALSE(file.grew());
  EXPECT_EQ(file.last_seq(cut_torn), 0U);
  file.append(line(5), 5);
  EXPECT_EQ(read_file(path), line(5));
  EXPECT_EQ(read_file(dir / "rotated"), lines(1, 2));

  file.cut(0);
  EXPECT_EQ(file.last_seq(cut_torn), 0U);
  EXPECT_FALSE(file.refresh());
  file.append(line(6), 6);
  file.sync();
  file.close();
  EXPECT_TRUE(file.refresh());
  EXPECT_EQ(file.last_seq(cut_torn), 6U);
}

template <typename Action>
std::string ledger_error(const Action& action) {
  try {
    action();
  } catch (const LedgerError& error) {
    return std::to_string(error.code) + " " + error.path + " " + error.what();
  }
  return "";
}

TEST_F(LedgerFileTest, SaysWhatItCannotOpen) {
  fs::create_directory(path);
  LedgerFile file(path);
  const auto opened = [&] { return ledger_error([&] { file.refresh(); }); };
  EXPECT_EQ(opened(),
            std::to_string(EISDIR) + " " + path.string() + " open ledger " + path.string() + ": Is a directory");
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_NE(opened().find("not a regular file"), std::string::npos);
  fs::remove(path);
  LedgerFile below(path / "x");
  write_file(path, "");
  EXPECT_NE(ledger_error([&] { below.refresh(); }).find("Not a directory"), std::string::npos);
  EXPECT_EQ(opened(), "");
}

TEST_F(LedgerFileTest, CutsBackAPartialWrite) {
  write_file(path, lines(1, 3));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlim_t size = lines(1, 3).size() + 100;
    const rlimit limit{.rlim_cur = size, .rlim_max = size};
    LedgerFile file(path);
    bool good = ::setrlimit(RLIMIT_FSIZE, &limit) == 0 && file.refresh();
    const auto error = ledger_error([&] { file.append(lines(4, 9), 9); });
    good = good && error.find("append to ledger " + path.string() + ": File too large") != std::string::npos;
    good = good && file.refresh() && file.last_seq(cut_torn) == 3;
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(read_file(path), lines(1, 3));
}

}  // namespace
}  // namespace cocoon::metering
