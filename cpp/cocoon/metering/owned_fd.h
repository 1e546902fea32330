#pragma once
// Inside the module, which uses nothing of ours: a descriptor that is closed with its scope, and the error of a path.

#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::metering {

struct OwnedFd {
  explicit OwnedFd(int fd) : value(fd) {}
  ~OwnedFd() {
    if (value >= 0) ::close(value);
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  int value;
};

// "open /x: Permission denied"
[[noreturn]] inline void fail_on(std::string_view tried, const std::filesystem::path& path, int code) {
  throw LedgerError(system_message(fmt::format("{} {}", tried, path.string()), code), path.string(), code);
}

}  // namespace cocoon::metering
