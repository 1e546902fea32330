#include "cocoon/vmm/driver.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"
#include "cocoon/vmm/qemu.h"

namespace cocoon::vmm {

std::vector<std::string_view> hypervisors() { return {"qemu"}; }

std::unique_ptr<Driver> make_driver(std::string_view hypervisor) {
  if (hypervisor == "qemu") return std::make_unique<Qemu>();
  throw InvalidArgument(
      fmt::format("hypervisor: '{}', allowed: {}", hypervisor, fmt::join(hypervisors(), ", ")));
}

}  // namespace cocoon::vmm
