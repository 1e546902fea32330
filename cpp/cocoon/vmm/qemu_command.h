#pragma once
// QEMU's command line for a VM: what is allowed in its configuration, and what becomes of it. No process, no socket.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/system/file.h"

namespace cocoon::vmm {

// What the command line depends on beside the VM itself.
struct QemuHost {
  bool kvm = false;          // KVM here runs guests, see kvm_probe.h
  bool sandbox = true;       // this QEMU knows -sandbox
  std::int64_t tsc_khz = 0;  // see host_tsc.h; 0: there is none
};

// For a QEMU that is to load what another one has saved: it must be the same machine.
struct QemuIncoming {
  std::string machine;  // the exact type, not a name that stands for the newest one: "pc-q35-7.2", "microvm"
  bool kvm = false;     // what the guest ran under
};

// In the VM's run dir, which is QEMU's working directory: by relative names sun_path's 108 bytes are always enough.
inline constexpr std::string_view kQmpSocket = "qmp.sock";
inline constexpr std::string_view kConsoleSocket = "console.sock";
inline constexpr std::string_view kQemuLog = "qemu.log";
inline constexpr std::string_view kConsoleLog = "console.log";

// A microvm without a kernel passes: it can be kept in the books by somebody who starts it in another way.
// Errors   InvalidArgument naming argument, value and what is allowed.
void check_qemu_config(const lifecycle::VmConfig& config);

// `incoming`: the QEMU waits for migrate-incoming. Requires check_qemu_config() passed.
// Errors   InvalidArgument: a microvm without a kernel, or a program whose name does not begin with "qemu".
std::vector<std::string> qemu_argv(const lifecycle::VmRecord& vm, const system::Path& binary, const QemuHost& host,
                                   const std::optional<QemuIncoming>& incoming = {});

// True if a VM of this configuration can have had that machine type, by its exact name.
bool is_saved_machine(std::string_view machine, const lifecycle::VmConfig& config);

// The name QEMU is given, and known again by.
std::string qemu_name(std::string_view vm_id);

// True if `argv` begins as qemu_argv() begins for this VM id.
bool is_qemu_argv(const std::vector<std::string>& argv, std::string_view vm_id);

}  // namespace cocoon::vmm
