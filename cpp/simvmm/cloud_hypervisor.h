#pragma once
// Cloud Hypervisor 54, as its API shows it.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/system/fd.h"

#include "simvmm/cloud_hypervisor_config.h"
#include "simvmm/json.h"
#include "simvmm/machine.h"

namespace cocoon::simvmm::cloud_hypervisor {

inline constexpr std::string_view kVersion = "54.0.0";
inline constexpr std::string_view kBuildVersion = "v53.0-246-gae44c2971-dirty";

struct Options {
  bool exits_with_guest = true;  // without --no-shutdown
  bool guest_ignores_requests = false;
};

class CloudHypervisor final : public Machine {
 public:
  CloudHypervisor(Options options, Log& log, Guest guest) : Machine(log, std::move(guest)), options_(options) {}

  [[nodiscard]] std::string_view server_name() const override { return "Cloud Hypervisor API"; }
  [[nodiscard]] std::size_t max_body_bytes() const override { return 4194304; }
  Answer handle(const Request& request) override;
  [[nodiscard]] Response refusal(int status, std::string_view why) const override;
  std::optional<int> on_guest_end(GuestEnd end) override;
  [[nodiscard]] int exit_code_of_signal(int) const override { return 0; }
  void close() override { end_guest(); }
  // It left as a panic does, and with it its API socket.
  [[nodiscard]] bool is_broken() const { return fatal_; }

  // Errors   Failure, JsonError
  void create(const Json& config);
  void boot();
  void restore(const Json& request);

 private:
  enum class State { kNone, kCreated, kRunning, kPaused };

  struct Disk {
    std::string id;
    system::Fd lock;
  };

  // Each returns the answer's body. Errors Failure, JsonError
  std::string route(const Request& request);
  std::string get(std::string_view call);
  std::string put(std::string_view call, const std::string& body);
  void put_plain(std::string_view call);
  [[nodiscard]] std::string info() const;
  void shutdown();
  void reboot();
  void restart_guest();
  void pause();
  void resume();
  std::string add_device(const DeviceKind& kind, const std::string& body);
  void remove_device(const std::string& body);
  void resize(const std::string& body);
  void snapshot(const std::string& body);

  [[nodiscard]] bool is_booted() const { return state_ == State::kRunning || state_ == State::kPaused; }
  void require_running(std::string_view what) const;  // booted, that is
  void check_memory() const;
  void check_payload() const;
  void open_consoles();
  void open_devices();
  void open_disk(const Json& disk);
  void lock_disks();
  void open_vsock(const Json& vsock);
  // The guest and its devices are gone, the config stays.
  void end_guest();
  [[nodiscard]] Json device_tree() const;
  [[nodiscard]] std::string bdf_of(std::size_t slot) const;
  [[nodiscard]] std::vector<std::string> device_ids() const;
  [[nodiscard]] Json state_of_devices() const;
  [[nodiscard]] Json saved_state() const;
  void start_guest(bool running);

  Options options_;
  State state_ = State::kNone;
  Json config_;
  unsigned device_counter_ = 0;
  bool has_consoles_ = false;
  bool had_vm_ = false;     // its memory was there: from then on its end removes the console's socket
  Console unused_console_;  // the one of the two that the guest does not print on
  std::vector<Disk> disks_;
  system::Fd vsock_listener_;
  std::string vsock_path_;
  std::vector<std::string> ejecting_;  // removed, not yet let go by the guest
  bool fatal_ = false;                 // the VMM's thread is gone: it exits once it has answered
};

}  // namespace cocoon::simvmm::cloud_hypervisor
