#pragma once
// The module's logger: "cocoon.metering" where the program made one, else spdlog's default.

#include <memory>

#include <spdlog/spdlog.h>

namespace cocoon::metering {

inline std::shared_ptr<spdlog::logger> logger() {
  auto own = spdlog::get("cocoon.metering");
  return own ? own : spdlog::default_logger();
}

}  // namespace cocoon::metering
