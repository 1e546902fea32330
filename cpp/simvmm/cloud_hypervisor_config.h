#pragma once
// Cloud Hypervisor's VmConfig: what vm.create takes, what vm.info shows of it, and what vm.boot refuses.

#include <string>
#include <vector>

#include "simvmm/json.h"
#include "simvmm/machine.h"

namespace cocoon::simvmm::cloud_hypervisor {

// An answer that is not a success: its texts, outermost first.
struct Failure {
  int status;
  std::vector<std::string> chain;
};

extern const Schema kVmConfig;
extern const Schema kRemoveDevice;
extern const Schema kResize;
extern const Schema kRestore;
extern const Schema kSnapshot;

// A kind of device that can be added: the list in the config it joins, and what the VMM calls it.
struct DeviceKind {
  std::string_view list;
  std::string_view what;    // "disk": The disk could not be added to the VM
  std::string_view prefix;  // of ids that nobody gave
  const Schema* schema;
};
const DeviceKind* device_kind(std::string_view call);  // "vm.add-disk"; null if it adds nothing

// With every default in its place and without what the VMM does not know. Requires a config that was checked
Json complete(const Json& config);
Json complete_device(const DeviceKind& kind, const Json& device);
// Gives every device that has none an id; `counter` is the VM's.
void name_devices(Json& config, unsigned& counter);
// What can be known without touching a file. Errors Failure, with no texts around its own
void validate(const Json& config);

std::uint64_t memory_bytes(const Json& config);

}  // namespace cocoon::simvmm::cloud_hypervisor
