#include "cocoon/vmm/cloud_hypervisor_api.h"

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::vmm {

Rest connect_cloud_hypervisor(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel) {
  return {socket, kMaxCloudHypervisorBody, timeout, cancel};
}

std::optional<std::string> ask_cloud_hypervisor(Rest& api) {
  const auto info = api.find("/api/v1/vm.info");
  if (!info) return std::nullopt;
  return text_member(*info, "state");
}

GuestState cloud_hypervisor_state(const std::optional<std::string>& said) {
  if (!said || said == "Created") return GuestState::kNotBooted;
  if (said == "Running") return GuestState::kRunning;
  if (said == "Paused" || said == "BreakPoint") return GuestState::kPaused;
  if (said == "Shutdown") return GuestState::kEnded;
  throw VmmError(fmt::format("its state is '{}', which is not known", *said), 0, *said);
}

}  // namespace cocoon::vmm
