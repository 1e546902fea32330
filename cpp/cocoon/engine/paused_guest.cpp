#include "cocoon/engine/paused_guest.h"

#include <fcntl.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <string>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/liveness.h"
#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;

constexpr auto kApiTimeout = 10s;

system::Path mark_of(const VmRecord& vm) { return system::Path(vm.run_dir) / kSavingFile; }

}  // namespace

PausedGuest::PausedGuest(const vmm::Driver& driver, const VmRecord& vm, std::string_view verb, system::Cancel& cancel)
    : driver_(driver), vm_(vm), verb_(verb) {
  rescue(driver, vm, cancel);
  switch (driver.guest_state(vm, kApiTimeout, cancel)) {
    case vmm::GuestState::kPaused:
      return;
    case vmm::GuestState::kNotBooted:
    case vmm::GuestState::kEnded:
      throw InvalidState(fmt::format("{} {}: no guest runs in its VMM", verb, vm.config.name),
                         std::string(to_string(vm.state)));
    case vmm::GuestState::kRunning:
      break;
  }
  const auto mark = mark_of(vm);
  const system::Fd file(::open(mark.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw StoreError(system_message("create " + mark.string(), errno), mark.string(), errno);
  ours_ = true;
  try {
    driver.pause(vm, kApiTimeout, cancel);
  } catch (...) {
    // It may have been paused all the same.
    try {
      resume();
    } catch (const Error& error) {
      spdlog::warn("{}", error.what());
    }
    throw;
  }
}

PausedGuest::~PausedGuest() {
  std::error_code ignored;
  if (!ours_ || !std::filesystem::exists(mark_of(vm_), ignored)) return;  // removed, or resumed by its user
  try {
    resume();
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
  }
}

void PausedGuest::resume() {
  if (!ours_) return;
  ours_ = false;
  system::Cancel never;
  const auto message = [&](const VmmError& error) {
    return fmt::format("{} {}: the guest could not be let go on, reconcile tries again: {}", verb_, vm_.config.name,
                       error.what());
  };
  try {
    driver_.resume(vm_, kApiTimeout, never);
  } catch (const VmmTimeout& error) {
    throw VmmTimeout(message(error), error.status, error.body, error.log_tail);
  } catch (const VmmError& error) {
    throw VmmError(message(error), error.status, error.body, error.log_tail);
  }
  forget(vm_);
}

bool PausedGuest::rescue(const vmm::Driver& driver, const VmRecord& vm, system::Cancel& cancel) {
  std::error_code ignored;
  if (!std::filesystem::exists(mark_of(vm), ignored)) return false;
  driver.resume(vm, kApiTimeout, cancel);
  forget(vm);
  return true;
}

void PausedGuest::forget(const VmRecord& vm) { system::remove_file(mark_of(vm)); }

}  // namespace cocoon::engine
