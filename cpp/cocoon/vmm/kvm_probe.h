#pragma once
// Whether KVM here really runs guests. /dev/kvm proves nothing: there are hosts whose KVM emulates the guest's
// instructions in software, a thousand times slower than TCG's translation, and wrong in places.

#include <chrono>
#include <string>

#include "cocoon/system/file.h"

namespace cocoon::vmm {

struct KvmStatus {
  bool usable = false;
  bool interprets = false;  // it is not, but a guest that needs little runs all the same
  std::string reason;       // why not, or what was measured: for people
};

// Runs a tiny guest through KVM's own interface and times it.
// Blocks   a few ms on hardware; at most a little more than `give_up`, when a run that does not end is interrupted.
KvmStatus probe_kvm(const system::Path& device = "/dev/kvm",
                    std::chrono::milliseconds give_up = std::chrono::milliseconds(250));

// probe_kvm() of this host, made once per process.
const KvmStatus& kvm_status();

}  // namespace cocoon::vmm
