#pragma once
// QEMU: one process per VM, configured by its command line and spoken to by QMP over a UNIX socket.
//
// The run dir is the working directory, so every socket has a short relative name. The guest is held back with -S
// until boot(): a VMM that answers `prelaunch` was never let run. A guest that resets ends its VMM, as under
// Firecracker: each boot is one interval.
// Source   QEMU's "QEMU QMP Reference Manual" and qemu-system-x86_64(1), 7.2.

#include "cocoon/vmm/driver.h"

namespace cocoon::vmm {

class Qemu final : public Driver {
 public:
  [[nodiscard]] std::string_view hypervisor() const override { return "qemu"; }
  [[nodiscard]] std::string_view program() const override { return "qemu-system-x86_64"; }
  void check(const lifecycle::VmConfig& config) const override;
  [[nodiscard]] Command command(const lifecycle::VmRecord& vm, const system::Path& binary) const override;
  [[nodiscard]] std::vector<std::string> runtime_files() const override;
  [[nodiscard]] system::Path api_socket(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] system::Path console(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] system::Path console_log(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] system::Path log(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] bool owns(const system::ProcessInfo& process, std::string_view vm_id,
                          const system::Path& run_dir) const override;
  void boot(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  [[nodiscard]] GuestState guest_state(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                                       system::Cancel& cancel) const override;
  void pause(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  void resume(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  void request_power_off(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                         system::Cancel& cancel) const override;
  void quit(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
};

}  // namespace cocoon::vmm
