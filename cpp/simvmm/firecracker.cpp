#include "simvmm/firecracker.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "simvmm/firecracker_schema.h"

namespace cocoon::simvmm::firecracker {
namespace {

constexpr std::string_view kBeforeStart = "The requested operation is not supported before starting the microVM.";
constexpr std::string_view kAfterStart = "The requested operation is not supported after starting the microVM.";
constexpr std::string_view kNotFound = "Failed perform action on device: Device not found";

bool is_resource_id(std::string_view id) {
  return std::all_of(id.begin(), id.end(), [](char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

std::string_view without_trailing_slash(std::string_view path) {
  if (path.ends_with('/')) path.remove_suffix(1);
  return path;
}

// As its log calls the method.
std::string capitalized(std::string_view name) {
  std::string text(name);
  std::transform(text.begin() + 1, text.end(), text.begin() + 1, [](char c) { return static_cast<char>(c | 0x20); });
  return text;
}

}  // namespace

Firecracker::Firecracker(Options options, Log& log, Guest guest)
    : Machine(log, std::move(guest)), options_(std::move(options)) {
  machine_config_ = {
      {"vcpu_count", 1}, {"mem_size_mib", 128}, {"smt", false}, {"track_dirty_pages", false}, {"huge_pages", "None"}};
  console_ = Console::stdio();
  routes_ = make_routes();
}

Answer Firecracker::handle(const Request& request) {
  log().write(Level::kInfo, "fc_api",
              request.body.empty()
                  ? fmt::format("The API server received a {} request on \"{}\".", capitalized(name_of(request.method)),
                                request.path)
                  : fmt::format("The API server received a {} request on \"{}\" with body {}.",
                                capitalized(name_of(request.method)), request.path, dump(Json(request.body))));
  try {
    const std::string body = route(request);
    const int status = body.empty() ? 204 : 200;
    log().write(Level::kInfo, "fc_api",
                fmt::format("The request was executed successfully. Status code: {}.",
                            status == 204 ? "204 No Content" : "200 OK"));
    return {.response = {.status = status, .body = body}};
  } catch (const Fault& fault) {
    log().write(Level::kError, "fc_api",
                fmt::format("Received Error. Status code: 400 Bad Request. Message: {}", fault.message));
    Answer answer{.response = refusal(400, fault.message)};
    if (fault.ends_process) {
      log().write(Level::kError, "main", "RunWithApiError error: Failed to build MicroVM: Loading snapshot failed..");
      log().write(Level::kError, "main", "Firecracker exiting with error. exit_code=1");
      answer.exit_code = 1;
      load_failed_ = true;
    }
    return answer;
  } catch (const JsonError& error) {
    const std::string message =
        fmt::format("An error occurred when deserializing the json body of a request: {}.", error.text);
    log().write(Level::kError, "fc_api", message);
    return {.response = refusal(400, message)};
  }
}

Response Firecracker::refusal(int status, std::string_view why) const {
  return {.status = status, .body = dump(Json{{"fault_message", why}})};
}

std::string Firecracker::route(const Request& request) {
  std::string_view path = request.path;
  if (path.starts_with('/')) path.remove_prefix(1);
  const std::string_view named = path;
  while (path.starts_with('/')) path.remove_prefix(1);
  path = without_trailing_slash(path);

  const bool has_body = !request.body.empty();
  if (request.method == Method::kGet && has_body) throw Fault{"GET request cannot have a body."};
  if (request.method == Method::kPut && !has_body) throw Fault{"Empty PUT request."};
  if (request.method == Method::kPatch && !has_body) throw Fault{"Empty PATCH request."};
  for (const Route& route : routes_) {
    if (route.method != request.method) continue;
    if (path == route.path) {
      if (route.has_id) throw Fault{"The ID cannot be empty."};
      return route.handler(request.body, {});
    }
    if (!route.has_id || !path.starts_with(route.path) || path[route.path.size()] != '/') continue;
    const std::string id(path.substr(route.path.size() + 1));
    if (id.find('/') != std::string::npos) continue;
    if (!is_resource_id(id)) {
      throw Fault{"API Resource IDs can only contain alphanumeric characters and underscores."};
    }
    return route.handler(request.body, id);
  }
  throw Fault{fmt::format("Invalid request method and/or path: {} {}.", name_of(request.method), named)};
}

std::vector<Firecracker::Route> Firecracker::make_routes() {
  // What answers 204, with and without an id.
  const auto plain = [this](void (Firecracker::*member)(const std::string&)) -> Handler {
    return [this, member](const std::string& body, const std::string&) {
      (this->*member)(body);
      return std::string();
    };
  };
  const auto with_id = [this](void (Firecracker::*member)(const std::string&, const std::string&)) -> Handler {
    return [this, member](const std::string& body, const std::string& id) {
      (this->*member)(body, id);
      return std::string();
    };
  };
  const auto shown = [](auto value) -> Handler {
    return [value](const std::string&, const std::string&) { return dump(value()); };
  };
  const auto checked = [](const Schema& schema, auto then) -> Handler {
    return [&schema, then](const std::string& body, const std::string&) {
      then(parse_object(body, schema));
      return std::string();
    };
  };
  const auto removes = [this](Json& devices, std::string_view key, std::string_view what) -> Handler {
    return [this, &devices, key, what](const std::string&, const std::string& id) {
      remove_device(devices, key, id, what);
      return std::string();
    };
  };
  const auto before_start = [this](std::function<void(const Json&)> then) {
    return [this, then](const Json& body) {
      require_not_started();
      then(body);
    };
  };
  const auto after_start = [this](std::string_view refusal) {
    return [this, refusal](const Json&) {
      require_started();
      throw Fault{std::string(refusal)};
    };
  };

  return {
      {Method::kGet, "", false, shown([this] {
         return Json{
             {"id", options_.id}, {"state", state_name()}, {"vmm_version", kVersion}, {"app_name", "Firecracker"}};
       })},
      {Method::kGet, "version", false, shown([] { return Json{{"firecracker_version", kVersion}}; })},
      {Method::kGet, "vm/config", false, shown([this] { return full_config(); })},
      {Method::kGet, "machine-config", false, shown([this] { return machine_config_; })},
      {Method::kGet, "mmds", false, shown([this] { return mmds_; })},
      {Method::kGet, "balloon", false, shown([this] {
         if (balloon_.is_null()) throw Fault{"Balloon config error: No balloon device found."};
         return balloon_;
       })},
      {Method::kGet, "balloon/statistics", false,
       [this](const std::string&, const std::string&) { return balloon_statistics(); }},
      {Method::kGet, "hotplug/memory", false, shown([this]() -> Json {
         require_started();
         throw Fault{fmt::format("Internal VMM error: {}", kNotFound)};
       })},

      {Method::kPut, "actions", false, plain(&Firecracker::action)},
      {Method::kPut, "balloon", false, plain(&Firecracker::put_balloon)},
      {Method::kPut, "boot-source", false, plain(&Firecracker::put_boot_source)},
      {Method::kPut, "cpu-config", false,
       [this](const std::string& body, const std::string&) {
         parse_json(body);
         require_not_started();
         return std::string();
       }},
      {Method::kPut, "drives", true, with_id(&Firecracker::put_drive)},
      {Method::kPut, "entropy", false, checked(kEntropy, before_start([this](const Json& body) {
                                                 entropy_ = {{"rate_limiter", member_of(body, "rate_limiter")}};
                                                 configured_ = true;
                                               }))},
      {Method::kPut, "hotplug/memory", false, checked(kMemoryHotplug, before_start([this](const Json& body) {
                                                        memory_hotplug_ = {
                                                            {"total_size_mib", number_of(body, "total_size_mib", 0)},
                                                            {"block_size_mib", number_of(body, "block_size_mib", 2)},
                                                            {"slot_size_mib", number_of(body, "slot_size_mib", 128)}};
                                                        configured_ = true;
                                                      }))},
      {Method::kPut, "logger", false, plain(&Firecracker::put_logger)},
      {Method::kPut, "machine-config", false, plain(&Firecracker::put_machine_config)},
      {Method::kPut, "metrics", false, checked(kMetrics, before_start([](const Json&) {}))},
      {Method::kPut, "mmds", false, plain(&Firecracker::put_mmds)},
      {Method::kPut, "mmds/config", false, plain(&Firecracker::put_mmds_config)},
      {Method::kPut, "network-interfaces", true, with_id(&Firecracker::put_network_interface)},
      {Method::kPut, "pmem", true, with_id(&Firecracker::put_pmem)},
      {Method::kPut, "serial", false, plain(&Firecracker::put_serial)},
      {Method::kPut, "snapshot/create", false, plain(&Firecracker::create_snapshot)},
      {Method::kPut, "snapshot/load", false, plain(&Firecracker::load_snapshot)},
      {Method::kPut, "vsock", false, plain(&Firecracker::put_vsock)},

      {Method::kPatch, "balloon", false,
       checked(kBalloonUpdate,
               [this](const Json&) {
                 require_started();
                 throw Fault{balloon_.is_null() ? fmt::format("Balloon update error: {}", kNotFound)
                                                : "Balloon update error: Balloon: Device not activated yet."};
               })},
      {Method::kPatch, "balloon/statistics", false,
       checked(kBalloonStatsUpdate,
               after_start("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation."))},
      {Method::kPatch, "drives", true, with_id(&Firecracker::patch_drive)},
      {Method::kPatch, "hotplug/memory", false,
       checked(kMemoryHotplugUpdate,
               after_start("Memory hotplug update error: Failed perform action on device: Device not found"))},
      {Method::kPatch, "machine-config", false, plain(&Firecracker::patch_machine_config)},
      {Method::kPatch, "mmds", false, plain(&Firecracker::put_mmds)},
      {Method::kPatch, "network-interfaces", true,
       checked(kNetworkInterfaceUpdate,
               [this](const Json& body) {
                 require_started();
                 const std::string id = string_of(body, "iface_id");
                 if (std::none_of(interfaces_.begin(), interfaces_.end(),
                                  [&](const Json& known) { return string_of(known, "iface_id") == id; })) {
                   throw Fault{fmt::format("Network config error: Unable to update the net device: {}", kNotFound)};
                 }
               })},
      {Method::kPatch, "vm", false, plain(&Firecracker::patch_vm)},

      {Method::kDelete, "drives", true, removes(drives_, "drive_id", "Drive")},
      {Method::kDelete, "network-interfaces", true, removes(interfaces_, "iface_id", "Network")},
      {Method::kDelete, "pmem", true, removes(pmem_, "id", "Pmem")},
  };
}

std::optional<int> Firecracker::on_guest_end(GuestEnd end) {
  switch (end) {
    case GuestEnd::kPowerOff:
    case GuestEnd::kReset:
      break;
    case GuestEnd::kTripleFault:
      // The real one exits with 0 as often: two of its threads race.
      log().write(Level::kError, "fc_vcpu 0", "Unexpected exit reason on vcpu run: Shutdown");
      log().write(Level::kError, "main", "Firecracker exiting with error. exit_code=1");
      return 1;
  }
  log().write(Level::kInfo, "main", "Vmm is stopping.");
  log().write(Level::kInfo, "main", "Firecracker exiting successfully. exit_code=0");
  return 0;
}

void Firecracker::require_not_started() const {
  if (state_ != State::kNotStarted) throw Fault{std::string(kAfterStart)};
}

void Firecracker::require_started() const {
  if (state_ == State::kNotStarted) throw Fault{std::string(kBeforeStart)};
}

void Firecracker::require_hot_pluggable() const {
  if (state_ != State::kNotStarted && !options_.pci) throw Fault{"PCI is not enabled"};
}

void Firecracker::remove_device(Json& devices, std::string_view key, const std::string& id, std::string_view what) {
  require_started();
  require_hot_pluggable();
  const auto found =
      std::find_if(devices.begin(), devices.end(), [&](const Json& known) { return string_of(known, key) == id; });
  if (found == devices.end()) throw Fault{fmt::format("{} config error: {}", what, kNotFound)};
  devices.erase(found);
}

std::string_view Firecracker::state_name() const {
  switch (state_) {
    case State::kNotStarted:
      return "Not started";
    case State::kRunning:
      return "Running";
    case State::kPaused:
      return "Paused";
  }
  return {};
}

Json Firecracker::full_config() const {
  static const Json kNoBootSource{{"kernel_image_path", ""}, {"initrd_path", nullptr}, {"boot_args", nullptr}};
  return {{"balloon", balloon_},
          {"drives", drives_},
          {"boot-source", boot_source_.is_null() ? kNoBootSource : boot_source_},
          {"cpu-config", nullptr},
          {"logger", nullptr},
          {"machine-config", machine_config_},
          {"metrics", nullptr},
          {"mmds-config", mmds_config_},
          {"network-interfaces", interfaces_},
          {"vsock", vsock_},
          {"entropy", entropy_},
          {"pmem", pmem_},
          {"memory-hotplug", memory_hotplug_}};
}

void Firecracker::action(const std::string& body) {
  const std::string type = string_of(parse_object(body, kAction), "action_type");
  if (type == "InstanceStart") {
    require_not_started();
    start();
    return;
  }
  require_started();
  if (type == "SendCtrlAltDel") {
    // Four bytes each, in the keyboard controller's 16.
    if (guest_.pending_requests() == 4) {
      throw Fault{"Internal VMM error: I8042 error: i8042 internal buffer full."};
    }
    guest_.request_shutdown("ctrl-alt-del");
  }
}

void Firecracker::patch_vm(const std::string& body) {
  const std::string wanted = string_of(parse_object(body, kVm), "state");
  require_started();
  if (wanted == "Paused") {
    guest_.pause();
    state_ = State::kPaused;
  } else {
    guest_.run();
    state_ = State::kRunning;
  }
}

}  // namespace cocoon::simvmm::firecracker
