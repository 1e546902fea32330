#pragma once
// A session with a QEMU's monitor socket: one line of JSON each way. See QEMU's docs/interop/qmp-spec.
// QEMU serves one client at a time and leaves the next in the socket's queue until the first has gone: a session is
// short, and one that gets no greeting has met a busy or stopped QEMU, not a dead one.

#include <chrono>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/system/socket.h"

namespace cocoon::vmm {

class Qmp {
 public:
  // Connects, reads the greeting and leaves the negotiation mode. `timeout` holds for the whole session.
  // Requires `cancel` outlives the session.
  // Errors   VmmError: nobody listens, it closed, or it does not speak QMP (`body` is what it said).
  //          VmmTimeout: no room in the queue, or no greeting in time. Cancelled.
  static Qmp connect(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel);

  // Sends a command and returns what it returned; events on the way are skipped.
  // Errors   VmmError: QEMU refused it (`body` is "class: description"), closed, or answered nonsense (`body` is
  //          that). VmmTimeout, Cancelled. After an error the session is of no more use.
  nlohmann::json execute(std::string_view command);
  nlohmann::json execute(std::string_view command, const nlohmann::json& arguments);

  // The same with a descriptor that QEMU gets one of its own of: getfd.
  nlohmann::json execute_with_fd(std::string_view command, const nlohmann::json& arguments, int fd);

  // The same for a command after which QEMU may close without an answer: quit.
  void execute_last(std::string_view command);

  // Of this QEMU, as its greeting says: "7.2.22".
  [[nodiscard]] const std::string& version() const { return version_; }

 private:
  Qmp(system::UnixStream stream, std::chrono::steady_clock::time_point deadline, system::Cancel& cancel)
      : stream_(std::move(stream)), deadline_(deadline), cancel_(&cancel) {}

  nlohmann::json run(std::string_view command, nlohmann::json request, int fd = -1);
  nlohmann::json receive(std::string_view awaited);
  [[nodiscard]] std::chrono::milliseconds left() const;

  system::UnixStream stream_;
  std::chrono::steady_clock::time_point deadline_;
  system::Cancel* cancel_;
  std::string version_;
  int last_id_ = 0;
};

}  // namespace cocoon::vmm
