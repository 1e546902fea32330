#pragma once
// What the lifecycle's tests share.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/transition.h"

namespace cocoon::lifecycle {

inline testing::AssertionResult contains(std::string_view text, std::string_view part) {
  if (text.find(part) != std::string_view::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "\"" << text << "\" does not contain \"" << part << "\"";
}

// The class of what `action` throws and its message: "InvalidState: …"; "" if it throws nothing.
inline std::string error_of(const std::function<void()>& action) {
  const auto told = [](const char* name, const Error& error) { return std::string(name) + ": " + error.what(); };
  try {
    action();
  } catch (const NotFound& error) {
    return told("NotFound", error);
  } catch (const AlreadyExists& error) {
    return told("AlreadyExists", error);
  } catch (const InvalidState& error) {
    return told(("InvalidState[" + error.state + "]").c_str(), error);
  } catch (const InvalidArgument& error) {
    return told("InvalidArgument", error);
  } catch (const Error& error) {
    return told("Error", error);
  }
  return "";
}

// "vm.compute.stop stop-crash"
inline std::string summary(const metering::Entry& entry) {
  std::string text(metering::to_string(entry.kind));
  if (entry.reason) text += " " + std::string(metering::to_string(*entry.reason));
  return text;
}

inline std::vector<std::string> summaries(const std::vector<metering::Entry>& entries) {
  std::vector<std::string> all;
  all.reserve(entries.size());
  for (const auto& entry : entries) all.push_back(summary(entry));
  return all;
}

inline Instant instant(std::int64_t uptime_ns, std::string boot_id = "boot0001") {
  return {1'700'000'000'000'000'000 + uptime_ns, uptime_ns, std::move(boot_id)};
}

}  // namespace cocoon::lifecycle
