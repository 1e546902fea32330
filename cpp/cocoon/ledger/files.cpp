// Which files a ledger is made of, and in which order they are read.

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/metering/ledger_parts.h"

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;

// "ledger.101-200.jsonl.zst" sorts as ("ledger", 101), and "ledger.jsonl", which holds what came after, as ("ledger",
// ∞); of one part that stands there in two forms, the packed one first.
std::tuple<std::string, std::uint64_t, std::string> order_of(const fs::path& path) {
  constexpr std::uint64_t kCurrent = std::numeric_limits<std::uint64_t>::max();
  const std::string name = path.filename().string();
  const auto part = metering::parse_part_name(name);
  return {stream_of(path), part ? part->first : kCurrent, name};
}

// In reading order. A part of the same stem and seqs that was packed, and not yet removed, is there once.
void sort_files(Files& files) {
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) { return order_of(a) < order_of(b); });
  const auto same = [](const fs::path& a, const fs::path& b) {
    const auto one = metering::parse_part_name(a.filename().string());
    const auto other = metering::parse_part_name(b.filename().string());
    return one && other && a.parent_path() == b.parent_path() && one->stem == other->stem &&
           one->first == other->first && one->last == other->last;
  };
  files.erase(std::unique(files.begin(), files.end(), same), files.end());
}

Files files_in(const fs::path& folder) {
  Files found;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!metering::ledger_stem(name).empty()) {
      found.push_back(entry->path());
    }
  }
  if (error) {
    throw LedgerError(fmt::format("read folder {}: {}", folder.string(), error.message()), folder.string(),
                      error.value());
  }
  sort_files(found);
  return found;
}

Files matching(const std::string& pattern) {
  glob_t result{};
  const int code = ::glob(pattern.c_str(), GLOB_NOSORT | GLOB_ERR, nullptr, &result);
  Files found;
  for (std::size_t i = 0; i < result.gl_pathc; ++i) {
    found.emplace_back(result.gl_pathv[i]);
  }
  ::globfree(&result);
  if (code == GLOB_NOMATCH || (code == 0 && found.empty())) {
    throw LedgerError(system_message("read ledger " + pattern, ENOENT), pattern, ENOENT);
  }
  if (code != 0) {
    throw LedgerError(fmt::format("read ledger {}: the pattern cannot be expanded", pattern), pattern);
  }
  sort_files(found);
  return found;
}

}  // namespace

std::string stream_of(const fs::path& file) {
  const std::string name = file.filename().string();
  const auto part = metering::parse_part_name(name);
  const std::string_view stem = part ? std::string_view(part->stem) : metering::ledger_stem(name);
  return (file.parent_path() / (stem.empty() ? name : stem)).string();
}

Files find_files(std::span<const std::string> patterns) {
  Files files;
  std::set<std::pair<dev_t, ino_t>> seen;
  const auto add = [&](const fs::path& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0) {
      const int code = errno;
      throw LedgerError(system_message("read ledger " + path.string(), code), path.string(), code);
    }
    if (seen.emplace(status.st_dev, status.st_ino).second) {
      files.push_back(path);
    }
  };
  for (const std::string& pattern : patterns) {
    struct stat status{};
    if (::stat(pattern.c_str(), &status) == 0) {
      if (S_ISDIR(status.st_mode)) {
        std::ranges::for_each(files_in(pattern), add);
      } else {
        add(pattern);
      }
      continue;
    }
    const int code = errno;
    if (code != ENOENT || pattern.find_first_of("*?[") == std::string::npos) {
      throw LedgerError(system_message("read ledger " + pattern, code), pattern, code);
    }
    std::ranges::for_each(matching(pattern), add);
  }
  return files;
}

Files find_files(const Selection& selection) {
  if (!selection.with_parts) {
    return find_files(selection.patterns);
  }
  Files files;
  for (const std::string& current : selection.patterns) {
    Files family;
    for (const auto& part : metering::find_parts(current)) {
      family.push_back(part.path);
    }
    std::error_code ignored;
    if (fs::exists(current, ignored)) {
      family.emplace_back(current);
    }
    if (family.empty()) {
      throw LedgerError(system_message("read ledger " + current, ENOENT), current, ENOENT);
    }
    sort_files(family);
    files.insert(files.end(), family.begin(), family.end());
  }
  return files;
}

std::vector<std::string> identities(const Files& files) {
  std::vector<std::string> all;
  all.reserve(files.size());
  for (const fs::path& file : files) {
    struct stat status{};
    const bool there = ::stat(file.c_str(), &status) == 0;
    all.push_back(there ? fmt::format("{}:{}:{}", file.string(), status.st_dev, status.st_ino) : file.string());
  }
  return all;
}

}  // namespace cocoon::ledger
