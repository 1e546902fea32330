#include <sys/stat.h>

#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/system/archive.h"
#include "cocoon/system/sparse_records.h"

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using testing::put;
using testing::slurp;
using testing::TempDir;

class StringSink final : public ByteSink {
 public:
  void write(std::string_view bytes) override { text += bytes; }
  std::string text;
};

// In blocks of `block` bytes, so that headers and data cross borders.
class StringSource final : public ByteSource {
 public:
  explicit StringSource(std::string text, std::size_t block = 1 << 20) : text_(std::move(text)), block_(block) {}
  std::string_view read() override {
    // A copy of its own each time: who looks at an old one is found out by the address sanitizer.
    current_ = std::make_unique<std::string>(text_.substr(at_, block_));
    at_ += current_->size();
    return *current_;
  }

 private:
  std::string text_;
  std::size_t block_;
  std::size_t at_ = 0;
  std::unique_ptr<std::string> current_;
};

std::string pack(const TempDir& dir, const std::vector<std::string>& names, Compression compression,
                 SparseRecords records = SparseRecords::kGnu) {
  StringSink sink;
  const auto compressor = make_compressor(compression, sink);
  ArchiveWriter writer(*compressor, records);
  Cancel never;
  for (const auto& name : names) writer.add_file(name, dir / name, never, {});
  writer.finish();
  compressor->finish();
  return sink.text;
}

std::vector<std::string> unpack(const std::string& archive, const Path& folder, const ArchiveLimits& limits = {},
                                std::size_t block = 1 << 20) {
  StringSource source(archive, block);
  ArchiveReader reader(source, "x.tar", limits);
  std::vector<std::string> names;
  Cancel never;
  while (reader.next()) {
    names.push_back(reader.name());
    reader.extract_to(folder, never);
  }
  return names;
}

std::string refusal(const std::string& archive, const ArchiveLimits& limits = {}) {
  try {
    StringSource source(archive);
    ArchiveReader reader(source, "x.tar", limits);
    while (reader.next()) reader.text(16 << 20);
  } catch (const CorruptSnapshot& error) {
    EXPECT_EQ(error.path, "x.tar");
    return error.what();
  }
  return "";
}

std::int64_t allocated(const Path& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? status.st_blocks * 512 : -1;
}

void make_sparse(const Path& path, std::int64_t size, const std::vector<std::pair<std::int64_t, std::string>>& data) {
  make_sparse_file(path, size);
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  for (const auto& [offset, bytes] : data)
    ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
}

// NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c): our own words, and a shell is what a user has.
int run(const std::string& command) { return std::system(command.c_str()); }

class ArchiveTest : public ::testing::Test {
 protected:
  ArchiveTest() {
    put(dir / "plain", "hello");
    put(dir / "empty", "");
    make_sparse(dir / "sparse", 8 << 20, {{4096, std::string(5000, 'a')}, {4 << 20, std::string(100'000, 'b')}});
    make_sparse(dir / "hole", 3 << 20, {});
    make_sparse(dir / "begins", 1 << 20, {{0, "x"}});
    make_sparse(dir / "ends", (1 << 20) + 7, {{1 << 20, "1234567"}});
  }
  void expect_same(const Path& folder) const {
    for (const auto& name : names) {
      EXPECT_EQ(slurp(folder / name), slurp(dir / name)) << name;
      EXPECT_LE(allocated(folder / name), allocated(dir / name) + 8192) << name;
    }
  }
  TempDir dir;
  TempDir out;
  std::vector<std::string> names{"plain", "empty", "sparse", "hole", "begins", "ends"};
};

TEST_F(ArchiveTest, ComesBackWithItsHolesWhateverTheCompressionRecordsAndBlocks) {
  for (const auto compression : {Compression::kNone, Compression::kGzip, Compression::kZstd})
    for (const auto records : {SparseRecords::kGnu, SparseRecords::kCocoon})
      for (const std::size_t block : {1U, 511U, 4096U, 1U << 20U}) {
        const auto archive = pack(dir, names, compression, records);
        EXPECT_LT(archive.size(), 300'000U);
        const TempDir folder;
        EXPECT_EQ(unpack(archive, folder.path(), {}, block), names);
        expect_same(folder.path());
      }
}

TEST_F(ArchiveTest, IsRestoredByPlainTar) {
  for (const auto& [compression, name] :
       {std::pair{Compression::kNone, "a.tar"}, {Compression::kGzip, "a.tar.gz"}, {Compression::kZstd, "a.tar.zst"}}) {
    if (compression == Compression::kZstd && run("zstd --version >/dev/null 2>&1") != 0) continue;
    put(out / name, pack(dir, names, compression));
    const TempDir folder;
    ASSERT_EQ(run(fmt::format("tar -C {} -xf {} 2>{}", folder.path().string(), (out / name).string(),
                              (out / "err").string())),
              0)
        << slurp(out / "err");
    expect_same(folder.path());
  }
}

TEST_F(ArchiveTest, ReadsWhatTarWritesInEachOfItsFormats) {
  for (const auto* options : {"--format=posix --sparse", "--format=posix --sparse --sparse-version=0.1",
                              "--format=posix --sparse --sparse-version=0.0", "--format=gnu --sparse", "--format=ustar",
                              "--format=v7", "--format=gnu", "--format=posix"}) {
    SCOPED_TRACE(options);
    ASSERT_EQ(run(fmt::format("tar -C {0} -cf {1} {2} .", dir.path().string(), (out / "a.tar").string(), options)), 0);
    const TempDir folder;
    EXPECT_EQ(unpack(slurp(out / "a.tar"), folder.path()).size(), names.size());
    expect_same(folder.path());
  }
}

TEST_F(ArchiveTest, ReadsTheGoEnginesArchives) {
  const Path data = Path(COCOON_TEST_DATA) / "go-engine";
  for (const auto* name : {"golden.tar", "golden.tar.gz"}) {
    const TempDir folder;
    unpack(slurp(data / name), folder.path());
    EXPECT_EQ(slurp(folder / "memory-ranges").size(), 8U << 20U);
    EXPECT_EQ(slurp(folder / "data-a.raw"), std::string(4 << 20, '\0'));
    EXPECT_EQ(slurp(folder / "cocoon.json"), "{\"storage_configs\":[]}\n");
    EXPECT_LE(allocated(folder / "memory-ranges"), 100'000);
    EXPECT_EQ(allocated(folder / "data-a.raw"), 0);
  }
}

TEST_F(ArchiveTest, BlocksOfZerosBecomeHoles) {
  put(dir / "zeros", std::string(1 << 20, '\0') + "x" + std::string(1 << 20, '\0'));
  const TempDir folder;
  unpack(pack(dir, {"zeros"}, Compression::kGzip), folder.path(), {}, 1000);
  EXPECT_EQ(slurp(folder / "zeros"), slurp(dir / "zeros"));
  EXPECT_LE(allocated(folder / "zeros"), 8192);
}

TEST_F(ArchiveTest, TextIsAMemberLikeAnyOther) {
  StringSink sink;
  ArchiveWriter writer(sink, SparseRecords::kGnu);
  writer.add_text("first", "{}", 1'700'000'000);
  writer.add_text("second", "", 0);
  writer.finish();
  StringSource source(sink.text);
  ArchiveReader reader(source, "x.tar", {});
  ASSERT_TRUE(reader.next());
  EXPECT_EQ(reader.name(), "first");
  EXPECT_EQ(reader.text(10), "{}");
  ASSERT_TRUE(reader.next());
  EXPECT_EQ(reader.text(10), "");
  EXPECT_FALSE(reader.next());
}

TEST_F(ArchiveTest, ManyExtentsAreNoMatter) {
  std::vector<std::pair<std::int64_t, std::string>> data;
  for (int i = 0; i < 3000; ++i) data.emplace_back(i * 8192, "x");
  make_sparse(dir / "many", 3000 * 8192, data);
  for (const auto records : {SparseRecords::kGnu, SparseRecords::kCocoon}) {
    const TempDir folder;
    unpack(pack(dir, {"many"}, Compression::kNone, records), folder.path(), {}, 10'000);
    EXPECT_EQ(slurp(folder / "many"), slurp(dir / "many"));
  }
}

class DamageTest : public ArchiveTest {
 protected:
  DamageTest() { make_sparse(dir / "tiny", 20'000, {{9000, "1234567"}}); }
  // Of the last file.
  static std::string last_text(const std::string& archive) {
    StringSource source(archive);
    ArchiveReader reader(source, "x.tar", {});
    std::string text;
    while (reader.next()) text = reader.text(1 << 20);
    return text;
  }
};

TEST_F(DamageTest, CutAnywhereIsRefused) {
  for (const auto compression : {Compression::kNone, Compression::kGzip, Compression::kZstd}) {
    const auto archive = pack(dir, {"plain", "tiny"}, compression);
    ASSERT_EQ(refusal(archive), "");
    for (std::size_t size = 0; size < archive.size(); ++size)
      EXPECT_NE(refusal(archive.substr(0, size)), "") << size << " of " << archive.size();
  }
}

TEST_F(DamageTest, FlippedBitsAreRefusedOrHarmlessAndChangeNothingThatIsCompressed) {
  for (const auto compression : {Compression::kNone, Compression::kGzip, Compression::kZstd}) {
    const auto archive = pack(dir, {"plain", "tiny"}, compression);
    for (std::size_t i = 0; i < archive.size(); ++i) {
      auto damaged = archive;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
      const auto said = refusal(damaged);  // no crash, nothing else thrown
      // Not every bit means something; but a checksum says that the bytes are the same.
      if (compression != Compression::kNone && said.empty()) {
        EXPECT_EQ(last_text(damaged), slurp(dir / "tiny")) << i;
      }
    }
  }
}

TEST_F(ArchiveTest, SomethingBehindTheEndIsRefused) {
  const auto archive = pack(dir, {"plain"}, Compression::kNone);
  EXPECT_EQ(refusal(archive + std::string(10'240, '\0')), "");
  EXPECT_NE(refusal(archive + archive), "");
  EXPECT_NE(refusal(archive + "x"), "");
  const auto packed = pack(dir, {"plain"}, Compression::kGzip);
  EXPECT_EQ(refusal(packed + std::string(100, '\0')), "");
  EXPECT_NE(refusal(packed + "x"), "");
  EXPECT_NE(refusal(packed + packed), "");
}

TEST_F(ArchiveTest, LimitsHold) {
  const auto archive = pack(dir, names, Compression::kNone);
  EXPECT_NE(refusal(archive, {.members = 5}).find("member 6 of the archive, allowed: 5"), std::string::npos);
  EXPECT_NE(refusal(archive, {.bytes = 9 << 20}).find("hole: with its 3145728 bytes"), std::string::npos);
  put(dir / "zeros", std::string(4 << 20, '\0'));
  const auto bomb = pack(dir, {"zeros"}, Compression::kGzip);
  EXPECT_EQ(refusal(bomb), "");
  EXPECT_NE(refusal(bomb, {.expansion = {.ratio = 100, .from_bytes = 1 << 20}}).find("more than 100 times"),
            std::string::npos);
}

// Whoever writes maps that lie has no tool for it.
std::string with_records(const std::string& records, const std::string& body, char type = '0') {
  const auto header = [](const std::string& name, char kind, std::size_t size) {
    std::string block(512, '\0');
    const auto set = [&](std::size_t at, const std::string& text) { block.replace(at, text.size(), text); };
    set(0, name);
    set(100, "0000600");
    set(108, "0000000");
    set(116, "0000000");
    set(124, fmt::format("{:011o}", size));
    set(136, "00000000000");
    set(148, "        ");
    block[156] = kind;
    set(257, std::string("ustar\0"
                         "00",
                         8));
    unsigned sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    set(148, fmt::format("{:06o}", sum) + '\0');
    return block;
  };
  const auto padded = [](const std::string& text) { return text + std::string((512 - text.size() % 512) % 512, '\0'); };
  return header("x", 'x', records.size()) + padded(records) + header("file", type, body.size()) + padded(body) +
         std::string(1024, '\0');
}

std::string record(const std::string& key, const std::string& value) {
  const auto rest = key.size() + value.size() + 3;
  for (std::size_t length = rest + 1;; ++length) {
    if (fmt::format("{}", length).size() + rest == length) return fmt::format("{} {}={}\n", length, key, value);
  }
}

std::string own_map(const std::string& size, const std::string& map, const std::string& body) {
  return with_records(record("COCOON.sparse.map", map) + record("COCOON.sparse.size", size), body);
}

TEST(SparseRecords, ThatAreTrueAreFollowed) {
  const TempDir folder;
  unpack(own_map("100", R"([{"o":10,"l":3},{"o":50,"l":2}])", "abcde"), folder.path());
  EXPECT_EQ(slurp(folder / "file"),
            std::string(10, '\0') + "abc" + std::string(37, '\0') + "de" + std::string(48, '\0'));
}

TEST(SparseRecords, ThatLieAreRefused) {
  const auto lies = [](const std::string& size, const std::string& map, const std::string& body,
                       const std::string& says) {
    const auto said = refusal(own_map(size, map, body));
    EXPECT_NE(said.find(says), std::string::npos) << map << " of " << size << ": " << said;
  };
  lies("100", R"([{"o":98,"l":3}])", "abc", "beyond its size");
  lies("100", R"([{"o":9223372036854775807,"l":3}])", "abc", "beyond its size");
  lies("100", R"([{"o":3,"l":9223372036854775807}])", "abc", "beyond its size");
  lies("100", R"([{"o":10,"l":3},{"o":12,"l":2}])", "abcde", "out of order");
  lies("100", R"([{"o":10,"l":3},{"o":0,"l":2}])", "abcde", "out of order");
  lies("100", R"([{"o":10,"l":3}])", "abcde", "speaks of 3 bytes of data, it has 5");
  lies("100", R"([{"o":10,"l":7}])", "abcde", "speaks of 7 bytes of data, it has 5");
  lies("-1", R"([])", "", "out of range");
  lies("1e9", R"([])", "", "malformed");
  lies("99999999999999999999", R"([])", "", "out of range");
  lies("9223372036854775807", R"([])", "", "allowed:");
  lies("100", R"([{"o":-1,"l":3}])", "abc", "out of range");
  lies("100", R"([{"o": 1,"l":3}])", "abc", "no number");
  lies("100", R"([{"o":1,"l":3}]])", "abc", "malformed");
  lies("100", R"([{"l":3,"o":1}])", "abc", "malformed");
  lies("100", R"({})", "", "malformed");
  lies("100", "", "", "malformed");
  lies("", "[]", "", "no number");
}

TEST(SparseRecords, ThatAreHalfThereOrTwiceAreRefused) {
  EXPECT_NE(refusal(with_records(record("COCOON.sparse.size", "5"), "")).find("one is missing"), std::string::npos);
  EXPECT_NE(refusal(with_records(record("COCOON.sparse.map", "[]"), "")).find("one is missing"), std::string::npos);
  const auto twice = record("COCOON.sparse.map", "[]") + record("COCOON.sparse.size", "5");
  EXPECT_NE(refusal(with_records(twice + twice, "")).find("there twice"), std::string::npos);
}

TEST(SparseRecords, OfGnuTarThatLieAreRefused) {
  const auto gnu = [](const std::string& realsize, std::string map, const std::string& body) {
    map.resize((map.size() + 511) / 512 * 512, '\0');
    return with_records(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
                            record("GNU.sparse.name", "file") + record("GNU.sparse.realsize", realsize),
                        map + body);
  };
  const TempDir folder;
  unpack(gnu("100", "1\n10\n3\n", "abc"), folder.path());
  EXPECT_EQ(slurp(folder / "file"), std::string(10, '\0') + "abc" + std::string(87, '\0'));

  EXPECT_NE(refusal(gnu("100", "1\n98\n3\n", "abc")), "");
  EXPECT_NE(refusal(gnu("100", "2\n10\n2\n11\n1\n", "abc")), "");
  EXPECT_NE(refusal(gnu("100", "1\n10\n3000\n", "abc")), "");
  EXPECT_NE(refusal(gnu("9223372036854775807", "1\n10\n3\n", "abc")), "");
  EXPECT_NE(refusal(gnu("100", "1\n10\n3\n", std::string(2000, 'a'))), "");
  EXPECT_NE(refusal(gnu("100", "1\n-10\n3\n", "abc")), "");
  EXPECT_NE(refusal(gnu("100", "99999999\n10\n3\n", "abc")), "");
  EXPECT_NE(refusal(gnu("100", "x\n", "abc")), "");
}

TEST(SparseRecords, BothKindsAtOnceAreRefused) {
  std::string map = "1\n10\n3\n";
  map.resize(512, '\0');
  const auto both = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
                    record("GNU.sparse.realsize", "100") + record("COCOON.sparse.map", "[]") +
                    record("COCOON.sparse.size", "5");
  EXPECT_NE(refusal(with_records(both, map + "abc")).find("two maps"), std::string::npos);
}

TEST(ArchiveNames, ThatAreNotPlainAreRefused) {
  for (const auto* name : {"/etc/passwd", "../f", "a/b", "a/../b", "..", ".", "a\\b", "a b", "./../f", "./a/b",
                           "\xc3\xa9", "a\nb", "a\x7f"}) {
    const auto archive = with_records(record("path", name), "x");
    EXPECT_NE(refusal(archive), "") << name;
  }
  EXPECT_EQ(refusal(with_records(record("path", "./a-b_c.raw"), "x")), "");
  EXPECT_NE(refusal(with_records(record("path", std::string(256, 'a')), "x")), "");
}

TEST(ArchiveNames, OnlyRegularFilesAreTaken) {
  for (const char type : {'1', '2', '3', '4', '5', '6'}) {
    const auto linked = record("linkpath", "target");
    EXPECT_NE(refusal(with_records(linked, "", type)), "") << type;
  }
}

}  // namespace
}  // namespace cocoon::system
