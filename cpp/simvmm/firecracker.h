#pragma once
// Firecracker 1.17, as its API shows it.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "simvmm/json.h"
#include "simvmm/machine.h"

namespace cocoon::simvmm::firecracker {

inline constexpr std::string_view kVersion = "1.17.0-dev";
inline constexpr std::string_view kSnapshotVersion = "11.0.0";

struct Options {
  std::string id = "anonymous-instance";
  std::size_t max_body_bytes = 51200;
  bool pci = false;
  bool guest_ignores_requests = false;
};

// The reason of a 400.
struct Fault {
  std::string message;
  bool ends_process = false;  // a load that got beyond its body
};

class Firecracker final : public Machine {
 public:
  Firecracker(Options options, Log& log, Guest guest);

  [[nodiscard]] std::string_view server_name() const override { return "Firecracker API"; }
  [[nodiscard]] std::size_t max_body_bytes() const override { return options_.max_body_bytes; }
  Answer handle(const Request& request) override;
  [[nodiscard]] Response refusal(int status, std::string_view why) const override;
  std::optional<int> on_guest_end(GuestEnd end) override;
  [[nodiscard]] int exit_code_of_signal(int) const override { return 156; }  // SIGHUP
  void close() override {}                                                   // leaves every file behind

  [[nodiscard]] bool load_failed() const { return load_failed_; }

  // Everything in it, then the start. Errors Fault, JsonError
  void apply_config(const Json& config);

 private:
  enum class State { kNotStarted, kRunning, kPaused };

  // What one method and path does with its body; `id` is what follows the path. Returns the answer's body. Errors Fault
  using Handler = std::function<std::string(const std::string& body, const std::string& id)>;
  struct Route {
    Method method;
    std::string_view path;
    bool has_id;
    Handler handler;
  };
  [[nodiscard]] std::vector<Route> make_routes();
  std::string route(const Request& request);

  void require_not_started() const;
  void require_started() const;
  [[nodiscard]] std::string_view state_name() const;
  [[nodiscard]] Json full_config() const;

  void put_machine_config(const std::string& body);
  void patch_machine_config(const std::string& body);
  void set_machine_config(const Json& changes);
  void put_boot_source(const std::string& body);
  void put_drive(const std::string& body, const std::string& id);
  void patch_drive(const std::string& body, const std::string& id);
  void put_network_interface(const std::string& body, const std::string& id);
  void put_pmem(const std::string& body, const std::string& id);
  void put_balloon(const std::string& body);
  void put_vsock(const std::string& body);
  void put_logger(const std::string& body);
  void put_serial(const std::string& body);
  void put_mmds_config(const std::string& body);
  void put_mmds(const std::string& body);
  std::string balloon_statistics() const;
  void action(const std::string& body);
  void start();
  void patch_vm(const std::string& body);
  void remove_device(Json& devices, std::string_view key, const std::string& id, std::string_view what);
  void require_hot_pluggable() const;

  void create_snapshot(const std::string& body);
  void load_snapshot(const std::string& body);
  void restore(const Json& request);
  [[nodiscard]] std::string command_line() const;

  Options options_;
  State state_ = State::kNotStarted;
  bool configured_ = false;  // something that forbids to load a snapshot
  bool mmds_ready_ = false;
  bool load_failed_ = false;
  Json machine_config_;
  Json boot_source_;
  Json drives_ = Json::array();
  Json interfaces_ = Json::array();
  Json pmem_ = Json::array();
  Json balloon_;
  Json entropy_;
  Json vsock_;
  Json mmds_config_;
  Json mmds_ = Json::object();
  Json memory_hotplug_;
  system::Fd vsock_listener_;
  std::vector<Route> routes_;
};

}  // namespace cocoon::simvmm::firecracker
