#include "cocoon/vmm/firecracker_api.h"

#include <string>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::vmm {
namespace {

// PVH kernels and network_overrides, by which a clone gets its own tap, came with 1.12.
constexpr int kMinMajor = 1;
constexpr int kMinMinor = 12;

constexpr std::size_t kMaxBody = 51200;  // its --http-api-max-payload-size

}  // namespace

Rest connect_firecracker(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel) {
  return {socket, kMaxBody, timeout, cancel};
}

GuestState firecracker_state(const nlohmann::json& info) {
  const std::string state = text_member(info, "state");
  if (state == "Not started") return GuestState::kNotBooted;
  if (state == "Running") return GuestState::kRunning;
  if (state == "Paused") return GuestState::kPaused;
  throw VmmError(fmt::format("its state is '{}', which is not known", state), 0, state);
}

std::string check_new_firecracker(Rest& api, const lifecycle::VmRecord& vm, const system::Path& socket) {
  const nlohmann::json info = api.get("/");
  const std::string id = text_member(info, "id");
  if (id != vm.id) throw VmmError(fmt::format("the Firecracker at {} is not this VM's", socket.string()), 0, id);
  std::string version = text_member(info, "vmm_version");
  require_version("Firecracker", version, kMinMajor, kMinMinor);
  return version;
}

}  // namespace cocoon::vmm
