// Which files a ledger is made of, and in which order they are read.

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
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

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".jsonl";

// "ledger.101-200.jsonl" sorts as ("ledger", 101), and "ledger.jsonl", which holds what came after, as ("ledger", ∞).
std::tuple<std::string, std::uint64_t, std::string> order_of(const fs::path& path) {
  constexpr std::uint64_t kCurrent = std::numeric_limits<std::uint64_t>::max();
  const std::string name = path.filename().string();
  std::string stem = name.ends_with(kExtension) ? name.substr(0, name.size() - kExtension.size()) : name;
  const std::size_t dot = stem.rfind('.');
  if (dot != std::string::npos) {
    const char* const end = stem.data() + stem.size();
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    const auto [dash, error] = std::from_chars(stem.data() + dot + 1, end, first);
    if (error == std::errc{} && dash != end && *dash == '-') {
      const auto [behind, last_error] = std::from_chars(dash + 1, end, last);
      if (last_error == std::errc{} && behind == end) {
        return {(path.parent_path() / stem.substr(0, dot)).string(), first, name};
      }
    }
  }
  return {(path.parent_path() / stem).string(), kCurrent, name};
}

void sort_files(Files& files) {
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) { return order_of(a) < order_of(b); });
}

Files files_in(const fs::path& folder) {
  Files found;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(".jsonl.zst") || name.ends_with(".jsonl.gz")) {
      throw LedgerError(fmt::format("read ledger {}: compressed parts cannot be read yet", entry->path().string()),
                        entry->path().string());
    }
    if (name.ends_with(kExtension)) {
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

}  // namespace cocoon::ledger
