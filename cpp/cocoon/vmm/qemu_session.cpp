#include "cocoon/vmm/qemu_session.h"

#include <array>

#include "cocoon/vmm/qemu_command.h"

namespace cocoon::vmm {
namespace {

struct RunState {
  std::string_view name;
  GuestState meaning;
};

// QEMU's RunState, qapi/run-state.json.
constexpr std::array<RunState, 16> kRunStates{{
    {"prelaunch", GuestState::kNotBooted},  // -S, and nobody has said "cont"
    {"inmigrate", GuestState::kNotBooted},  // -incoming
    {"running", GuestState::kRunning},
    {"suspended", GuestState::kRunning},  // the guest's own sleep: it wakes by itself
    {"paused", GuestState::kPaused},
    {"debug", GuestState::kPaused},
    {"io-error", GuestState::kPaused},  // a disk of the host is full: "cont" tries again
    {"watchdog", GuestState::kPaused},
    {"save-vm", GuestState::kPaused},
    {"restore-vm", GuestState::kPaused},
    {"finish-migrate", GuestState::kPaused},
    {"postmigrate", GuestState::kPaused},
    {"colo", GuestState::kPaused},
    {"shutdown", GuestState::kEnded},
    {"guest-panicked", GuestState::kEnded},
    {"internal-error", GuestState::kEnded},  // KVM gave up: only a reset would help
}};

}  // namespace

std::string query(Qmp& qmp, std::string_view command, const char* member) {
  const nlohmann::json answer = qmp.execute(command);
  const auto found = answer.find(member);
  if (found == answer.end() || !found->is_string()) {
    throw VmmError(fmt::format("QMP: '{}' returned no {}", command, member), 0, answer.dump());
  }
  return found->get<std::string>();
}

std::string status_of(Qmp& qmp) { return query(qmp, "query-status", "status"); }

GuestState meaning_of(const std::string& status) {
  for (const RunState& state : kRunStates) {
    if (state.name == status) return state.meaning;
  }
  throw VmmError(fmt::format("QMP: 'query-status' returned '{}', which is not known", status), 0, status);
}

void check_owner(Qmp& qmp, const lifecycle::VmRecord& vm, const system::Path& socket) {
  const std::string name = query(qmp, "query-name", "name");
  if (name != qemu_name(vm.id)) {
    throw VmmError(fmt::format("the QEMU at {} is not this VM's", socket.string()), 0, name);
  }
}

}  // namespace cocoon::vmm
