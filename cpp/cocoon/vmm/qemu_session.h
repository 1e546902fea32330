#pragma once
// Inside the module: what QEMU's sessions have in common, whatever they are for.

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"
#include "cocoon/vmm/qmp.h"

namespace cocoon::vmm {

// One text member of what a query returns. Errors VmmError: it is not there.
std::string query(Qmp& qmp, std::string_view command, const char* member);

std::string status_of(Qmp& qmp);

// Errors   VmmError: QEMU says something that no version we know says.
GuestState meaning_of(const std::string& status);

// Somebody else's QEMU at our socket must not be let run as this VM. Errors VmmError.
void check_owner(Qmp& qmp, const lifecycle::VmRecord& vm, const system::Path& socket);

// "boot web-1: QMP: …": which VM was asked for what. The classes and their facts stay.
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
