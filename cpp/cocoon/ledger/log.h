#pragma once
// The module's logger: "cocoon.ledger" where the program made one, else spdlog's default.

#include <memory>

#include <spdlog/spdlog.h>

namespace cocoon::ledger {

inline std::shared_ptr<spdlog::logger> logger() {
  auto own = spdlog::get("cocoon.ledger");
  return own ? own : spdlog::default_logger();
}

}  // namespace cocoon::ledger
