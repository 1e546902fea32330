#pragma once
// Firecracker as a driver: KVM only, one serial console, disks and a vsock on virtio-mmio. Control through its REST
// API, see its docs/ and src/firecracker/swagger/firecracker.yaml.

#include "cocoon/vmm/driver.h"

namespace cocoon::vmm {

class Firecracker final : public Driver {
 public:
  [[nodiscard]] std::string_view hypervisor() const override { return "firecracker"; }
  [[nodiscard]] std::string_view program() const override { return "firecracker"; }

  void check(const lifecycle::VmConfig& config) const override;
  [[nodiscard]] Command command(const lifecycle::VmRecord& vm, const system::Path& binary) const override;
  [[nodiscard]] std::vector<std::string> runtime_files() const override;
  [[nodiscard]] system::Path api_socket(const lifecycle::VmRecord& vm) const override;
  // A fifo: Firecracker's stdin. Its stdout is the console's log.
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

  // firecracker_snapshot.cpp: its own snapshots, sparse.
  [[nodiscard]] std::string version(const system::Path& binary) const override;
  [[nodiscard]] SavedState save(const lifecycle::VmRecord& vm, const system::Path& dir,
                                std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  void check_saved(const Saved& saved, const system::Path& binary) const override;
  [[nodiscard]] Command load_command(const lifecycle::VmRecord& vm, const system::Path& binary,
                                     const Saved& saved) const override;
  void load(const lifecycle::VmRecord& vm, const Saved& saved, std::chrono::milliseconds timeout,
            system::Cancel& cancel) const override;
};

}  // namespace cocoon::vmm
