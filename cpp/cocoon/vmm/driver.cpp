#include "cocoon/vmm/driver.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"
#include "cocoon/vmm/qemu.h"

namespace cocoon::vmm {
namespace {

struct Known {
  std::string_view name;
  std::unique_ptr<Driver> (*make)();
};

constexpr std::array<Known, 1> kKnown{{
    {"qemu", [] { return std::unique_ptr<Driver>(std::make_unique<Qemu>()); }},
}};

}  // namespace

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
