#pragma once
// Does KVM really run guests here? The device's existence does not say: where KVM is itself emulated, a guest's
// instructions are interpreted, and an ordinary kernel dies or crawls.

#include <string>

namespace cocoon::vmm {

struct KvmStatus {
  bool usable = false;
  std::string reason;  // why, or why not, in a sentence
};

// Runs a tiny real-mode guest and takes the time. Cached for the process. Blocks up to some tens of milliseconds, once.
const KvmStatus& kvm_status();

}  // namespace cocoon::vmm
