#include "simvmm/cloud_hypervisor.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace cocoon::simvmm::cloud_hypervisor {
namespace {

constexpr std::string_view kPrefix = "/api/v1/";

Response answer_of(int status, const std::vector<std::string>& chain) {
  return {.status = status, .body = dump(Json(chain))};
}

// The frame around what an operation found. Never returns.
[[noreturn]] void wrap(std::string_view what, Failure failure) {
  failure.chain.insert(failure.chain.begin(), {"Error from API", std::string(what)});
  throw failure;
}

[[noreturn]] void fail(int status, std::string_view what, std::string_view why) {
  throw Failure{status, {"Error from API", std::string(what), std::string(why)}};
}

[[noreturn]] void bad_request() { throw Failure{400, {"Bad Request"}}; }

// Whether this is a call at all, and which methods it takes.
enum class CallKind { kUnknown, kGet, kPutPlain, kPutBody };

CallKind kind_of(std::string_view call) {
  static constexpr std::string_view kGets[] = {"vmm.ping", "vm.info", "vm.counters"};
  static constexpr std::string_view kPlain[] = {"vm.boot",   "vm.delete",       "vm.shutdown",  "vm.reboot", "vm.pause",
                                                "vm.resume", "vm.power-button", "vmm.shutdown", "vm.nmi"};
  static constexpr std::string_view kWithBody[] = {"vm.create",   "vm.snapshot", "vm.restore", "vm.remove-device",
                                                   "vm.resize",   "vm.add-disk", "vm.add-net", "vm.add-fs",
                                                   "vm.add-pmem", "vm.add-vsock"};
  const auto has = [&](const auto& calls) {
    return std::find(std::begin(calls), std::end(calls), call) != std::end(calls);
  };
  if (has(kGets)) return CallKind::kGet;
  if (has(kPlain)) return CallKind::kPutPlain;
  return has(kWithBody) ? CallKind::kPutBody : CallKind::kUnknown;
}

}  // namespace

Answer CloudHypervisor::handle(const Request& request) {
  Answer answer;
  try {
    const std::string body = route(request);
    answer.response = {.status = body.empty() ? 204 : 200, .body = body};
  } catch (const Failure& failure) {
    answer.response = failure.chain.empty() ? Response{.status = failure.status, .body = {}}
                                            : answer_of(failure.status, failure.chain);
    if (failure.status >= 500) {
      log().write(Level::kError, "vmm", fmt::format("{}", dump(Json(failure.chain))));
    }
  } catch (const JsonError& error) {
    answer.response = answer_of(400, {"Failed to deserialize JSON", error.text});
  }
  if (fatal_) {
    log().write(Level::kError, "main", "Fatal error: ThreadJoin(Any { .. })");
    answer.exit_code = 1;
  }
  if (request.method == Method::kPut && request.path == "/api/v1/vmm.shutdown" && answer.response.status == 204) {
    answer.response.status = 200;
    answer.exit_code = 0;
  }
  return answer;
}

Response CloudHypervisor::refusal(int status, std::string_view why) const {
  return answer_of(status, {"Error from API", std::string(why)});
}

std::string CloudHypervisor::route(const Request& request) {
  if (!request.path.starts_with(kPrefix)) throw Failure{404, {"Not Found"}};
  const std::string_view call = std::string_view(request.path).substr(kPrefix.size());
  const CallKind kind = kind_of(call);
  if (kind == CallKind::kUnknown) throw Failure{404, {"Not Found"}};
  switch (request.method) {
    case Method::kGet:
      if (kind != CallKind::kGet) bad_request();
      return get(call);
    case Method::kPut:
      if (kind == CallKind::kGet || (kind == CallKind::kPutPlain && !request.body.empty())) bad_request();
      if (kind == CallKind::kPutBody && request.body.empty()) {
        if (call == "vm.create") throw Failure{400, {}};
        bad_request();
      }
      return put(call, request.body);
    case Method::kPatch:
    case Method::kDelete:
      throw Failure{400, {}};
  }
  return {};
}

std::string CloudHypervisor::get(std::string_view call) {
  if (call == "vmm.ping") {
    return dump(Json{{"build_version", kBuildVersion},
                     {"version", kVersion},
                     {"pid", ::getpid()},
                     {"features", {"io_uring", "kvm"}}});
  }
  if (call == "vm.info") return info();
  require_running("The VM info is not available");
  return "{}";
}

std::string CloudHypervisor::put(std::string_view call, const std::string& body) {
  if (const DeviceKind* kind = device_kind(call)) return add_device(*kind, body);
  if (body.empty()) {
    put_plain(call);
  } else if (call == "vm.create") {
    create(parse_object(body, kVmConfig));
  } else if (call == "vm.snapshot") {
    snapshot(body);
  } else if (call == "vm.restore") {
    restore(parse_object(body, kRestore));
  } else if (call == "vm.remove-device") {
    remove_device(body);
  } else {
    resize(body);
  }
  return {};
}

void CloudHypervisor::put_plain(std::string_view call) {
  if (call == "vm.boot") {
    boot();
  } else if (call == "vm.delete") {
    end_guest();
    config_ = nullptr;
    state_ = State::kNone;
  } else if (call == "vm.shutdown") {
    shutdown();
  } else if (call == "vm.reboot") {
    reboot();
  } else if (call == "vm.pause") {
    pause();
  } else if (call == "vm.resume") {
    resume();
  } else if (call == "vm.power-button") {
    require_running("Error triggering power button");
    guest_.request_shutdown("power-button");
  } else if (call == "vm.nmi") {
    require_running("Error triggering NMI");
  }
}

std::string CloudHypervisor::info() const {
  if (state_ == State::kNone) fail(404, "The VM info is not available", "VM is not created");
  const std::string_view state = state_ == State::kCreated   ? "Created"
                                 : state_ == State::kRunning ? "Running"
                                                             : "Paused";
  Json result{{"config", config_}, {"state", state}, {"memory_actual_size", memory_bytes(config_)}};
  if (is_booted()) result["device_tree"] = device_tree();
  return dump(result);
}

void CloudHypervisor::require_running(std::string_view what) const {
  if (!is_booted()) fail(500, what, "VM is not running");
}

void CloudHypervisor::create(const Json& config) {
  constexpr std::string_view kWhat = "The VM could not be created";
  if (state_ != State::kNone) fail(500, kWhat, "VM is already created");
  config_ = complete(config);
  device_counter_ = 0;
  state_ = State::kCreated;
  // Of a create that fails here, the config stays.
  try {
    open_consoles();
  } catch (const Failure& failure) {
    if (fatal_) throw;
    wrap(kWhat, failure);
  }
}

void CloudHypervisor::boot() {
  constexpr std::string_view kWhat = "The VM could not boot";
  if (state_ == State::kNone) fail(404, kWhat, "VM config is missing");
  if (is_booted()) fail(500, kWhat, "VM is already created");
  try {
    if (!has_consoles_) open_consoles();
    validate(config_);
    check_memory();
    had_vm_ = true;
    check_payload();
    name_devices(config_, device_counter_);
    open_devices();
  } catch (const Failure& failure) {
    disks_.clear();
    wrap(kWhat, failure);
  }
  start_guest(true);
}

void CloudHypervisor::start_guest(bool running) {
  guest_.boot(memory_bytes(config_) >> 20U, string_of(member_of(config_, "payload"), "cmdline"),
              options_.guest_ignores_requests);
  if (!running) guest_.pause();
  state_ = running ? State::kRunning : State::kPaused;
}

void CloudHypervisor::shutdown() {
  require_running("The VM could not shutdown");
  end_guest();
  state_ = State::kCreated;
}

void CloudHypervisor::reboot() {
  constexpr std::string_view kWhat = "The VM could not reboot";
  if (!is_booted()) fail(404, kWhat, "VM is not created");
  try {
    restart_guest();
  } catch (const Failure& failure) {
    wrap(kWhat, failure);
  }
}

// All of it anew: whoever was connected to the console is not any more.
void CloudHypervisor::restart_guest() {
  end_guest();
  state_ = State::kCreated;
  open_consoles();
  had_vm_ = true;
  open_devices();
  start_guest(true);
}

void CloudHypervisor::pause() {
  constexpr std::string_view kWhat = "The VM could not be paused";
  require_running(kWhat);
  if (state_ == State::kPaused) {
    wrap(kWhat, {500,
                 {"Cannot pause VM", "Failed to pause migratable component",
                  "Invalid transition: InvalidStateTransition(Paused, Paused)"}});
  }
  guest_.pause();
  state_ = State::kPaused;
}

void CloudHypervisor::resume() {
  constexpr std::string_view kWhat = "The VM could not resume";
  require_running(kWhat);
  if (state_ == State::kRunning) {
    wrap(kWhat, {500,
                 {"Cannot resume VM", "Failed to resume migratable component",
                  "Invalid transition: InvalidStateTransition(Running, Running)"}});
  }
  guest_.run();
  state_ = State::kRunning;
}

std::optional<int> CloudHypervisor::on_guest_end(GuestEnd end) {
  switch (end) {
    case GuestEnd::kPowerOff:
      if (options_.exits_with_guest) return 0;
      end_guest();
      state_ = State::kCreated;
      return std::nullopt;
    case GuestEnd::kTripleFault:
      log().write(Level::kError, "vcpu0", "Guest likely triple-faulted");
      [[fallthrough]];
    case GuestEnd::kReset:
      // It boots again within the same process, and nobody is told.
      try {
        restart_guest();
      } catch (const Failure& failure) {
        log().write(Level::kError, "vmm", fmt::format("VM reboot failed: {}", dump(Json(failure.chain))));
        return 1;
      }
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace cocoon::simvmm::cloud_hypervisor
