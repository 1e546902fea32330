#pragma once
// Inside the module: what is said to Firecracker, whatever it is for.

#include <chrono>
#include <string>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"
#include "cocoon/vmm/rest.h"

namespace cocoon::vmm {

Rest connect_firecracker(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel);

// Of the answer to GET /. Errors VmmError: a state that is not known.
GuestState firecracker_state(const nlohmann::json& info);

// Before anything else is said: somebody else's at our socket must not be let run as this VM, nor one that is too old.
// Returns its version. Errors VmmError.
std::string check_new_firecracker(Rest& api, const lifecycle::VmRecord& vm, const system::Path& socket);

}  // namespace cocoon::vmm
