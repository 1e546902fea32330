#pragma once
// A guest that stands still while its state is written, and goes on whatever happens.
//
// kSavingFile in the run dir says for whom it does: with the op lock free, its sequence has died, and start, resume and
// reconcile let the guest go on. A guest that its user had paused is left paused, and has no such file.

#include <string_view>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"

namespace cocoon::engine {

class PausedGuest {
 public:
  // Requires the VM's op lock. Both arguments outlive it.
  // Errors   InvalidState: no guest runs in its VMM. VmmError, VmmTimeout, StoreError, Cancelled.
  PausedGuest(const vmm::Driver& driver, const lifecycle::VmRecord& vm, std::string_view verb, system::Cancel& cancel);
  // resume(), and if that fails, a warning: reconcile tries again.
  ~PausedGuest();
  PausedGuest(const PausedGuest&) = delete;
  PausedGuest& operator=(const PausedGuest&) = delete;

  // Cannot be cancelled. Errors VmmError, VmmTimeout.
  void resume();
  // It never goes on: its VMM is about to be ended.
  void abandon() { ours_ = false; }

  // Lets go on a guest whose saver has died; false if there is none. Requires the VM's op lock, and a living VMM.
  static bool rescue(const vmm::Driver& driver, const lifecycle::VmRecord& vm, system::Cancel& cancel);
  // Its user has decided otherwise.
  static void forget(const lifecycle::VmRecord& vm);

 private:
  const vmm::Driver& driver_;
  const lifecycle::VmRecord& vm_;
  std::string_view verb_;
  bool ours_ = false;  // we have paused it, and must resume it
};

}  // namespace cocoon::engine
