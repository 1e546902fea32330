#pragma once
// Values as bytes, for files that only this program, on this machine, reads again.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "cocoon/error.h"

namespace cocoon::ledger {

template <typename Value>
  requires std::is_trivially_copyable_v<Value>
void put(std::string& out, const Value& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
inline void put(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}
template <typename Value>
void put(std::string& out, const std::optional<Value>& value) {
  put(out, static_cast<std::uint8_t>(value.has_value()));
  if (value) put(out, *value);
}

// Errors   LedgerError: it ends early.
inline std::string_view take_bytes(std::string_view& in, std::size_t size) {
  if (in.size() < size) throw LedgerError("checkpoint: it ends early", {});
  const std::string_view taken = in.substr(0, size);
  in.remove_prefix(size);
  return taken;
}
template <typename Value>
  requires std::is_trivially_copyable_v<Value>
Value take(std::string_view& in) {
  Value value{};
  const std::string_view bytes = take_bytes(in, sizeof value);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(&value));
  return value;
}
inline std::string_view take_text(std::string_view& in) { return take_bytes(in, take<std::uint64_t>(in)); }
template <typename Value>
std::optional<Value> take_some(std::string_view& in) {
  return take<std::uint8_t>(in) == 0 ? std::nullopt : std::optional<Value>(take<Value>(in));
}

}  // namespace cocoon::ledger
