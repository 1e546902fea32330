#pragma once
// QEMU as a driver: machine microvm or q35, KVM where it really runs guests, else TCG. Control through QMP.

#include <functional>

#include "cocoon/vmm/driver.h"
#include "cocoon/vmm/qemu_command.h"

namespace cocoon::vmm {

class Qemu final : public Driver {
 public:
  // `host` is asked at each command(), with the binary; empty: this host is looked at, once per process.
  explicit Qemu(std::function<QemuHost(const system::Path& binary)> host = {});

  [[nodiscard]] std::string_view hypervisor() const override { return "qemu"; }
  [[nodiscard]] std::string_view program() const override { return "qemu-system-x86_64"; }

  void check(const lifecycle::VmConfig& config) const override;
  // Errors   InvalidArgument, see qemu_argv().
  [[nodiscard]] Command command(const lifecycle::VmRecord& vm, const system::Path& binary) const override;
  [[nodiscard]] std::vector<std::string> runtime_files() const override;
  [[nodiscard]] system::Path api_socket(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] system::Path console(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] std::optional<system::Path> console_log(const lifecycle::VmRecord& vm) const override;
  [[nodiscard]] std::optional<system::Path> vsock(const lifecycle::VmRecord& vm) const override;
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
  bool quit(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const override;

  // qemu_snapshot.cpp: memory and devices are one migration stream, the file "memory".
  [[nodiscard]] std::string version(const system::Path& binary) const override;
  [[nodiscard]] SavedState save(const lifecycle::VmRecord& vm, const system::Path& dir,
                                std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  void check_saved(const Saved& saved, const system::Path& binary) const override;
  [[nodiscard]] Command load_command(const lifecycle::VmRecord& vm, const system::Path& binary,
                                     const Saved& saved) const override;
  void load(const lifecycle::VmRecord& vm, const Saved& saved, std::chrono::milliseconds timeout,
            system::Cancel& cancel) const override;

 private:
  std::function<QemuHost(const system::Path& binary)> host_;
};

}  // namespace cocoon::vmm
