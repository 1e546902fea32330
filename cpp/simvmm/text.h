#pragma once
// Small helpers on text.

#include <charconv>
#include <optional>
#include <string>
#include <string_view>

namespace cocoon::simvmm {

struct Utf8Error {
  std::string text;  // as Rust's standard library says it
};

// Nothing if all of it is UTF-8.
std::optional<Utf8Error> first_bad_utf8(std::string_view text);
std::string_view trim(std::string_view text);
std::string lower(std::string_view text);
// "No such file or directory (os error 2)", as Rust's standard library says it.
std::string os_error(int code);

// All of `text` as a number that fits.
template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace cocoon::simvmm
