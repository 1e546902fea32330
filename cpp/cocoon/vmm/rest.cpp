#include "cocoon/vmm/rest.h"

#include <array>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/excerpt.h"

namespace cocoon::vmm {
namespace {

using nlohmann::json;
using system::excerpt;
using system::HttpAnswer;

constexpr int kFirstError = 400;
constexpr int kNotFound = 404;

// Firecracker says {"fault_message": "…"}, Cloud Hypervisor ["outermost", …, "innermost"], both say {"error": "…"} with
// line breaks that are not JSON when they could not parse a request.
std::string reason_of(const std::string& body) {
  const json answer = json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (answer.is_object()) {
    for (const char* key : {"fault_message", "error"}) {
      const auto found = answer.find(key);
      if (found != answer.end() && found->is_string()) return found->get<std::string>();
    }
  }
  if (answer.is_array()) {
    std::string reason;
    for (const json& part : answer)
      if (part.is_string()) reason += (reason.empty() ? "" : ": ") + part.get<std::string>();
    if (!reason.empty()) return reason;
  }
  return body.empty() ? "no reason given" : body;
}

std::string printable(std::string_view text) {
  std::string shown(text);
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  return shown;
}

json parse(std::string_view target, const std::string& body) {
  json value = json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) {
    throw VmmError(fmt::format("GET {}: expected a JSON object, received '{}'", target, excerpt(body)), 0, body);
  }
  return value;
}

}  // namespace

std::string to_json_text(const json& value) {
  try {
    return value.dump();
  } catch (const json::type_error&) {
    throw InvalidArgument(fmt::format("not UTF-8, as this hypervisor's API requires of every path and text: {}",
                                      excerpt(value.dump(-1, ' ', false, json::error_handler_t::replace))));
  }
}

std::string text_member(const json& object, const char* member) {
  const auto found = object.find(member);
  if (found == object.end() || !found->is_string()) {
    throw VmmError(fmt::format("expected an answer with '{}', received '{}'", member, excerpt(object.dump())), 0,
                   object.dump());
  }
  return found->get<std::string>();
}

bool is_version_at_least(const std::string& version, int major, int minor) {
  std::array<int, 2> said{};
  const char* at = version.data();
  const char* end = at + version.size();
  for (std::size_t i = 0; i < said.size(); ++i) {
    if (i > 0) {
      if (at == end || *at != '.') return false;
      ++at;
    }
    const auto parsed = std::from_chars(at, end, said[i]);
    if (parsed.ec != std::errc()) return false;
    at = parsed.ptr;
  }
  return said >= std::array{major, minor};
}

void require_version(std::string_view program, const std::string& version, int major, int minor) {
  if (is_version_at_least(version, major, minor)) return;
  throw VmmError(
      fmt::format("{} says that its version is '{}', allowed: {}.{} or newer", program, excerpt(version), major, minor),
      0, version);
}

json Rest::get(std::string_view target) { return parse(target, call("GET", target, {}).body); }

std::optional<json> Rest::find(std::string_view target) {
  const HttpAnswer answer = call("GET", target, {}, true);
  if (answer.status == kNotFound) return std::nullopt;
  return parse(target, answer.body);
}

void Rest::put(std::string_view target, const json& body) { call("PUT", target, to_json_text(body)); }

void Rest::put(std::string_view target) { call("PUT", target, {}); }

void Rest::patch(std::string_view target, const json& body) { call("PATCH", target, to_json_text(body)); }

HttpAnswer Rest::call(std::string_view method, std::string_view target, const std::string& body, bool may_be_missing) {
  HttpAnswer answer = http_.request(method, target, body);
  if (answer.status < kFirstError || (may_be_missing && answer.status == kNotFound)) return answer;
  throw VmmError(
      fmt::format("{} {}: refused with {}: {}", method, target, answer.status, printable(reason_of(answer.body))),
      answer.status, answer.body);
}

}  // namespace cocoon::vmm
