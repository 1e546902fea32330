#pragma once
// Cloud Hypervisor as a driver: KVM only, kernel or firmware, virtio-pci. Control through its REST API, on a socket
// that we bind and hand over; see its docs/api.md and vmm/src/api/openapi/cloud-hypervisor.yaml.

#include "cocoon/vmm/driver.h"

namespace cocoon::vmm {

class Rest;

class CloudHypervisor final : public Driver {
 public:
  [[nodiscard]] std::string_view hypervisor() const override { return "cloud-hypervisor"; }
  [[nodiscard]] std::string_view program() const override { return "cloud-hypervisor"; }

  void check(const lifecycle::VmConfig& config) const override;
  [[nodiscard]] Command command(const lifecycle::VmRecord& vm, const system::Path& binary) const override;
  [[nodiscard]] std::vector<std::string> runtime_files() const override;
  [[nodiscard]] system::Path api_socket(const lifecycle::VmRecord& vm) const override;
  // A socket. What the guest prints waits in the VMM for its first client (1 MiB at most); nobody logs it.
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

  // cloud_hypervisor_snapshot.cpp: its own snapshots, sparse, and loaded by mapping them where that is known to work.
  [[nodiscard]] std::string version(const system::Path& binary) const override;
  [[nodiscard]] SavedState save(const lifecycle::VmRecord& vm, const system::Path& dir,
                                std::chrono::milliseconds timeout, system::Cancel& cancel) const override;
  void check_saved(const Saved& saved, const system::Path& binary) const override;
  [[nodiscard]] Command load_command(const lifecycle::VmRecord& vm, const system::Path& binary,
                                     const Saved& saved) const override;
  void load(const lifecycle::VmRecord& vm, const Saved& saved, std::chrono::milliseconds timeout,
            system::Cancel& cancel) const override;

 private:
  // Before anything else is said: somebody else's at our socket must not be let run as this VM, nor one that is too
  // old. Returns its version. Errors VmmError.
  std::string check_new(Rest& api, const lifecycle::VmRecord& vm) const;
};

}  // namespace cocoon::vmm
