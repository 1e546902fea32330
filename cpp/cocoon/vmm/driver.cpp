#include "cocoon/vmm/driver.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"
#include "cocoon/vmm/cloud_hypervisor.h"
#include "cocoon/vmm/firecracker.h"
#include "cocoon/vmm/qemu.h"

namespace cocoon::vmm {
namespace {

struct Known {
  std::string_view name;
  std::unique_ptr<Driver> (*make)();
};

constexpr std::array<Known, 3> kKnown{{
    {"qemu", [] { return std::unique_ptr<Driver>(std::make_unique<Qemu>()); }},
    {"cloud-hypervisor", [] { return std::unique_ptr<Driver>(std::make_unique<CloudHypervisor>()); }},
    {"firecracker", [] { return std::unique_ptr<Driver>(std::make_unique<Firecracker>()); }},
}};

}  // namespace

bool is_paused(GuestState state, const VmmError& no_guest) {
  switch (state) {
    case GuestState::kRunning:
      return false;
    case GuestState::kPaused:
      return true;
    case GuestState::kNotBooted:
    case GuestState::kEnded:
      break;
  }
  throw VmmError(no_guest);
}

bool Driver::works_in(const system::ProcessInfo& process, const system::Path& run_dir) {
  if (process.cwd.empty()) return false;
  if (process.cwd == run_dir.lexically_normal()) return true;
  // /proc gives the folder without the links that may lead to it.
  std::error_code error;
  const system::Path resolved = std::filesystem::weakly_canonical(run_dir, error);
  return !error && process.cwd == resolved;
}

std::vector<std::string_view> hypervisors() {
  std::vector<std::string_view> names;
  names.reserve(kKnown.size());
  for (const Known& known : kKnown) names.push_back(known.name);
  return names;
}

std::unique_ptr<Driver> make_driver(std::string_view hypervisor) {
  const auto* found = std::find_if(kKnown.begin(), kKnown.end(), [&](const Known& k) { return k.name == hypervisor; });
  if (found == kKnown.end()) {
    throw InvalidArgument(
        fmt::format("hypervisor: '{}' is not known, allowed: {}", hypervisor, fmt::join(hypervisors(), ", ")));
  }
  return found->make();
}

}  // namespace cocoon::vmm
