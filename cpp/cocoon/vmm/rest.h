#pragma once
// Calls of a VMM's REST API: JSON both ways. What it refuses becomes a VmmError in its own words.

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/system/http.h"

namespace cocoon::vmm {

class Rest {
 public:
  // As HttpSession.
  Rest(const system::Path& socket, std::size_t max_body, std::chrono::milliseconds timeout, system::Cancel& cancel)
      : http_(socket, max_body, timeout, cancel) {}

  // Errors   VmmError: refused (`status` and `body` are its answer), not to be reached, or nonsense. VmmTimeout,
  //          Cancelled. InvalidArgument: what is sent is too long, or not UTF-8.
  nlohmann::json get(std::string_view target);
  // nullopt: 404. Errors as above.
  std::optional<nlohmann::json> find(std::string_view target);
  void put(std::string_view target, const nlohmann::json& body);
  void put(std::string_view target);
  void patch(std::string_view target, const nlohmann::json& body);

 private:
  system::HttpAnswer call(std::string_view method, std::string_view target, const std::string& body,
                          bool may_be_missing = false);
  system::HttpSession http_;
};

// JSON text for a request. Errors InvalidArgument: it holds text that is not UTF-8, which JSON cannot say.
std::string to_json_text(const nlohmann::json& value);

// A text member of what a VMM answered. Errors VmmError: it is not there.
std::string text_member(const nlohmann::json& object, const char* member);

// Whether "1.17.0-dev" is "major.minor" or newer. False also for what is no version.
bool is_version_at_least(const std::string& version, int major, int minor);

// Refuses a VMM older than "major.minor": what we send would be misunderstood, not refused. `version` is what it says
// of itself, such as "1.17.0-dev". Errors VmmError.
void require_version(std::string_view program, const std::string& version, int major, int minor);

}  // namespace cocoon::vmm
