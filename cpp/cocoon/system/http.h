#pragma once
// HTTP/1.1 as a VMM's API speaks it, over a UNIX socket: one request at a time, short JSON bodies, one connection.
// A small client of our own, since a general one gets in the way of every fact of that server (rust-vmm's micro-http,
// in Firecracker and Cloud Hypervisor): a call must end within 100 ms of Ctrl-C, time limits are the call's and not a
// socket's, a full server says 503 before it has read anything, and nothing but plain lengths may be sent.

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/system/socket.h"

namespace cocoon::system {

struct HttpAnswer {
  int status = 0;
  std::string body;
};

class HttpSession {
 public:
  // Nothing is connected yet. `timeout` holds for the whole session; longer request bodies than `max_body` are refused.
  // Requires `cancel` outlives the session.
  HttpSession(Path socket, std::size_t max_body, std::chrono::milliseconds timeout, Cancel& cancel);

  // One request, and its answer whatever its status is. A server that has no room for one more connection (503 before
  // it reads anything) is asked again until the time is up. Whoever answers an error gets a new connection next time:
  // after one its parser may be out of step.
  // Errors   VmmError: nobody listens, it closed, or its answer is not HTTP (`body` is what it said). VmmTimeout:
  //          no answer in time; the request may have been carried out. Cancelled. InvalidArgument: body too long.
  HttpAnswer request(std::string_view method, std::string_view target, std::string_view body = {});

 private:
  HttpAnswer exchange(const std::string& message);
  HttpAnswer receive();
  [[nodiscard]] std::chrono::milliseconds left() const;

  Path socket_;
  std::size_t max_body_;
  std::chrono::milliseconds timeout_;
  std::chrono::steady_clock::time_point deadline_;
  Cancel* cancel_;
  std::optional<UnixStream> stream_;
};

}  // namespace cocoon::system
