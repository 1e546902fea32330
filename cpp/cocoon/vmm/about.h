#pragma once
// Which VM was asked for what: "boot web-1: QMP: …". The classes of errors and their facts stay.

#include <string_view>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"

namespace cocoon::vmm {

template <typename Body>
auto about(std::string_view what, const lifecycle::VmRecord& vm, Body&& body) {
  const auto message = [&](const VmmError& error) {
    return fmt::format("{} {}: {}", what, vm.config.name, error.what());
  };
  try {
    return body();
  } catch (const VmmTimeout& error) {
    throw VmmTimeout(message(error), error.status, error.body, error.log_tail);
  } catch (const VmmError& error) {
    throw VmmError(message(error), error.status, error.body, error.log_tail);
  }
}

}  // namespace cocoon::vmm
