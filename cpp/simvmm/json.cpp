#include "simvmm/json.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "simvmm/text.h"

namespace cocoon::simvmm {
namespace {

constexpr int kDepthLimit = 127;  // serde_json's

std::string position_of(std::string_view text, std::size_t at) {
  const std::string_view before = text.substr(0, std::min(at, text.size()));
  const auto lines = std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string_view::npos ? before.size() : before.size() - newline - 1;
  return fmt::format(" at line {} column {}", lines + 1, column);
}

// Beyond it serde stops, and so must whatever recurses over the value.
void check_depth(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kDepthLimit) throw JsonError{"recursion limit exceeded" + position_of(text, i + 1)};
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

// As serde calls a value that is none of what it expected.
std::string described(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return fmt::format("boolean `{}`", value.get<bool>());
    case Json::value_t::string:
      return fmt::format("string {}", dump(value));
    case Json::value_t::number_float:
      return fmt::format("floating point `{}`", dump(value));
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return fmt::format("integer `{}`", dump(value));
    case Json::value_t::object:
      return "map";
    case Json::value_t::array:
      return "sequence";
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return "value";
}

[[noreturn]] void refuse_type(const Json& value, std::string_view expected, std::string_view position) {
  throw JsonError{fmt::format("invalid type: {}, expected {}{}", described(value), expected, position)};
}

void check_number(const Json& value, std::uint64_t most, std::string_view expected, std::string_view position) {
  if (!value.is_number_integer()) refuse_type(value, expected, position);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most) {
    throw JsonError{fmt::format("invalid value: {}, expected {}{}", described(value), expected, position)};
  }
}

std::string quoted(std::string_view name) { return fmt::format("`{}`", name); }

// "`a`", "`a` or `b`", "one of `a`, `b`, `c`".
std::string choice(const std::vector<std::string>& names) {
  if (names.size() == 1) return names[0];
  if (names.size() == 2) return fmt::format("{} or {}", names[0], names[1]);
  return fmt::format("one of {}", fmt::join(names, ", "));
}

void check_enum(const Json& value, const Field& field, std::string_view position) {
  if (!value.is_string()) refuse_type(value, "variant identifier", position);
  const auto& name = value.get_ref<const std::string&>();
  if (std::find(field.variants.begin(), field.variants.end(), name) != field.variants.end()) return;
  std::vector<std::string> names;
  std::transform(field.variants.begin(), field.variants.end(), std::back_inserter(names), quoted);
  throw JsonError{fmt::format("unknown variant `{}`, expected {}{}", name, choice(names), position)};
}

bool is_mac(std::string_view text) {
  if (text.size() != 17) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    if (i % 3 == 2 ? c != ':' : !hex) return false;
  }
  return true;
}

void check_value(const Json& value, const Field& field, std::string_view position) {
  // What may be left out may be null as well.
  if (value.is_null() && !field.required) return;
  switch (field.kind) {
    case Kind::kBool:
      if (!value.is_boolean()) refuse_type(value, "a boolean", position);
      return;
    case Kind::kU8:
      return check_number(value, std::numeric_limits<std::uint8_t>::max(), "u8", position);
    case Kind::kU16:
      return check_number(value, std::numeric_limits<std::uint16_t>::max(), "u16", position);
    case Kind::kU32:
      return check_number(value, std::numeric_limits<std::uint32_t>::max(), "u32", position);
    case Kind::kU64:
      return check_number(value, std::numeric_limits<std::uint64_t>::max(), "u64", position);
    case Kind::kString:
      if (!value.is_string()) refuse_type(value, "a string", position);
      return;
    case Kind::kEnum:
      return check_enum(value, field, position);
    case Kind::kStruct:
      return check_object(value, *field.schema, position);
    case Kind::kList:
      if (!value.is_array()) refuse_type(value, "a sequence", position);
      for (const Json& element : value) check_object(element, *field.schema, position);
      return;
    case Kind::kStrings:
      if (!value.is_array()) refuse_type(value, "a sequence", position);
      for (const Json& element : value) {
        if (!element.is_string()) refuse_type(element, "a string", position);
      }
      return;
    case Kind::kMac:
      if (!value.is_string()) refuse_type(value, "a string", position);
      if (!is_mac(value.get_ref<const std::string&>())) {
        throw JsonError{fmt::format("The provided MAC address is invalid.{}", position)};
      }
      return;
    case Kind::kAny:
      return;
  }
}

}  // namespace

Json parse_json(std::string_view text) {
  check_depth(text);
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    const auto* parse_error = dynamic_cast<const Json::parse_error*>(&error);
    throw JsonError{"expected value" + position_of(text, parse_error == nullptr ? text.size() : parse_error->byte)};
  }
}

Json parse_object(std::string_view text, const Schema& schema) {
  Json value = parse_json(text);
  check_object(value, schema, position_of(text, text.size()));
  return value;
}

void check_object(const Json& value, const Schema& schema, std::string_view position) {
  if (!value.is_object()) refuse_type(value, fmt::format("struct {}", schema.name), position);
  for (const auto& [name, member] : value.items()) {
    const auto field = std::find_if(schema.fields.begin(), schema.fields.end(),
                                    [&key = name](const Field& known) { return known.name == key; });
    if (field != schema.fields.end()) {
      check_value(member, *field, position);
    } else if (schema.refuses_unknown) {
      std::vector<std::string> names;
      for (const Field& known : schema.fields) names.push_back(quoted(known.name));
      throw JsonError{fmt::format("unknown field `{}`, {}{}", name,
                                  names.empty() ? "there are no fields" : "expected " + choice(names), position)};
    }
  }
  for (const Field& field : schema.fields) {
    if (field.required && !value.contains(field.name)) {
      throw JsonError{fmt::format("missing field `{}`{}", field.name, position)};
    }
  }
}

std::string string_of(const Json& object, std::string_view name, std::string_view otherwise) {
  const Json& member = member_of(object, name);
  return member.is_string() ? member.get<std::string>() : std::string(otherwise);
}

std::uint64_t number_of(const Json& object, std::string_view name, std::uint64_t otherwise) {
  const Json& member = member_of(object, name);
  // What was parsed is unsigned; what is written in here need not be.
  return member.is_number_integer() && member >= 0 ? member.get<std::uint64_t>() : otherwise;
}

bool bool_of(const Json& object, std::string_view name, bool otherwise) {
  const Json& member = member_of(object, name);
  return member.is_boolean() ? member.get<bool>() : otherwise;
}

const Json& member_of(const Json& object, std::string_view name) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace cocoon::simvmm
