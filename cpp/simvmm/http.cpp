#include "simvmm/http.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "simvmm/text.h"

namespace cocoon::simvmm {
namespace {

constexpr std::string_view kCrlf = "\r\n";
// Whoever serves, this is what the library calls itself.
constexpr std::string_view kLibrary = "Firecracker API";

// The rest of the read is dropped with it.
struct ParseError {
  std::string text;
};

std::optional<Method> method_named(std::string_view name) {
  for (const Method method : {Method::kGet, Method::kPut, Method::kPatch, Method::kDelete}) {
    if (name == name_of(method)) return method;
  }
  return std::nullopt;
}

// What an URI names on this server.
std::string absolute_path(std::string_view uri) {
  constexpr std::string_view kScheme = "http://";
  if (uri.starts_with(kScheme)) {
    uri.remove_prefix(kScheme.size());
    const std::size_t slash = uri.find('/');
    return slash == std::string_view::npos ? std::string() : std::string(uri.substr(slash));
  }
  return uri.starts_with('/') ? std::string(uri) : std::string();
}

Request parse_line(std::string_view line) {
  const std::size_t first = line.find(' ');
  if (first == std::string_view::npos) throw ParseError{"Invalid request."};
  const std::size_t second = line.find(' ', first + 1);
  if (second == std::string_view::npos) throw ParseError{"Invalid request."};
  const std::string_view uri = line.substr(first + 1, second - first - 1);
  const std::string_view version = line.substr(second + 1);

  const std::optional<Method> method = method_named(line.substr(0, first));
  if (!method) throw ParseError{"Invalid HTTP Method: Unsupported HTTP method."};
  if (uri.empty()) throw ParseError{"Invalid URI: Empty URI not allowed."};
  if (first_bad_utf8(uri)) throw ParseError{"Invalid URI: Cannot parse URI as UTF-8."};
  if (version != "HTTP/1.0" && version != "HTTP/1.1") {
    throw ParseError{"Invalid HTTP Version: Unsupported HTTP version."};
  }
  return {.method = *method, .path = absolute_path(uri), .body = {}};
}

void check_encodings(std::string_view value) {
  value = trim(value);
  if (value.empty()) throw ParseError{"Invalid request."};
  while (true) {
    const std::size_t comma = value.find(',');
    const std::string_view encoding = value.substr(0, comma);
    const std::string_view name = trim(encoding);
    if (name == "identity;q=0" || name == "*;q=0") {
      throw ParseError{fmt::format("Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value:{}", encoding)};
    }
    if (comma == std::string_view::npos) return;
    value.remove_prefix(comma + 1);
  }
}

}  // namespace

std::string_view name_of(Method method) {
  switch (method) {
    case Method::kGet:
      return "GET";
    case Method::kPut:
      return "PUT";
    case Method::kPatch:
      return "PATCH";
    case Method::kDelete:
      return "DELETE";
  }
  return {};
}

std::vector<Event> HttpParser::feed(std::string_view bytes) {
  std::vector<Event> events;
  while (!bytes.empty()) {
    // One pass is one read(2) of the VMM: what an error drops depends on where the reads were cut.
    std::vector<Event> of_this_read;
    try {
      read_some(bytes, of_this_read);
    } catch (const ParseError& error) {
      std::erase_if(of_this_read, [](const Event& event) { return std::holds_alternative<Request>(event); });
      const std::string body =
          fmt::format("{{ \"error\": \"{}\nAll previous unanswered requests will be dropped.\" }}", error.text);
      of_this_read.emplace_back(Refusal{render({.status = 400, .body = body}, kLibrary)});
    }
    std::move(of_this_read.begin(), of_this_read.end(), std::back_inserter(events));
  }
  return events;
}

void HttpParser::read_some(std::string_view& bytes, std::vector<Event>& events) {
  const std::size_t count = std::min(bytes.size(), kBufferBytes - kept_);
  std::memcpy(buffer_.data() + kept_, bytes.data(), count);
  bytes.remove_prefix(count);
  end_ = kept_ + count;

  std::size_t start = 0;
  bool more = true;
  while (more) {
    switch (state_) {
      case State::kRequestLine:
        more = parse_request_line(start);
        break;
      case State::kHeaders:
        more = parse_headers(start, events);
        break;
      case State::kBody:
        more = parse_body(start, events);
        break;
    }
  }
}

bool HttpParser::parse_request_line(std::size_t& start) {
  const std::string_view unread(buffer_.data() + start, end_ - start);
  const std::size_t length = unread.find(kCrlf);
  if (length == std::string_view::npos) {
    // What was kept stays kept here and below: the next read is put behind it again.
    if (start == 0 && end_ == kBufferBytes) throw ParseError{"Invalid request."};
    keep_from(start);
    return false;
  }
  request_ = parse_line(unread.substr(0, length));
  content_length_ = 0;
  expects_continue_ = false;
  start += length + kCrlf.size();
  state_ = State::kHeaders;
  return true;
}

bool HttpParser::parse_headers(std::size_t& start, std::vector<Event>& events) {
  const std::string_view unread(buffer_.data() + start, end_ - start);
  const std::size_t length = unread.find(kCrlf);
  if (length == std::string_view::npos) {
    if (start == 0 && end_ == kBufferBytes) {
      throw ParseError{fmt::format("Invalid header. Reason: Invalid content length. Header: {}", unread)};
    }
    keep_from(start);
    return false;
  }
  start += length + kCrlf.size();
  if (length > 0) {
    parse_header_line(unread.substr(0, length));
    return true;
  }
  if (content_length_ == 0) {
    finish(events);
    return true;
  }
  if (expects_continue_) events.emplace_back(Continue{});
  if (content_length_ > max_body_bytes_) {
    throw ParseError{fmt::format("Request payload with size {} is larger than the limit of {} allowed by server.",
                                 content_length_, max_body_bytes_)};
  }
  request_.body.reserve(content_length_);
  state_ = State::kBody;
  return true;
}

void HttpParser::parse_header_line(std::string_view line) {
  if (const std::optional<Utf8Error> bad = first_bad_utf8(line)) {
    throw ParseError{fmt::format("Invalid header. Reason: Header contains invalid characters. Key: {}", bad->text)};
  }
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos) {
    throw ParseError{fmt::format("Invalid header. Reason: Header is incorrectly formatted. Key: {}", line)};
  }
  const std::string name = lower(trim(line.substr(0, colon)));
  const std::string_view value = line.substr(colon + 1);
  if (name == "content-length") {
    const std::string_view digits = trim(value);
    const std::optional<std::uint32_t> length = parse_number<std::uint32_t>(digits);
    if (!length) {
      throw ParseError{fmt::format("Invalid header. Reason: Invalid value. Key:Content-Length; Value:{}", value)};
    }
    content_length_ = *length;
  } else if (name == "expect") {
    expects_continue_ = trim(value) == "100-continue";
  } else if (name == "accept-encoding") {
    check_encodings(value);
  }
}

bool HttpParser::parse_body(std::size_t& start, std::vector<Event>& events) {
  const std::size_t missing = content_length_ - request_.body.size();
  const std::size_t count = std::min(missing, end_ - start);
  request_.body.append(buffer_.data() + start, count);
  start += count;
  if (count < missing) {
    kept_ = 0;
    return false;
  }
  finish(events);
  return true;
}

void HttpParser::finish(std::vector<Event>& events) {
  events.emplace_back(std::exchange(request_, {}));
  state_ = State::kRequestLine;
}

void HttpParser::keep_from(std::size_t start) {
  kept_ = end_ - start;
  std::memmove(buffer_.data(), buffer_.data() + start, kept_);
}

std::string render(const Response& response, std::string_view server) {
  std::string text = fmt::format("HTTP/1.1 {} \r\nServer: {}\r\nConnection: keep-alive\r\n", response.status, server);
  if (response.body.empty()) {
    // Without a body there is a length of nothing, except where the status says so itself.
    if (response.status != 204 && response.status != 100) {
      text += "Content-Type: application/json\r\nContent-Length: 0\r\n";
    }
    return text + "\r\n";
  }
  return text + fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}", response.body.size(),
                            response.body);
}

std::string too_many_connections() {
  constexpr std::string_view kBody = R"({ "error": "Too many open connections" })";
  return fmt::format("HTTP/1.1 503\r\nServer: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}", kLibrary,
                     kBody.size(), kBody);
}

}  // namespace cocoon::simvmm
