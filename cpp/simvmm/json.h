#pragma once
// JSON bodies, refused as serde refuses them: the VMMs' answers quote it, and what it lets pass differs between the
// two.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace cocoon::simvmm {

using Json = nlohmann::ordered_json;

// The text of serde_json for a body it cannot take. The line and column it ends in are those of the body's end, which
// is where serde is only if the trouble is there.
struct JsonError {
  std::string text;
};

enum class Kind { kBool, kU8, kU16, kU32, kU64, kString, kEnum, kStruct, kList, kStrings, kMac, kAny };

struct Schema;

struct Field {
  std::string_view name;
  Kind kind = Kind::kAny;
  bool required = false;
  std::span<const std::string_view> variants = {};  // of kEnum
  const Schema* schema = nullptr;                   // of kStruct, and of each element of kList
};

struct Schema {
  std::string_view name;  // of the VMM's own structure
  std::span<const Field> fields;
  bool refuses_unknown = false;
};

// Errors JsonError
Json parse_json(std::string_view text);
// The object in this text, which fits. Errors JsonError
Json parse_object(std::string_view text, const Schema& schema);
// Errors JsonError
void check_object(const Json& value, const Schema& schema, std::string_view position);

// Value of a member of an object that was checked; `otherwise` if it is absent or null.
std::string string_of(const Json& object, std::string_view name, std::string_view otherwise = {});
std::uint64_t number_of(const Json& object, std::string_view name, std::uint64_t otherwise);
bool bool_of(const Json& object, std::string_view name, bool otherwise);
// Null if absent.
const Json& member_of(const Json& object, std::string_view name);
std::string dump(const Json& value);

}  // namespace cocoon::simvmm
