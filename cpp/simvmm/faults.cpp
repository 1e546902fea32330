#include "simvmm/faults.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <span>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "simvmm/console.h"
#include "simvmm/json.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm {
namespace {

using namespace std::string_view_literals;

constexpr std::array kSignals{"KILL"sv, "SEGV"sv, "ABRT"sv, "TERM"sv, "SYS"sv};
constexpr std::array kSignalNumbers{SIGKILL, SIGSEGV, SIGABRT, SIGTERM, SIGSYS};
constexpr std::array kMethods{"GET"sv, "PUT"sv, "PATCH"sv, "DELETE"sv};

constexpr Field kDo{"do", Kind::kString, true};
constexpr Field kOn{"on", Kind::kString};
constexpr Field kOnRequired{"on", Kind::kString, true};
constexpr Field kCall{"call", Kind::kU32};
constexpr Field kRepeat{"repeat", Kind::kBool};
constexpr Field kAfter{"after_ms", Kind::kU32};
constexpr Field kAfterRequired{"after_ms", Kind::kU32, true};
constexpr Field kEffect{"effect", Kind::kBool};

constexpr std::array kDieFields{
    kDo, kOn, kCall, kAfter, kEffect, Field{"exit", Kind::kU8}, Field{"signal", Kind::kEnum, false, kSignals}};
constexpr std::array kHangFields{kDo, kOn, kCall, kAfter, kEffect};
constexpr std::array kAnswerFields{
    kDo, kOnRequired, kCall, kRepeat, kEffect, Field{"status", Kind::kU16}, Field{"body", Kind::kString}};
constexpr std::array kGarbageFields{kDo, kOnRequired, kCall, kRepeat, kEffect, Field{"body", Kind::kString}};
constexpr std::array kCloseFields{kDo, kOnRequired, kCall, kRepeat, kEffect, Field{"bytes", Kind::kU32}};
constexpr std::array kSlowFields{kDo, kOn, kCall, kRepeat, Field{"time_ms", Kind::kU32, true}};
constexpr std::array kForkFields{kDo, kOn, kCall, kAfter, Field{"time_ms", Kind::kU32}};
constexpr std::array kPowerOffFields{kDo, kAfterRequired};
constexpr std::array kStartFields{kDo};

struct Known {
  std::string_view name;
  Deed deed;
  std::span<const Field> fields;
};
constexpr std::array<Known, 12> kKnown{{
    {"die", Deed::kDie, kDieFields},
    {"hang", Deed::kHang, kHangFields},
    {"refuse", Deed::kRefuse, kHangFields},
    {"answer", Deed::kAnswer, kAnswerFields},
    {"garbage", Deed::kGarbage, kGarbageFields},
    {"close", Deed::kClose, kCloseFields},
    {"slow", Deed::kSlow, kSlowFields},
    {"fork", Deed::kFork, kForkFields},
    {"power-off", Deed::kPowerOff, kPowerOffFields},
    {"ignore-sigterm", Deed::kIgnoreSigterm, kStartFields},
    {"keep-socket", Deed::kKeepSocket, kStartFields},
    {"no-socket", Deed::kNoSocket, kStartFields},
}};

constexpr std::array kGuestFields{Field{"tick_ms", Kind::kU32}, Field{"ignores_requests", Kind::kBool}};
constexpr Schema kGuest{"guest", kGuestFields, true};
constexpr std::array kPlanFields{Field{.name = "guest", .kind = Kind::kStruct, .schema = &kGuest},
                                 Field{.name = "faults", .kind = Kind::kAny}};
constexpr Schema kPlan{"plan", kPlanFields, true};

// A call of Cloud Hypervisor needs no prefix.
std::string normalized_call(const std::string& call) {
  if (call == "*") return call;
  const std::size_t space = call.find(' ');
  const std::string_view method = std::string_view(call).substr(0, space);
  if (space == std::string::npos || space + 1 == call.size() ||
      std::find(kMethods.begin(), kMethods.end(), method) == kMethods.end()) {
    throw PlanError{
        fmt::format("on: {:?}: it is \"METHOD PATH\" with one of {}, or \"*\"", call, fmt::join(kMethods, ", "))};
  }
  const std::string path = call.substr(space + 1);
  return fmt::format("{} {}{}", method, path.starts_with('/') ? "" : "/api/v1/", path);
}

Fault parse_fault(const Json& value) {
  if (!value.is_object()) throw PlanError{"a fault is an object"};
  const std::string name = string_of(value, "do");
  const auto* const known =
      std::find_if(kKnown.begin(), kKnown.end(), [&](const Known& one) { return one.name == name; });
  if (known == kKnown.end()) {
    std::vector<std::string_view> names;
    std::transform(kKnown.begin(), kKnown.end(), std::back_inserter(names), [](const Known& one) { return one.name; });
    throw PlanError{fmt::format("do: {:?}: there are {}", name, fmt::join(names, ", "))};
  }
  try {
    check_object(value, {"fault", known->fields, true}, "");
  } catch (const JsonError& error) {
    throw PlanError{fmt::format("{}: {}", name, error.text)};
  }

  Fault fault{.deed = known->deed, .name = name};
  if (value.contains("on")) fault.on = normalized_call(string_of(value, "on"));
  if (value.contains("after_ms")) fault.after = std::chrono::milliseconds(number_of(value, "after_ms", 0));
  if (fault.on && fault.after) throw PlanError{fmt::format("{}: on and after_ms exclude each other", name)};
  if (!fault.on && (value.contains("call") || value.contains("repeat") || value.contains("effect"))) {
    throw PlanError{fmt::format("{}: call, repeat and effect need on", name)};
  }
  fault.call = static_cast<unsigned>(number_of(value, "call", 1));
  if (fault.call == 0) throw PlanError{fmt::format("{}: call: 0: the first is 1", name)};
  fault.repeats = bool_of(value, "repeat", false);
  fault.takes_effect = bool_of(value, "effect", false);
  if (value.contains("exit") && value.contains("signal")) {
    throw PlanError{fmt::format("{}: exit and signal exclude each other", name)};
  }
  fault.exit_code = static_cast<int>(number_of(value, "exit", 1));
  if (const std::string signal = string_of(value, "signal"); !signal.empty()) {
    const auto* const at = std::find(kSignals.begin(), kSignals.end(), signal);
    fault.signal = kSignalNumbers.at(static_cast<std::size_t>(at - kSignals.begin()));
  }
  fault.status = static_cast<int>(number_of(value, "status", 500));
  if (fault.status < 200 || fault.status > 599) {
    throw PlanError{fmt::format("{}: status: {}: 200 to 599", name, fault.status)};
  }
  fault.body = string_of(value, "body");
  fault.bytes = number_of(value, "bytes", 0);
  if (fault.bytes > 0 && !fault.takes_effect) {
    throw PlanError{fmt::format("{}: bytes are those of an answer, which there is only with \"effect\": true", name)};
  }
  fault.time = std::chrono::milliseconds(number_of(value, "time_ms", 60000));
  return fault;
}

}  // namespace

Plan parse_plan(std::string_view text) {
  Plan plan;
  Json value;
  try {
    value = parse_object(text, kPlan);
  } catch (const JsonError& error) {
    throw PlanError{error.text};
  }
  const Json& guest = member_of(value, "guest");
  const std::uint64_t tick_ms = number_of(guest, "tick_ms", 1000);
  if (tick_ms == 0) throw PlanError{"guest: tick_ms: 0: at least 1"};
  plan.tick = std::chrono::milliseconds(tick_ms);
  plan.guest_ignores_requests = bool_of(guest, "ignores_requests", false);
  const Json& faults = member_of(value, "faults");
  if (!faults.is_null() && !faults.is_array()) throw PlanError{"faults: a list"};
  for (std::size_t i = 0; i < faults.size(); ++i) {
    try {
      plan.faults.push_back(parse_fault(faults[i]));
    } catch (const PlanError& error) {
      throw PlanError{fmt::format("faults[{}]: {}", i, error.message)};
    }
  }
  return plan;
}

Plan load_plan(const std::string& argv0) {
  const char* const given = ::getenv("COCOON_SIMVMM_FAULTS");
  if (given != nullptr && std::string_view(given).starts_with('{')) {
    try {
      return parse_plan(given);
    } catch (const PlanError& error) {
      throw PlanError{fmt::format("$COCOON_SIMVMM_FAULTS: {}", error.message)};
    }
  }
  std::vector<std::string> paths{"simvmm.json"};
  if (given != nullptr) {
    paths = {given};
  } else if (argv0.find('/') != std::string::npos) {
    paths.push_back(argv0 + ".json");
  }
  for (const std::string& path : paths) {
    try {
      return parse_plan(read_file(path));
    } catch (const SystemError& error) {
      if (error.code != ENOENT || given != nullptr) throw PlanError{fmt::format("{}: {}", path, os_error(error.code))};
    } catch (const PlanError& error) {
      throw PlanError{fmt::format("{}: {}", path, error.message)};
    }
  }
  return {};
}

Faults::Faults(Plan plan) : plan_(std::move(plan)) {
  for (const Fault& fault : plan_.faults) {
    if (fault.on) watched_.push_back({&fault});
    if (fault.after) timed_.push_back(&fault);
  }
}

const Fault* Faults::at_start(Deed deed) const {
  const auto found = std::find_if(plan_.faults.begin(), plan_.faults.end(), [deed](const Fault& fault) {
    return fault.deed == deed && !fault.on && !fault.after;
  });
  return found == plan_.faults.end() ? nullptr : &*found;
}

const Fault* Faults::on_request(const Request& request) {
  const std::string call = fmt::format("{} {}", name_of(request.method), request.path);
  const Fault* hit = nullptr;
  for (Watched& watched : watched_) {
    const Fault& fault = *watched.fault;
    if (*fault.on != "*" && *fault.on != call) continue;
    ++watched.seen;
    const bool turn = fault.repeats ? watched.seen >= fault.call : watched.seen == fault.call;
    if (turn && hit == nullptr) hit = &fault;
  }
  return hit;
}

std::optional<Clock::time_point> Faults::next() const {
  std::optional<Clock::time_point> next;
  for (const Fault* fault : timed_) {
    const Clock::time_point due = start_ + *fault->after;
    if (!next || due < *next) next = due;
  }
  return next;
}

const Fault* Faults::take_due(Clock::time_point now) {
  const auto found =
      std::find_if(timed_.begin(), timed_.end(), [&](const Fault* fault) { return start_ + *fault->after <= now; });
  if (found == timed_.end()) return nullptr;
  const Fault* const fault = *found;
  timed_.erase(found);
  return fault;
}

}  // namespace cocoon::simvmm
