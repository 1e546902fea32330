#pragma once
// What is to go wrong, and when. docs/simulator.md describes the file.

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "simvmm/guest.h"
#include "simvmm/http.h"

namespace cocoon::simvmm {

enum class Deed {
  kDie,
  kHang,
  kRefuse,
  kAnswer,
  kGarbage,
  kClose,
  kSlow,
  kFork,
  kPowerOff,
  kIgnoreSigterm,
  kKeepSocket,
  kNoSocket
};

struct Fault {
  Deed deed = Deed::kDie;
  std::string name;  // "die", as in the file

  // When: at the call-th request of this method and path, from then on if it repeats; or this long after the start; or,
  // with neither, at the start.
  std::optional<std::string> on;  // "PUT /actions"; "*": any
  unsigned call = 1;
  bool repeats = false;
  std::optional<std::chrono::milliseconds> after;

  bool takes_effect = false;  // the request does what it does in any case
  std::optional<int> signal;  // dies of it; else exits with the code
  int exit_code = 1;
  int status = 500;
  std::string body;
  std::size_t bytes = 0;  // of the answer that are sent before the connection closes
  std::chrono::milliseconds time{0};
};

struct Plan {
  std::chrono::milliseconds tick{1000};
  bool guest_ignores_requests = false;
  std::vector<Fault> faults;
};

// The message names what in the file is wrong, and what is allowed.
struct PlanError {
  std::string message;
};

// Errors PlanError
Plan parse_plan(std::string_view text);
// $COCOON_SIMVMM_FAULTS (a path, or the text itself), else simvmm.json in the working directory, else <argv0>.json;
// with none of them, nothing goes wrong. Errors PlanError
Plan load_plan(const std::string& argv0);

// The plan as it is being carried out.
class Faults {
 public:
  explicit Faults(Plan plan);
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  [[nodiscard]] const Plan& plan() const { return plan_; }
  // One that holds from the start; null if there is none.
  [[nodiscard]] const Fault* at_start(Deed deed) const;
  // Counts the request. The first in the file that it is the turn of, or null.
  const Fault* on_request(const Request& request);
  [[nodiscard]] std::optional<Clock::time_point> next() const;
  // One whose time has come, each once; null if there is none.
  const Fault* take_due(Clock::time_point now);

 private:
  struct Watched {
    const Fault* fault;
    unsigned seen = 0;
  };
  Plan plan_;
  Clock::time_point start_ = Clock::now();
  std::vector<Watched> watched_;
  std::vector<const Fault*> timed_;
};

}  // namespace cocoon::simvmm
