// Whole small files, folders, and copies of sparse ones.

#include <sys/stat.h>

#include <atomic>

#include <gtest/gtest.h>

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

struct stat stat_of(const Path& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) throw std::runtime_error("lstat " + path.string());
  return status;
}

unsigned mode_of(const Path& path) { return stat_of(path).st_mode & 07777U; }

std::vector<std::string> names_in(const Path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

template <typename Call>
std::string store_error_of(const Call& call) {
  try {
    call();
    return "none";
  } catch (const StoreError& error) {
    return error.what();
  }
}

TEST(FileTest, TextIsFoundWholeOrNotAtAll) {
  const TempDir dir;
  EXPECT_FALSE(find_text(dir / "absent", 10));
  put(dir / "a", "0123456789");
  EXPECT_EQ(find_text(dir / "a", 10), "0123456789");
  EXPECT_EQ(store_error_of([&] { find_text(dir / "a", 9); }), "read " + (dir / "a").string() + ": longer than 9 bytes");
  put(dir / "empty", "");
  EXPECT_EQ(find_text(dir / "empty", 0), "");
  const std::string large(1'000'000, 'x');
  put(dir / "large", large);
  EXPECT_EQ(find_text(dir / "large", large.size()), large);
  EXPECT_EQ(store_error_of([&] { find_text(dir.path(), 9); }), "read " + dir.path().string() + ": Is a directory");
  EXPECT_EQ(store_error_of([&] { find_text(dir / "a/b", 9); }), "open " + (dir / "a/b").string() + ": Not a directory");
}

TEST(FileTest, TailIsOfWholeLines) {
  const TempDir dir;
  const Path log = dir / "log";
  EXPECT_EQ(tail_text(log, 5), "");
  put(log, "");
  EXPECT_EQ(tail_text(log, 5), "");
  put(log, "one\ntwo\nthree\n");
  EXPECT_EQ(tail_text(log, 5), "one\ntwo\nthree");
  EXPECT_EQ(tail_text(log, 3), "one\ntwo\nthree");
  EXPECT_EQ(tail_text(log, 2), "two\nthree");
  EXPECT_EQ(tail_text(log, 1), "three");
  EXPECT_EQ(tail_text(log, 0), "");
  EXPECT_EQ(tail_text(log, 5, 14), "one\ntwo\nthree");
  EXPECT_EQ(tail_text(log, 5, 13), "two\nthree") << "half a line is dropped";
  EXPECT_EQ(tail_text(log, 5, 10), "two\nthree") << "the cut is between two lines";
  EXPECT_EQ(tail_text(log, 5, 9), "three");
  put(log, "one\ntwo");
  EXPECT_EQ(tail_text(log, 1), "two") << "a last line may be unfinished";
  put(log, "\n\n\n");
  EXPECT_EQ(tail_text(log, 2), "\n");
  put(log, "begin\n" + std::string(100, 'x') + "end\n");
  EXPECT_EQ(tail_text(log, 5, 6), "xxend") << "the end of a line that is too long";
}

TEST(FileTest, AtomicWriteReplacesAndSetsTheMode) {
  const TempDir dir;
  const mode_t old_mask = ::umask(0777);
  write_text_atomic(dir / "a", "first");
  write_text_atomic(dir / "b", "open", 0644);
  ::umask(old_mask);
  EXPECT_EQ(slurp(dir / "a"), "first");
  EXPECT_EQ(mode_of(dir / "a"), 0600U);
  EXPECT_EQ(mode_of(dir / "b"), 0644U);
  write_text_atomic(dir / "a", "");
  EXPECT_EQ(slurp(dir / "a"), "");
  EXPECT_EQ(names_in(dir.path()), (std::vector<std::string>{"a", "b"}));
}

TEST(FileTest, AtomicWriteReplacesALinkNotItsTarget) {
  const TempDir dir;
  put(dir / "target", "kept");
  std::filesystem::create_symlink(dir / "target", dir / "link");
  write_text_atomic(dir / "link", "new");
  EXPECT_EQ(slurp(dir / "target"), "kept");
  EXPECT_FALSE(std::filesystem::is_symlink(dir / "link"));
}

TEST(FileTest, AtomicWriteThatFailsLeavesNothing) {
  const TempDir dir;
  make_private_dirs(dir / "folder/inner");
  EXPECT_EQ(store_error_of([&] { write_text_atomic(dir / "folder", "x"); }),
            "replace " + (dir / "folder").string() + ": Is a directory");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"folder"});
  EXPECT_EQ(store_error_of([&] { write_text_atomic(dir / "none/a", "x"); }),
            "create a temporary file for " + (dir / "none/a").string() + ": No such file or directory");
}

TEST(FileTest, ReadersOfAnAtomicFileSeeOldOrNew) {
  const TempDir dir;
  const std::vector<std::string> texts = {std::string(3000, 'a'), std::string(9000, 'b')};
  write_text_atomic(dir / "f", texts[0]);
  std::atomic<bool> stop{false};
  std::atomic<int> torn{0};
  std::thread reader([&] {
    while (!stop) {
      const auto text = find_text(dir / "f", 10'000);
      if (!text || (*text != texts[0] && *text != texts[1])) ++torn;
    }
  });
  std::vector<std::thread> writers;
  writers.reserve(2);
  for (std::size_t w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      for (int i = 0; i < 50; ++i) write_text_atomic(dir / "f", texts[w]);
    });
  }
  for (std::thread& writer : writers) writer.join();
  stop = true;
  reader.join();
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});
}

TEST(FileTest, PrivateFoldersAreMadeAndOldOnesLeftAlone) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "old");
  std::filesystem::permissions(dir / "old", std::filesystem::perms(0755));
  make_private_dirs(dir / "old/a/b/");
  make_private_dirs(dir / "old/a/b");
  EXPECT_EQ(mode_of(dir / "old"), 0755U);
  EXPECT_EQ(mode_of(dir / "old/a"), 0700U);
  EXPECT_EQ(mode_of(dir / "old/a/b"), 0700U);
  put(dir / "file", "");
  EXPECT_EQ(store_error_of([&] { make_private_dirs(dir / "file"); }),
            "make folder " + (dir / "file").string() + ": Not a directory");
  EXPECT_EQ(store_error_of([&] { make_private_dirs(dir / "file/a"); }),
            "make folder " + (dir / "file/a").string() + ": Not a directory");
  std::filesystem::create_symlink("nowhere", dir / "link");
  for (const char* name : {"link", "link/"}) {
    EXPECT_EQ(store_error_of([&] { make_private_dirs(dir / name); }),
              "make folder " + (dir / "link").string() + ": File exists");
  }
}

TEST(FileTest, PrivateFolderThatIsRemovedMeanwhileIsMadeAgain) {
  const TempDir dir;
  const Path folder = dir / "folder";
  std::atomic<bool> stop{false};
  std::thread remover([&] {
    while (!stop) ::rmdir(folder.c_str());
  });
  for (int i = 0; i < 5000; ++i) EXPECT_NO_THROW(make_private_dirs(folder));
  stop = true;
  remover.join();
}

TEST(FileTest, PrivateFoldersMadeByManyAtOnce) {
  const TempDir dir;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        try {
          make_private_dirs(dir / (std::to_string(i) + "/a/b"));
        } catch (const StoreError&) {
          ++failures;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST(FileTest, RemoveTreeFollowsNoLink) {
  const TempDir dir;
  make_private_dirs(dir / "outside/kept");
  put(dir / "outside/file", "kept");
  make_private_dirs(dir / "tree/a/b/c");
  put(dir / "tree/a/file", "x");
  std::filesystem::create_symlink(dir / "outside", dir / "tree/a/link");
  std::filesystem::create_symlink("nowhere", dir / "tree/dangling");
  ASSERT_EQ(::mkfifo((dir / "tree/fifo").c_str(), 0600), 0);
  remove_tree(dir / "tree/");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"outside"});
  EXPECT_EQ(names_in(dir / "outside"), (std::vector<std::string>{"file", "kept"}));

  std::filesystem::create_symlink(dir / "outside", dir / "link");
  remove_tree(dir / "link/");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"outside"});
  EXPECT_EQ(slurp(dir / "outside/file"), "kept");
}

TEST(FileTest, RemoveTreeTakesFilesAndAbsence) {
  const TempDir dir;
  put(dir / "file", "");
  remove_tree(dir / "file");
  EXPECT_TRUE(names_in(dir.path()).empty());
  EXPECT_NO_THROW(remove_tree(dir / "absent"));
  EXPECT_NO_THROW(remove_tree(dir / "absent/deeper"));
}

TEST(FileTest, RemoveTreeWhileOthersRemoveIt) {
  const TempDir dir;
  for (int i = 0; i < 300; ++i) make_private_dirs(dir / ("tree/" + std::to_string(i % 10) + "/" + std::to_string(i)));
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  threads.reserve(3);
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      try {
        remove_tree(dir / "tree");
      } catch (const StoreError&) {
        ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(FileTest, RemoveFileTakesAbsenceButNoFolder) {
  const TempDir dir;
  put(dir / "a", "");
  remove_file(dir / "a");
  EXPECT_NO_THROW(remove_file(dir / "a"));
  EXPECT_EQ(store_error_of([&] { remove_file(dir.path()); }), "remove " + dir.path().string() + ": Is a directory");
}

TEST(FileTest, RemoveFilesTakesThoseThatAreThere) {
  const TempDir dir;
  for (const char* name : {"socket", "fifo", "kept"}) put(dir / name, "");
  std::filesystem::create_symlink(dir / "kept", dir / "link");
  remove_files(dir.path(), {"fifo", "absent", "link", "socket"});
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"kept"});
  EXPECT_NO_THROW(remove_files(dir / "absent", {"socket"})) << "a folder that is not there has none of them";
  make_private_dirs(dir / "folder");
  EXPECT_EQ(store_error_of([&] { remove_files(dir.path(), {"folder"}); }),
            "remove " + (dir / "folder").string() + ": Is a directory");
  EXPECT_EQ(store_error_of([&] { remove_files(dir / "kept", {"x"}); }),
            "open folder " + (dir / "kept").string() + ": Not a directory");
}

TEST(FileTest, SparseFileHoldsNothing) {
  const TempDir dir;
  make_sparse_file(dir / "disk", std::int64_t{3} << 30);
  EXPECT_EQ(stat_of(dir / "disk").st_size, std::int64_t{3} << 30);
  EXPECT_EQ(stat_of(dir / "disk").st_blocks, 0);
  EXPECT_EQ(mode_of(dir / "disk"), 0600U);
  EXPECT_EQ(store_error_of([&] { make_sparse_file(dir / "disk", 1); }),
            "create " + (dir / "disk").string() + ": File exists");
  EXPECT_NE(store_error_of([&] { make_sparse_file(dir / "negative", -1); }), "none");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"disk"});
}

// Data at `at`, holes before and after.
void put_at(const Path& path, off_t at, const std::string& text) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (::pwrite(fd.get(), text.data(), text.size(), at) != static_cast<ssize_t>(text.size())) {
    throw std::runtime_error("pwrite");
  }
}

constexpr off_t kMiB = 1 << 20;

void expect_sparse_copy(const Path& from, const Path& to) {
  make_sparse_file(from, 40 * kMiB);
  put_at(from, 0, "first");
  put_at(from, 8 * kMiB, std::string(6 * kMiB, 'm'));
  put_at(from, 20 * kMiB + 123, "odd");
  Cancel never;
  copy_file(from, to, never);
  EXPECT_EQ(stat_of(to).st_size, 40 * kMiB);
  EXPECT_EQ(mode_of(to), 0600U);
  EXPECT_LT(stat_of(to).st_blocks * 512, 8 * kMiB) << "holes are kept";
  EXPECT_TRUE(slurp(from) == slurp(to));
}

TEST(CopyTest, KeepsDataHolesAndSize) {
  const TempDir dir;
  expect_sparse_copy(dir / "from", dir / "to");
}

TEST(CopyTest, WorksBetweenFileSystems) {
  const TempDir dir;
  const Path other = "/dev/shm";
  if (::access(other.c_str(), W_OK) != 0 || stat_of(other).st_dev == stat_of(dir.path()).st_dev) {
    GTEST_SKIP() << "no second file system to write to";
  }
  std::string name = other / "cocoon-system-test-XXXXXX";
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  expect_sparse_copy(dir / "from", Path(name) / "to");
  Cancel never;
  copy_file(Path(name) / "to", dir / "back", never);
  EXPECT_TRUE(slurp(dir / "from") == slurp(dir / "back"));
  std::filesystem::remove_all(name);
}

TEST(CopyTest, OfEveryShape) {
  const TempDir dir;
  Cancel never;
  put(dir / "empty", "");
  copy_file(dir / "empty", dir / "empty2", never);
  EXPECT_EQ(stat_of(dir / "empty2").st_size, 0);

  make_sparse_file(dir / "hole", 5 * kMiB + 1);
  copy_file(dir / "hole", dir / "hole2", never);
  EXPECT_EQ(stat_of(dir / "hole2").st_size, 5 * kMiB + 1);
  EXPECT_EQ(stat_of(dir / "hole2").st_blocks, 0);

  const std::string full(static_cast<std::size_t>(9 * kMiB + 7), 'f');
  put(dir / "full", full);
  copy_file(dir / "full", dir / "full2", never);
  EXPECT_TRUE(slurp(dir / "full2") == full);
}

TEST(CopyTest, NeverTouchesAnExistingFile) {
  const TempDir dir;
  put(dir / "a", "from");
  put(dir / "b", "kept");
  Cancel never;
  const std::string refused = "create " + (dir / "b").string() + ": File exists";
  EXPECT_EQ(store_error_of([&] { copy_file(dir / "a", dir / "b", never); }), refused);
  EXPECT_EQ(slurp(dir / "b"), "kept");
  EXPECT_NE(store_error_of([&] { copy_file(dir / "a", dir / "a", never); }), "none");
  EXPECT_EQ(slurp(dir / "a"), "from");
}

TEST(CopyTest, FailureLeavesNoNewFile) {
  const TempDir dir;
  Cancel never;
  EXPECT_EQ(store_error_of([&] { copy_file(dir / "absent", dir / "to", never); }),
            "open " + (dir / "absent").string() + ": No such file or directory");
  EXPECT_EQ(store_error_of([&] { copy_file(dir.path(), dir / "to", never); }),
            "copy " + dir.path().string() + ": not a regular file");
  ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_NE(store_error_of([&] { copy_file(dir / "fifo", dir / "to", never); }), "none");
  EXPECT_FALSE(std::filesystem::exists(dir / "to"));
}

TEST(CopyTest, CancelMidwayRemovesTheNewFile) {
  const TempDir dir;
  put(dir / "from", std::string(static_cast<std::size_t>(64 * kMiB), 'x'));
  // Asks the first time after a slice: the copy is under way by then. A disk that is faster, or can reflink, finishes.
  Cancel cancel([&] {
    if (std::filesystem::exists(dir / "to")) throw Cancelled();
  });
  bool cancelled = false;
  try {
    copy_file(dir / "from", dir / "to", cancel);
  } catch (const Cancelled&) {
    cancelled = true;
  }
  EXPECT_EQ(std::filesystem::exists(dir / "to"), !cancelled);

  Cancel requested;
  requested.request();
  EXPECT_THROW(copy_file(dir / "from", dir / "second", requested), Cancelled);
  EXPECT_FALSE(std::filesystem::exists(dir / "second"));
}

}  // namespace
}  // namespace cocoon::system
