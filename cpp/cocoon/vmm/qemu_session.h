#pragma once
// Inside the module: what QEMU's sessions have in common, whatever they are for.

#include <string>
#include <string_view>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/about.h"
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

}  // namespace cocoon::vmm
