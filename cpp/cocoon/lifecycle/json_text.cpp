#include "cocoon/lifecycle/json_text.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/text.h"

namespace cocoon::lifecycle {
namespace {

using metering::is_utf8;
using metering::quote;

constexpr std::size_t kFoundBytes = 40;

void append_utf8(std::uint32_t code, std::string& out) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3f));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

}  // namespace

void append_json_string(std::string_view text, std::string& out) {
  out.push_back('"');
  std::size_t kept = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != '"' && byte != '\\') continue;
    out.append(text, kept, i - kept);
    kept = i + 1;
    switch (byte) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(byte));
        break;
    }
  }
  out.append(text, kept);
  out.push_back('"');
}

void JsonReader::fail(std::string_view problem) const {
  // From the inside out.
  std::string path;
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent_) {
    if (scope->index_ != Scope::kNone) {
      path = fmt::format("[{}]{}{}", scope->index_, path.empty() || path.front() == '[' ? "" : ".", path);
    } else if (!scope->field_.empty()) {
      path = fmt::format("{}{}{}", scope->field_, path.empty() || path.front() == '[' ? "" : ".", path);
    }
  }
  throw InvalidArgument(path.empty() ? fmt::format("{}: {}", what_, problem)
                                     : fmt::format("{}: {}: {}", what_, path, problem));
}

void JsonReader::fail_type(std::string_view expected) {
  if (peek() == '\0' && at_ >= text_.size()) fail(fmt::format("expected {}, found the end of the text", expected));
  std::size_t stop = text_.find_first_of(",]}\n", at_);
  if (stop == std::string_view::npos) stop = text_.size();
  std::string_view found = text_.substr(at_, std::max<std::size_t>(stop - at_, 1));
  if (found.size() > kFoundBytes) found = found.substr(0, kFoundBytes);
  fail(fmt::format("expected {}, found {}", expected, quote(found)));
}

void JsonReader::fail_syntax(std::string_view problem) const {
  fail(fmt::format("bad JSON at byte {}: {}", at_, problem));
}

char JsonReader::peek() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return c;
    ++at_;
  }
  return '\0';
}

void JsonReader::begin_object() {
  if (peek() != '{') fail_type("an object");
  ++at_;
  first_ = true;
}

void JsonReader::begin_array() {
  if (peek() != '[') fail_type("an array");
  ++at_;
  first_ = true;
}

bool JsonReader::next_member(char close) {
  const char c = peek();
  const bool first = first_;
  first_ = false;
  if (c == close) {
    ++at_;
    return false;
  }
  if (first) return true;
  if (c != ',') fail_syntax(close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
  ++at_;
  return true;
}

bool JsonReader::next_key(std::string_view& key) {
  if (!next_member('}')) return false;
  if (peek() != '"') fail_syntax("expected a field's name");
  key = read_string_view();
  if (peek() != ':') fail_syntax("expected ':'");
  ++at_;
  return true;
}

bool JsonReader::next_element() { return next_member(']'); }

bool JsonReader::read_bool() {
  peek();
  for (const bool value : {true, false}) {
    const std::string_view word = value ? "true" : "false";
    if (text_.substr(at_, word.size()) == word) {
      at_ += word.size();
      return value;
    }
  }
  fail_type("true or false");
}

template <typename Integer>
Integer JsonReader::read_integer(std::string_view expected) {
  peek();
  const char* begin = text_.data() + at_;
  const char* end = text_.data() + text_.size();
  Integer value = 0;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc()) fail_type(expected);
  // JSON has no leading zeros; a fraction or exponent makes it a number of another type.
  const char* digits = *begin == '-' ? begin + 1 : begin;
  if (*digits == '0' && stop - digits > 1) fail_type(expected);
  if (stop != end && (*stop == '.' || *stop == 'e' || *stop == 'E')) fail_type(expected);
  at_ += static_cast<std::size_t>(stop - begin);
  return value;
}

std::int64_t JsonReader::read_int64() { return read_integer<std::int64_t>("a whole number of 64 bits"); }

std::uint64_t JsonReader::read_uint64() {
  return read_integer<std::uint64_t>("a whole number of 64 bits, not negative");
}

void JsonReader::read_string(std::string& out) { out = read_string_view(); }

std::string_view JsonReader::read_string_view() {
  if (peek() != '"') fail_type("a string");
  const std::size_t begin = ++at_;
  bool ascii = true;
  for (; at_ < text_.size(); ++at_) {
    const auto byte = static_cast<unsigned char>(text_[at_]);
    if (byte == '"') {
      const std::string_view value = text_.substr(begin, at_ - begin);
      if (!ascii && !is_utf8(value)) fail("text that is not UTF-8");
      ++at_;
      return value;
    }
    if (byte == '\\') {
      decode_string(begin);
      return decoded_;
    }
    if (byte < 0x20) fail_syntax("a control character within a string");
    if (byte >= 0x80) ascii = false;
  }
  fail_syntax("a string without an end");
}

// at_ is at the first backslash of the string that began at `begin`.
void JsonReader::decode_string(std::size_t begin) {
  decoded_.assign(text_, begin, at_ - begin);
  while (at_ < text_.size()) {
    const char c = text_[at_++];
    if (c == '"') {
      if (!is_utf8(decoded_)) fail("text that is not UTF-8");
      return;
    }
    if (static_cast<unsigned char>(c) < 0x20) fail_syntax("a control character within a string");
    if (c == '\\') {
      decode_escape();
    } else {
      decoded_.push_back(c);
    }
  }
  fail_syntax("a string without an end");
}

void JsonReader::decode_escape() {
  const char c = at_ < text_.size() ? text_[at_++] : '\0';
  switch (c) {
    case '"':
    case '\\':
    case '/':
      decoded_.push_back(c);
      return;
    case 'b':
      decoded_.push_back('\b');
      return;
    case 'f':
      decoded_.push_back('\f');
      return;
    case 'n':
      decoded_.push_back('\n');
      return;
    case 'r':
      decoded_.push_back('\r');
      return;
    case 't':
      decoded_.push_back('\t');
      return;
    case 'u':
      break;
    default:
      fail_syntax("an unknown escape within a string");
  }
  std::uint32_t code = read_hex4();
  if (code >= 0xd800 && code < 0xe000) {
    if (code >= 0xdc00 || text_.substr(at_, 2) != "\\u") fail_syntax("half of a surrogate pair");
    at_ += 2;
    const std::uint32_t low = read_hex4();
    if (low < 0xdc00 || low >= 0xe000) fail_syntax("half of a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(code, decoded_);
}

std::uint32_t JsonReader::read_hex4() {
  const std::string_view digits = text_.substr(at_, 4);
  std::uint32_t code = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
  if (error != std::errc() || digits.size() != 4 || stop != digits.data() + 4) {
    fail_syntax("\\u without four hexadecimal digits");
  }
  at_ += 4;
  return code;
}

void JsonReader::end() {
  peek();
  if (at_ != text_.size()) fail_syntax("text after the end of the document");
}

}  // namespace cocoon::lifecycle
