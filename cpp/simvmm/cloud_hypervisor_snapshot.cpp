// Cloud Hypervisor's snapshots: a folder of config.json, state.json and memory-ranges. What a restore reads or may edit
// of them is where the real one has it; the memory is always sparse.

#include <sys/stat.h>

#include <algorithm>

#include <fmt/format.h>

#include "simvmm/cloud_hypervisor.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm::cloud_hypervisor {
namespace {

constexpr std::uint64_t kLowMemoryEnd = 3ULL << 30U;
constexpr std::uint64_t kHighMemory = 4ULL << 30U;
constexpr std::string_view kScheme = "file://";

std::vector<std::string> around(std::string_view what, std::string_view of, std::vector<std::string> chain) {
  chain.insert(chain.begin(), {"Error from API", std::string(what), std::string(of)});
  return chain;
}

// The folder that an URL names. Errors Failure, of the last two texts
std::string folder_of(const std::string& url) {
  constexpr std::string_view kCannotSend = "Failed to send migratable component snapshot";
  if (!url.starts_with(kScheme)) {
    throw Failure{500, {std::string(kCannotSend), fmt::format("Could not extract path from URL: {}", url)}};
  }
  std::string folder = url.substr(kScheme.size());
  struct stat status{};
  if (::stat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    throw Failure{500,
                  {std::string(kCannotSend), fmt::format("Destination is not a directory: {}", dump(Json(folder)))}};
  }
  return folder;
}

// "state" of a component's data is JSON within a string.
Json component(const Json& state, Json children = Json::object()) {
  return {{"snapshots", std::move(children)}, {"snapshot_data", {{"state", dump(state)}}}};
}

Json mac_bytes(const std::string& mac) {
  Json bytes = Json::array();
  for (std::size_t at = 0; at + 2 <= mac.size(); at += 3) bytes.push_back(std::stoul(mac.substr(at, 2), nullptr, 16));
  return bytes;
}

// A zone of a shared file keeps its own memory.
bool keeps_own_memory(const Json& config) {
  const Json& zones = member_of(member_of(config, "memory"), "zones");
  return !zones.empty() && std::all_of(zones.begin(), zones.end(), [](const Json& zone) {
    return bool_of(zone, "shared", false) && !member_of(zone, "file").is_null();
  });
}

}  // namespace

Json CloudHypervisor::state_of_devices() const {
  Json devices = Json::object();
  for (const Json& disk : member_of(config_, "disks")) {
    devices[string_of(disk, "id")] = component({{"disk_path", string_of(disk, "path")}, {"acked_features", 0}});
  }
  for (const Json& net : member_of(config_, "net")) {
    const std::string mac = string_of(net, "mac", "02:00:00:00:00:01");
    devices[string_of(net, "id")] =
        component({{"acked_features", 0},
                   {"config", {{"mac", mac_bytes(mac)}, {"status", 0}, {"max_virtqueue_pairs", 1}, {"mtu", 0}}},
                   {"queue_size", {member_of(net, "queue_size"), member_of(net, "queue_size")}}});
  }
  if (const Json& vsock = member_of(config_, "vsock"); !vsock.is_null()) {
    devices[string_of(vsock, "id")] = component({{"acked_features", 0}, {"connections", Json::array()}});
  }
  return devices;
}

Json CloudHypervisor::saved_state() const {
  const std::uint64_t bytes = memory_bytes(config_);
  Json ranges = Json::array();
  Json mappings = Json::array();
  const bool own = keeps_own_memory(config_);
  const std::string zone = [&] {
    const Json& zones = member_of(member_of(config_, "memory"), "zones");
    return zones.empty() ? "mem0" : string_of(zones.front(), "id");
  }();
  const auto add = [&](std::uint64_t gpa, std::uint64_t length) {
    if (!own) ranges.push_back({{"gpa", gpa}, {"length", length}});
    mappings.push_back({{"slot", mappings.size()},
                        {"gpa", gpa},
                        {"size", length},
                        {"zone_id", zone},
                        {"virtio_mem", false},
                        {"file_offset", 0}});
  };
  add(0, std::min(bytes, kLowMemoryEnd));
  if (bytes > kLowMemoryEnd) add(kHighMemory, bytes - kLowMemoryEnd);

  const Json memory{{"memory_ranges", {{"data", ranges}}},
                    {"guest_ram_mappings", mappings},
                    {"boot_ram", bytes},
                    {"current_ram", bytes}};
  const Json device_manager{{"device_tree", device_tree()}, {"device_id_cnt", device_counter_}};
  return {{"snapshots",
           {{"cpu-manager", component(Json::object())},
            {"device-manager", component(device_manager, state_of_devices())},
            {"memory-manager", component(memory)}}},
          {"snapshot_data", {{"state", dump(Json{{"clock", nullptr}})}}}};
}

void CloudHypervisor::snapshot(const std::string& body) {
  const std::string url = string_of(parse_object(body, kSnapshot), "destination_url");
  constexpr std::string_view kWhat = "The VM could not be snapshotted";
  require_running(kWhat);
  if (state_ == State::kRunning) {
    throw Failure{500, around(kWhat, "Cannot snapshot VM",
                              {"Failed to snapshot migratable component", "Trying to snapshot while VM is running"})};
  }
  constexpr std::string_view kCannotSend = "Cannot send VM snapshot";
  std::string_view step = "Error creating VM config snapshot file";
  try {
    const std::string folder = folder_of(url);
    write_file(folder + "/config.json", dump(config_), 0600, true);
    step = "Error creating VM state snapshot file";
    write_file(folder + "/state.json", dump(saved_state()), 0600, true);
    step = "Error creating VM memory snapshot file";
    if (!keeps_own_memory(config_)) {
      write_memory(folder + "/memory-ranges", memory_bytes(config_), 0600, false, true, guest_.memory());
    } else {
      write_memory(string_of(member_of(member_of(config_, "memory"), "zones").front(), "file"), memory_bytes(config_),
                   0600, true, false, guest_.memory());
    }
  } catch (const Failure& failure) {
    throw Failure{failure.status, around(kWhat, kCannotSend, failure.chain)};
  } catch (const SystemError& error) {
    throw Failure{500,
                  around(kWhat, kCannotSend,
                         {"Failed to send migratable component snapshot", std::string(step), os_error(error.code)})};
  }
}

void CloudHypervisor::restore(const Json& request) {
  constexpr std::string_view kWhat = "The VM could not be restored";
  if (state_ != State::kNone) throw Failure{500, {"Error from API", std::string(kWhat), "VM is already created"}};
  constexpr std::string_view kCannot = "Cannot restore VM";
  std::string folder;
  try {
    folder = folder_of(string_of(request, "source_url"));
  } catch (const Failure& failure) {
    throw Failure{failure.status, around(kWhat, kCannot, failure.chain)};
  }

  constexpr std::string_view kCannotReceive = "Failed to receive migratable component snapshot";
  const auto read = [&](std::string_view name, std::string_view called) {
    const std::string path = fmt::format("{}/{}", folder, name);
    try {
      return parse_json(read_file(path));
    } catch (const SystemError& error) {
      throw Failure{500, around(kWhat, kCannot,
                                {std::string(kCannotReceive),
                                 fmt::format("Error opening VM {} snapshot file {}", called, dump(Json(path))),
                                 os_error(error.code)})};
    } catch (const JsonError& error) {
      throw Failure{500, around(kWhat, kCannot,
                                {std::string(kCannotReceive), fmt::format("Error deserialising VM {} snapshot", called),
                                 error.text})};
    }
  };
  const Json config = read("config.json", "config");
  if (bool_of(request, "prefault", false) && string_of(request, "memory_restore_mode") == "OnDemand") {
    throw Failure{400, around(kWhat, "Failed to validate config",
                              {"'prefault' cannot be combined with 'memory_restore_mode=ondemand'"})};
  }
  const Json state = read("state.json", "state");
  try {
    check_object(config, kVmConfig, " at line 1 column 2");
    if (!member_of(state, "snapshots").is_object()) throw JsonError{"missing field `snapshots` at line 1 column 2"};
  } catch (const JsonError& error) {
    throw Failure{500, around(kWhat, kCannot,
                              {std::string(kCannotReceive), "Error deserialising VM state snapshot", error.text})};
  }

  config_ = complete(config);
  state_ = State::kCreated;
  try {
    open_consoles();
    const Json& zones = member_of(member_of(config_, "memory"), "zones");
    Guest::Memory memory;
    try {
      const std::string zone_file = zones.empty() ? std::string() : string_of(zones.front(), "file");
      // A file that is too short is accepted, as it is by the real one: the rest reads as zeros.
      memory = read_memory(zone_file.empty() ? folder + "/memory-ranges" : zone_file);
    } catch (const SystemError& error) {
      throw Failure{500, {"Memory manager error", "Error opening snapshot file", os_error(error.code)}};
    }
    had_vm_ = true;
    name_devices(config_, device_counter_);
    open_devices();
    guest_.restore(memory);
  } catch (Failure& failure) {
    // There is no VM again, and another restore may be tried; but after one that found no memory the console's socket
    // is in its way.
    end_guest();
    config_ = nullptr;
    state_ = State::kNone;
    if (!fatal_) failure.chain.insert(failure.chain.begin(), {"Error from API", std::string(kWhat)});
    throw;
  }
  const bool resume = bool_of(request, "resume", false);
  if (resume) guest_.run();
  state_ = resume ? State::kRunning : State::kPaused;
}

}  // namespace cocoon::simvmm::cloud_hypervisor
