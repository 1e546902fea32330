#pragma once
// Inside the module: what is said to Cloud Hypervisor, whatever it is for.

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"
#include "cocoon/vmm/rest.h"

namespace cocoon::vmm {

// In the run dir.
inline constexpr std::string_view kCloudHypervisorConsole = "console.sock";
inline constexpr std::string_view kCloudHypervisorVsock = "vsock.uds";

// It says 4 MiB, but a body of 500 KB is death by its own seccomp filter. A few KB is what we need.
inline constexpr std::size_t kMaxCloudHypervisorBody = 100'000;

Rest connect_cloud_hypervisor(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel);

// In its words: "Running", …; nullopt: it has no VM yet.
std::optional<std::string> ask_cloud_hypervisor(Rest& api);
// Errors   VmmError: a state that is not known.
GuestState cloud_hypervisor_state(const std::optional<std::string>& said);

}  // namespace cocoon::vmm
