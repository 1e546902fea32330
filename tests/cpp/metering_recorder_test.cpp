#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "cocoon/error.h"
#include "cocoon/metering/recorder.h"

#include "metering_support.h"

namespace cocoon::metering {
namespace {

namespace fs = std::filesystem;
using test::vm_entry;

constexpr int kEmits = 200;

Entry numbered(std::uint64_t seq) {
  Entry entry = vm_entry(Kind::kVmComputeStart, "v", 1'000);
  entry.seq = seq;
  return entry;
}

std::vector<std::uint64_t> seqs_in(const fs::path& path) {
  std::vector<std::uint64_t> seqs;
  const std::string text = test::read_file(path);
  EXPECT_TRUE(text.empty() || text.back() == '\n');
  for (const std::string& line : test::lines_of(text)) {
    seqs.push_back(from_json(line).seq.value_or(0));
  }
  return seqs;
}

std::vector<std::uint64_t> up_to(std::uint64_t last) {
  std::vector<std::uint64_t> seqs;
  for (std::uint64_t seq = 1; seq <= last; ++seq) {
    seqs.push_back(seq);
  }
  return seqs;
}

// What the module logs while this lives.
class CapturedLog {
 public:
  CapturedLog() : logger_(std::make_shared<spdlog::logger>("cocoon.metering", sink_)) {
    spdlog::register_logger(logger_);
  }
  ~CapturedLog() { spdlog::drop("cocoon.metering"); }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;

  [[nodiscard]] std::size_t count(std::string_view word) const {
    const std::string text = text_.str();
    std::size_t found = 0;
    for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
      ++found;
    }
    return found;
  }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::sinks::ostream_sink_mt> sink_ = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
  std::shared_ptr<spdlog::logger> logger_;
};

class FileRecorderTest : public testing::Test {
 protected:
  test::TempDir dir_;
  fs::path path_ = dir_ / "metering/ledger.jsonl";
  CapturedLog log_;
};

TEST_F(FileRecorderTest, WritesAtOnceOneLinePerEntryModeOwnerOnly) {
  FileRecorder recorder(path_);
  EXPECT_FALSE(fs::exists(path_)) << "nothing is made before the first entry";
  const Entry entry = vm_entry(Kind::kVmStorageStart, "v1", 5);
  recorder.emit(entry);
  EXPECT_EQ(test::read_file(path_), to_json(entry) + '\n');
  recorder.emit(entry);
  EXPECT_EQ(test::lines_of(test::read_file(path_)).size(), 2U);
  struct stat status{};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(recorder.path(), path_);
}

TEST_F(FileRecorderTest, AppendsToWhatIsThere) {
  fs::create_directories(path_.parent_path());
  test::write_file(path_, to_json(numbered(1)) + '\n');
  FileRecorder recorder(path_);
  recorder.emit(numbered(2));
  EXPECT_EQ(seqs_in(path_), up_to(2));
}

TEST_F(FileRecorderTest, EndsATornLastLineInsteadOfGluingToIt) {
  fs::create_directories(path_.parent_path());
  test::write_file(path_, to_json(numbered(1)) + "\n{\"kind\":\"vm.comp");
  FileRecorder recorder(path_);
  recorder.emit(numbered(2));
  recorder.emit(numbered(3));
  const auto lines = test::lines_of(test::read_file(path_));
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[1], "{\"kind\":\"vm.comp");
  EXPECT_EQ(from_json(lines[2]).seq, 2U);
  EXPECT_EQ(from_json(lines[3]).seq, 3U);
}

TEST_F(FileRecorderTest, ConcurrentEmitsAreWholeLines) {
  FileRecorder recorder(path_);
  std::vector<std::thread> threads;
  for (std::uint64_t i = 1; i <= kEmits; ++i) {
    threads.emplace_back([&recorder, i] { recorder.emit(numbered(i)); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const auto seqs = seqs_in(path_);
  EXPECT_EQ(seqs.size(), std::size_t{kEmits});
  EXPECT_EQ(std::set<std::uint64_t>(seqs.begin(), seqs.end()).size(), std::size_t{kEmits});
}

TEST_F(FileRecorderTest, RecordersOfOneFileDoNotTearEachOthersLines) {
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      FileRecorder recorder(path_);
      for (std::uint64_t i = 1; i <= kEmits; ++i) {
        recorder.emit(numbered(t * kEmits + i));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const auto seqs = seqs_in(path_);
  EXPECT_EQ(seqs.size(), 4U * kEmits);
  EXPECT_EQ(std::set<std::uint64_t>(seqs.begin(), seqs.end()).size(), 4U * kEmits);
}

TEST_F(FileRecorderTest, KeepsLinesWhileAFolderIsInTheFilesPlace) {
  fs::create_directories(path_);
  FileRecorder recorder(path_);
  recorder.emit(numbered(1));
  recorder.emit(numbered(2));
  EXPECT_EQ(log_.count("are kept in memory"), 1U) << "one warning, not one per entry";
  try {
    recorder.flush();
    ADD_FAILURE() << "a folder was flushed";
  } catch (const LedgerError& error) {
    EXPECT_EQ(error.path, path_.string());
    EXPECT_NE(std::string(error.what()).find(path_.string()), std::string::npos);
  }
  fs::remove(path_);
  recorder.emit(numbered(3));
  recorder.emit(numbered(4));
  EXPECT_EQ(seqs_in(path_), up_to(4));
  EXPECT_NO_THROW(recorder.flush());
  EXPECT_EQ(seqs_in(path_), up_to(4)) << "once";
}

TEST_F(FileRecorderTest, KeepsLinesWhileAFileIsInItsFoldersPlace) {
  test::write_file(path_.parent_path(), "in the way");
  FileRecorder recorder(path_);
  recorder.emit(numbered(1));
  EXPECT_THROW(recorder.close(), LedgerError);
  fs::remove(path_.parent_path());
  EXPECT_NO_THROW(recorder.flush());
  EXPECT_EQ(seqs_in(path_), up_to(1));
}

TEST_F(FileRecorderTest, KeepsLinesWhileTheFileMayNotBeWritten) {
  fs::create_directories(path_.parent_path());
  test::write_file(path_, "");
  const bool root = ::geteuid() == 0;
  FileRecorder recorder(path_);
  // Root may write everything, so it becomes nobody for a moment; others take the right from themselves.
  if (root) {
    ASSERT_EQ(::seteuid(65'534), 0);
  } else {
    fs::permissions(path_, fs::perms::none);
  }
  recorder.emit(numbered(1));
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  } else {
    fs::permissions(path_, fs::perms::owner_read | fs::perms::owner_write);
  }
  EXPECT_EQ(log_.count("Permission denied"), 1U);
  recorder.emit(numbered(2));
  EXPECT_EQ(seqs_in(path_), up_to(2));
}

// A file size limit stands for a full disk: write(2) takes a part of the line, then fails.
TEST_F(FileRecorderTest, AWriteThatFailsHalfwayLeavesNoHalfLine) {
  FileRecorder recorder(path_);
  recorder.emit(numbered(1));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{fs::file_size(path_) + 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  recorder.emit(numbered(2));
  recorder.emit(numbered(3));
  const auto while_full = seqs_in(path_);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(while_full, up_to(1));
  recorder.emit(numbered(4));
  EXPECT_EQ(seqs_in(path_), up_to(4));
  EXPECT_EQ(log_.count("are kept in memory"), 1U);
}

TEST_F(FileRecorderTest, WarnsAgainAboutANewFault) {
  FileRecorder recorder(path_);
  for (std::size_t round = 1; round <= 2; ++round) {
    recorder.close();
    fs::remove_all(path_);
    fs::create_directories(path_);
    recorder.emit(numbered(1));
    recorder.emit(numbered(2));
    EXPECT_EQ(log_.count("are kept in memory"), round);
    fs::remove(path_);
    recorder.emit(numbered(3));
    EXPECT_EQ(seqs_in(path_), up_to(3));
  }
}

TEST_F(FileRecorderTest, SaysHowManyEntriesAreLostWithIt) {
  fs::create_directories(path_);
  {
    FileRecorder recorder(path_);
    recorder.emit(numbered(1));
    recorder.emit(numbered(2));
  }
  EXPECT_EQ(log_.count("2 ledger entries are lost"), 1U);
}

TEST_F(FileRecorderTest, WritesAfterCloseAndMovesToTheFileThatThePathNamesNow) {
  FileRecorder recorder(path_);
  recorder.emit(numbered(1));
  recorder.close();
  recorder.emit(numbered(2));
  EXPECT_EQ(seqs_in(path_), up_to(2));
  fs::rename(path_, dir_ / "rotated.jsonl");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::uint64_t seq = 3;
  while (!fs::exists(path_) && std::chrono::steady_clock::now() < deadline) {
    recorder.emit(numbered(seq++));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  auto seqs = seqs_in(dir_ / "rotated.jsonl");
  const auto rest = seqs_in(path_);
  seqs.insert(seqs.end(), rest.begin(), rest.end());
  EXPECT_EQ(seqs, up_to(seq - 1)) << "every line in one of the two files";
}

TEST_F(FileRecorderTest, RefusesAnInvalidEntryAndKeepsNothingOfIt) {
  FileRecorder recorder(path_);
  EXPECT_THROW(recorder.emit(Entry{}), InvalidArgument);
  recorder.emit(numbered(1));
  EXPECT_EQ(seqs_in(path_), up_to(1));
}

TEST_F(FileRecorderTest, ANodesOwnAppendsAndEmitShareTheFile) {
  FileRecorder recorder(path_);
  recorder.emit(numbered(1));
  recorder.file()->refresh();
  recorder.file()->append(to_json(numbered(2)) + '\n', 2);
  recorder.emit(numbered(3));
  recorder.flush();
  EXPECT_EQ(seqs_in(path_), up_to(3));
  EXPECT_FALSE(recorder.calls_out());
}

TEST(CaptureRecorderTest, KeepsOrderAndGivesCopies) {
  CaptureRecorder recorder;
  recorder.emit(numbered(1));
  recorder.emit(numbered(2));
  auto copy = recorder.entries();
  ASSERT_EQ(copy.size(), 2U);
  EXPECT_EQ(copy[1].seq, 2U);
  copy.clear();
  EXPECT_EQ(recorder.entries().size(), 2U);
  recorder.reset();
  EXPECT_TRUE(recorder.entries().empty());
  EXPECT_EQ(recorder.file(), nullptr);
}

TEST(CaptureRecorderTest, TakesConcurrentEmits) {
  CaptureRecorder recorder;
  std::vector<std::thread> threads;
  for (std::uint64_t i = 1; i <= kEmits; ++i) {
    threads.emplace_back([&recorder, i] { recorder.emit(numbered(i)); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(recorder.entries().size(), std::size_t{kEmits});
}

TEST(NopRecorderTest, TakesAnythingAndHasNoFile) {
  NopRecorder recorder;
  recorder.emit(Entry{});
  EXPECT_EQ(recorder.file(), nullptr);
}

}  // namespace
}  // namespace cocoon::metering
