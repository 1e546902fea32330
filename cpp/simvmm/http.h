#pragma once
// HTTP/1.1 as both VMMs speak it. They share one server library (rust-vmm's micro-http); this follows it to the letter
// where a client can tell: limits, texts of errors, and what a parse error leaves behind on the connection.
// Bytes in, requests and parse errors out; no sockets here, so that it can be fuzzed.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace cocoon::simvmm {

enum class Method { kGet, kPut, kPatch, kDelete };
std::string_view name_of(Method method);  // "GET"

struct Request {
  Method method = Method::kGet;
  std::string path;  // absolute, query and all; empty where the client sent no absolute path
  std::string body;
};

struct Response {
  int status = 200;
  std::string body;  // JSON, or empty
};

// An answer that no handler was asked for.
struct Refusal {
  std::string text;  // the whole answer, head and body
};

// The client waits for it before it sends its body.
struct Continue {};

using Event = std::variant<Request, Refusal, Continue>;

class HttpParser {
 public:
  explicit HttpParser(std::size_t max_body_bytes) : max_body_bytes_(max_body_bytes) {}

  // What these bytes complete, in order. A parse error drops the requests before it that came in the same read, and the
  // rest of that read; if it was in a header, the parser goes on as if it were still among the headers, as the VMMs do.
  std::vector<Event> feed(std::string_view bytes);

 private:
  // A request line or a header line, with its CRLF, must fit in here.
  static constexpr std::size_t kBufferBytes = 1024;
  enum class State { kRequestLine, kHeaders, kBody };

  void read_some(std::string_view& bytes, std::vector<Event>& events);
  bool parse_request_line(std::size_t& start);
  bool parse_headers(std::size_t& start, std::vector<Event>& events);
  bool parse_body(std::size_t& start, std::vector<Event>& events);
  void parse_header_line(std::string_view line);
  void finish(std::vector<Event>& events);
  void keep_from(std::size_t start);

  std::size_t max_body_bytes_;
  State state_ = State::kRequestLine;
  std::array<char, kBufferBytes> buffer_{};
  std::size_t kept_ = 0;  // of buffer_, from earlier reads
  std::size_t end_ = 0;   // of what is in buffer_
  Request request_;
  std::uint32_t content_length_ = 0;
  bool expects_continue_ = false;
};

// The whole of an answer, as both VMMs write it: no reason phrase, always keep-alive, no length where there is no body.
std::string render(const Response& response, std::string_view server);
// To the connection beyond the tenth, which is closed then.
std::string too_many_connections();

}  // namespace cocoon::simvmm
