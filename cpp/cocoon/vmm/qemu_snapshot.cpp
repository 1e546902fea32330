// Saving and loading under QEMU: its migration, to and from a file that we open and hand over.
//
// "fd:" is the one way that needs neither a program that QEMU starts (the sandbox forbids it) nor a QEMU newer than 7.2
// ("file:" came with 8.2). The stream is read into the new QEMU's own memory; it cannot be mapped.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <string>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/fd.h"
#include "cocoon/vmm/host_tsc.h"
#include "cocoon/vmm/kvm_probe.h"
#include "cocoon/vmm/program_version.h"
#include "cocoon/vmm/qemu.h"
#include "cocoon/vmm/qemu_session.h"
#include "cocoon/vmm/qmp.h"
#include "cocoon/vmm/saved_checks.h"

namespace cocoon::vmm {
namespace {

using lifecycle::VmRecord;
using std::chrono::milliseconds;
using system::Cancel;
using system::Path;

constexpr const char* kMemoryFile = "memory";
constexpr const char* kFdName = "cocoon-state";  // of the descriptor, within the session
// Without it QEMU keeps to 128 MiB/s, which it also does while the guest stands still.
constexpr std::int64_t kNoLimit = std::int64_t{1} << 50;
constexpr milliseconds kPoll{1};
constexpr milliseconds kCancelTimeout{5000};
constexpr std::array<unsigned char, 8> kStreamBegin{'Q', 'E', 'V', 'M', 0, 0, 0, 3};  // QEMU_VM_FILE_MAGIC, _VERSION

// Names of facts.
constexpr const char* kMachine = "machine";
constexpr const char* kAccelerator = "accelerator";
constexpr const char* kHostCpu = "host_cpu";  // only under KVM: -cpu host passes it through

// "pc-q35-7.2" of a VM that was made as "q35".
std::string machine_type(Qmp& qmp) {
  constexpr std::string_view kEnd = "-machine";
  const nlohmann::json answer = qmp.execute("qom-get", {{"path", "/machine"}, {"property", "type"}});
  std::string type = answer.is_string() ? answer.get<std::string>() : std::string();
  if (!type.ends_with(kEnd)) throw VmmError("QMP: 'qom-get' returned no type of the machine", 0, answer.dump());
  return type.substr(0, type.size() - kEnd.size());
}

bool runs_under_kvm(Qmp& qmp) {
  const nlohmann::json answer = qmp.execute("query-kvm");
  const auto enabled = answer.find("enabled");
  if (enabled == answer.end() || !enabled->is_boolean()) {
    throw VmmError("QMP: 'query-kvm' does not say whether it is enabled", 0, answer.dump());
  }
  return enabled->get<bool>();
}

void pass_file(Qmp& qmp, int fd) { qmp.execute_with_fd("getfd", {{"fdname", kFdName}}, fd); }

// "" if none was begun.
std::string text_of(const nlohmann::json& answer, const char* key) {
  const auto found = answer.find(key);
  return found != answer.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Source   QEMU's qapi/migration.json, MigrationStatus.
bool goes_on(const std::string& status) {
  return status == "setup" || status == "active" || status == "device" || status == "cancelling" ||
         status == "pre-switchover" || status == "wait-unplug";
}

void await_migration(Qmp& qmp, Cancel& cancel) {
  for (;;) {
    const nlohmann::json answer = qmp.execute("query-migrate");
    const std::string status = text_of(answer, "status");
    if (status == "completed") return;
    if (!goes_on(status)) {
      const std::string why = text_of(answer, "error-desc");
      throw VmmError(fmt::format("QMP: the migration is '{}'{}{}", status, why.empty() ? "" : ": ", why), 0, why);
    }
    system::pause_for(kPoll, cancel);
  }
}

// A migration that nobody waits for any more must not go on writing, and the guest cannot be resumed before its end.
void cancel_migration(const Path& socket) noexcept {
  try {
    Cancel never;
    Qmp qmp = Qmp::connect(socket, kCancelTimeout, never);
    qmp.execute("migrate_cancel");
    while (goes_on(text_of(qmp.execute("query-migrate"), "status"))) system::pause_for(kPoll, never);
  } catch (const Error&) {
    return;  // a QEMU that does not even answer to this is ended by whoever resumes its guest and fails
  }
}

}  // namespace

std::string Qemu::version(const Path& binary) const { return program_version(binary, "QEMU emulator version "); }

SavedState Qemu::save(const VmRecord& vm, const Path& dir, milliseconds timeout, Cancel& cancel) const {
  const Path path = dir / kMemoryFile;
  const system::Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw StoreError(system_message("create " + path.string(), errno), path.string(), errno);

  SavedState state;
  const auto migrate = [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    if (const std::string status = status_of(qmp); meaning_of(status) != GuestState::kPaused) {
      throw VmmError(fmt::format("the guest is not paused (QEMU says '{}')", status), 0, status);
    }
    state.vmm_version = qmp.version();
    const bool kvm = runs_under_kvm(qmp);
    state.facts = {{kMachine, machine_type(qmp)}, {kAccelerator, kvm ? "kvm" : "tcg"}};
    if (kvm) state.facts.emplace(kHostCpu, host_cpu());
    qmp.execute("migrate-set-parameters", {{"max-bandwidth", kNoLimit}});
    pass_file(qmp, file.get());
    qmp.execute("migrate", {{"uri", fmt::format("fd:{}", kFdName)}});
    await_migration(qmp, cancel);
  };
  about("save", vm, [&] {
    try {
      migrate();
    } catch (...) {
      cancel_migration(api_socket(vm));
      throw;
    }
  });
  const off_t size = ::lseek(file.get(), 0, SEEK_END);
  if (size <= 0) throw VmmError(fmt::format("save {}: QEMU wrote nothing into {}", vm.config.name, path.string()));
  state.files = {{.name = kMemoryFile, .size_bytes = size}};
  return state;
}

void Qemu::check_saved(const Saved& saved, const Path& binary) const {
  const std::string& accelerator = fact(saved, kAccelerator);
  const std::string& machine = fact(saved, kMachine);
  const auto refuse = [&](const std::string& what, std::string_view allowed) { refuse_saved(saved, what, allowed); };
  const auto corrupt = [&](const std::string& member, const std::string& what) { refuse_corrupt(saved, member, what); };
  if (!is_saved_machine(machine, saved.vm.config)) {
    corrupt(lifecycle::kSavedVmFile,
            fmt::format("machine '{}' is none that a VM of machine '{}' ever had", machine, saved.vm.config.machine));
  }
  // Within a series QEMU keeps the stream's format and its machines.
  const std::string here = version(binary);
  if (series_of(here) != series_of(saved.vm.vmm_version)) {
    refuse(fmt::format("it was taken by QEMU {}", saved.vm.vmm_version), series_of(here) + ".*");
  }
  if (accelerator == "kvm") {
    if (!host_(binary).kvm) refuse("its guest ran under KVM", "tcg, since KVM does not run guests on this host");
    if (const std::string& cpu = fact(saved, kHostCpu); cpu != host_cpu()) {
      refuse(fmt::format("its guest ran on the processor '{}'", cpu), "'" + host_cpu() + "'");
    }
  } else if (accelerator != "tcg") {
    corrupt(lifecycle::kSavedVmFile, fmt::format("accelerator '{}', allowed: kvm, tcg", accelerator));
  }
  if (saved.vm.state_files.size() != 1 || saved.vm.state_files.front().name != kMemoryFile) {
    corrupt(lifecycle::kSavedVmFile, fmt::format("its state is not one file '{}'", kMemoryFile));
  }
  std::ifstream stream(saved.dir / kMemoryFile, std::ios::binary);
  std::array<char, kStreamBegin.size()> begin{};
  stream.read(begin.data(), begin.size());
  if (!stream || !std::equal(begin.begin(), begin.end(), kStreamBegin.begin(),
                             [](char a, unsigned char b) { return static_cast<unsigned char>(a) == b; })) {
    corrupt(kMemoryFile, "it is not a migration stream of QEMU, version 3");
  }
}

Command Qemu::load_command(const VmRecord& vm, const Path& binary, const Saved& saved) const {
  const QemuIncoming incoming{.machine = fact(saved, kMachine), .kvm = fact(saved, kAccelerator) == "kvm"};
  return {.argv = qemu_argv(vm, binary, host_(binary), incoming),
          .environment = {},
          .input = {},
          .output = {},
          .passed = {}};
}

void Qemu::load(const VmRecord& vm, const Saved& saved, milliseconds timeout, Cancel& cancel) const {
  const Path path = saved.dir / kMemoryFile;
  const system::Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file) throw StoreError(system_message("open " + path.string(), errno), path.string(), errno);
  about("load", vm, [&] {
    Qmp qmp = Qmp::connect(api_socket(vm), timeout, cancel);
    check_owner(qmp, vm, api_socket(vm));
    if (const std::string status = status_of(qmp); status != "inmigrate") {
      throw VmmError(fmt::format("QEMU is not waiting to load (it says '{}')", status), 0, status);
    }
    pass_file(qmp, file.get());
    qmp.execute("migrate-incoming", {{"uri", fmt::format("fd:{}", kFdName)}});
    await_migration(qmp, cancel);
    qmp.execute("cont");
  });
}

}  // namespace cocoon::vmm
