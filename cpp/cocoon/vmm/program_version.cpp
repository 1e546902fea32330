#include "cocoon/vmm/program_version.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
#include <tuple>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/process.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;

constexpr auto kTimeout = 5s;

std::string ask(const system::Path& binary, std::string_view before) {
  system::Cancel never;
  try {
    const auto end = system::run_program({binary.string(), "--version"}, kTimeout, never);
    auto version = version_after(end.output, before);
    if (end.signalled || end.status > 0 || version.empty()) {
      throw VmmError(fmt::format("{} --version: {} {}, and no version after \"{}\" in its output", binary.string(),
                                 end.signalled ? "signal" : "status", end.status, before),
                     end.status, end.output, end.output);
    }
    return version;
  } catch (const StoreError& error) {
    throw VmmError(error.what());
  }
}

}  // namespace

std::string version_after(std::string_view text, std::string_view before) {
  const auto found = text.find(before);
  if (found == std::string_view::npos) return {};
  text.remove_prefix(found + before.size());
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  if (text.starts_with('v')) text.remove_prefix(1);
  return std::string(text.substr(0, text.find_first_of(" \t\r\n,(")));
}

std::string program_version(const system::Path& binary, std::string_view before) {
  // Which file it is, so that one that was replaced is asked again.
  using Key = std::tuple<std::string, dev_t, ino_t, std::int64_t, std::int64_t, off_t>;
  static std::mutex mutex;
  static std::map<Key, std::string> known;  // guarded by mutex
  struct stat status{};
  if (::stat(binary.c_str(), &status) != 0) throw VmmError(system_message("stat " + binary.string(), errno));
  const Key key{binary.string(),       status.st_dev,          status.st_ino,
                status.st_mtim.tv_sec, status.st_mtim.tv_nsec, status.st_size};
  const std::lock_guard lock(mutex);
  auto& version = known[key];
  if (version.empty()) version = ask(binary, before);
  return version;
}

}  // namespace cocoon::vmm
