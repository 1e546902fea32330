#pragma once
// What the tests of metering and ledger share: a folder of their own, whole files, a seed that is printed.

#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/metering/entry.h"

namespace cocoon::test {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "cocoon-metering-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw std::runtime_error("no temporary folder");
    }
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    throw std::runtime_error("cannot read " + path.string());
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  if (!out.flush()) {
    throw std::runtime_error("cannot write " + path.string());
  }
}

// The lines without their '\n'; an unterminated last one counts.
inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// COCOON_SEED repeats a run.
inline std::uint64_t test_seed() {
  const char* given = ::getenv("COCOON_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::random_device{}();
  std::cout << "seed: COCOON_SEED=" << seed << '\n';
  return seed;
}

inline metering::Entry vm_entry(metering::Kind kind, std::string id, std::int64_t at_ns) {
  metering::Entry entry;
  entry.kind = kind;
  entry.vm_id = std::move(id);
  entry.hypervisor = "qemu";
  entry.shape = {2, 512, 1024};
  entry.emitted_at_ns = at_ns;
  return entry;
}

inline metering::Entry snap_entry(metering::Kind kind, std::string id, std::int64_t at_ns) {
  metering::Entry entry;
  entry.kind = kind;
  entry.snapshot_id = std::move(id);
  entry.hypervisor = "qemu";
  entry.shape = {0, 0, 4096};
  entry.emitted_at_ns = at_ns;
  return entry;
}

}  // namespace cocoon::test
