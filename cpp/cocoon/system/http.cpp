#include "cocoon/system/http.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/excerpt.h"

namespace cocoon::system {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kMaxSentLine = 1024;     // micro-http refuses longer ones, and is out of step afterwards
constexpr std::size_t kMaxLine = 8192;         // of an answer
constexpr std::size_t kMaxHeaders = 64;        // of an answer
constexpr std::size_t kMaxAnswer = 4U << 20U;  // vm.info with hundreds of devices is 100 KB
constexpr int kNoContent = 204;
constexpr int kUnavailable = 503;
constexpr int kFirstError = 400;

[[noreturn]] void refuse(std::string_view expected, const std::string& received) {
  throw VmmError(fmt::format("HTTP: expected {}, received '{}'", expected, excerpt(received)), 0, received);
}

template <typename Number>
bool parse(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// "HTTP/1.1 200 " and any reason, usually none.
int parse_status(const std::string& line) {
  int status = 0;
  const std::string_view view = line;
  const bool shaped = (view.starts_with("HTTP/1.1 ") || view.starts_with("HTTP/1.0 ")) && view.size() >= 12 &&
                      (view.size() == 12 || view[12] == ' ') && parse(view.substr(9, 3), status);
  // 1xx answers come only to requests that we do not make.
  if (!shaped || status < 200 || status > 599) refuse("an HTTP status", line);
  return status;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// In slices, since a connect(2) to a full queue waits and cannot be cancelled.
UnixStream connect_until(const Path& socket, steady_clock::time_point deadline, Cancel& cancel) {
  for (;;) {
    cancel.check();
    const auto left = std::max(0ms, std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
    try {
      return UnixStream::connect(socket, std::min(left, Cancel::kSlice));
    } catch (const VmmTimeout&) {
      if (left <= Cancel::kSlice) throw;
    }
  }
}

}  // namespace

HttpSession::HttpSession(Path socket, std::size_t max_body, milliseconds timeout, Cancel& cancel)
    : socket_(std::move(socket)),
      max_body_(max_body),
      timeout_(timeout),
      deadline_(steady_clock::now() + timeout),
      cancel_(&cancel) {}

HttpAnswer HttpSession::request(std::string_view method, std::string_view target, std::string_view body) {
  if (body.size() > max_body_) {
    throw InvalidArgument(
        fmt::format("{} {}: a body of {} bytes, at most {} are allowed", method, target, body.size(), max_body_));
  }
  std::string message = fmt::format("{} {} HTTP/1.1\r\n", method, target);
  if (message.size() > kMaxSentLine || target.find_first_of(" \r\n") != std::string_view::npos) {
    throw InvalidArgument(
        fmt::format("{} {}: not a target of at most {} bytes", method, excerpt(target), kMaxSentLine));
  }
  message += "Host: localhost\r\nAccept: application/json\r\n";
  if (!body.empty()) {
    message += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  message += "\r\n";
  message += body;

  bool was_full = false;
  for (auto pause = 1ms;; pause = std::min(2 * pause, 50ms)) {
    const bool is_new = !stream_;
    if (is_new) stream_.emplace(connect_until(socket_, deadline_, *cancel_));
    HttpAnswer answer;
    try {
      answer = exchange(message);
    } catch (const VmmTimeout&) {
      stream_.reset();
      throw VmmTimeout(fmt::format("{} {}: no answer within {} ms{}", method, target, timeout_.count(),
                                   was_full ? ", in which it was full at first (503)" : ""));
    } catch (...) {
      stream_.reset();
      throw;
    }
    if (answer.status >= kFirstError) stream_.reset();
    // It comes on connecting, whatever is sent: only on a new connection does it say that nothing was done.
    if (answer.status != kUnavailable || !is_new || left() <= pause) return answer;
    was_full = true;
    pause_for(pause, *cancel_);
  }
}

HttpAnswer HttpSession::exchange(const std::string& message) {
  try {
    stream_->send(message, left(), *cancel_);
  } catch (const VmmTimeout&) {
    throw;
  } catch (const VmmError&) {
    // It closed while we spoke. What it said before that, such as 503, is there to be read.
    try {
      return receive();
    } catch (const VmmError& silent) {
      if (!silent.body.empty()) throw;  // it said something, but not HTTP
    }
    throw;
  }
  return receive();
}

HttpAnswer HttpSession::receive() {
  const auto line = [&] {
    std::string text = stream_->receive_line(left(), *cancel_, kMaxLine);
    if (text.empty() || text.back() != '\r') refuse("a line of HTTP", text);
    text.pop_back();
    return text;
  };
  HttpAnswer answer;
  answer.status = parse_status(line());
  std::optional<std::size_t> length;
  for (std::size_t count = 0;; ++count) {
    const std::string header = line();
    if (header.empty()) break;
    const std::size_t colon = header.find(':');
    if (colon == std::string::npos || colon == 0 || count >= kMaxHeaders) refuse("an HTTP header", header);
    const std::string name = lower(std::string_view(header).substr(0, colon));
    if (name == "transfer-encoding") refuse("a plain body", header);
    if (name != "content-length") continue;
    std::size_t value = 0;
    if (!parse(trim(std::string_view(header).substr(colon + 1)), value) || length.value_or(value) != value ||
        value > kMaxAnswer) {
      refuse(fmt::format("one length of at most {} bytes", kMaxAnswer), header);
    }
    length = value;
  }
  if (answer.status != kNoContent && length) answer.body = stream_->receive_exactly(*length, left(), *cancel_);
  return answer;
}

milliseconds HttpSession::left() const {
  return std::max(0ms, std::chrono::ceil<milliseconds>(deadline_ - steady_clock::now()));
}

}  // namespace cocoon::system
