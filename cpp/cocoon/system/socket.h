#pragma once
// UNIX stream sockets: as a client, with deadlines; and bound for somebody else to listen on.

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

enum class SocketProbe { kLive, kDead, kInconclusive };

// Somebody accepts there: kLive. No file, or nobody listens: kDead. Anything else (time-out, full backlog,
// permission): kInconclusive.
SocketProbe probe_socket(const Path& path, std::chrono::milliseconds timeout);

// Binds and listens: whoever connects from now on waits for the one that is handed the descriptor to accept. Mode 0600;
// paths of any length. Errors StoreError: something is at `path` already, or it cannot be made there.
Fd listen_on(const Path& path);

class UnixStream {
 public:
  // Paths of any length: longer ones than sun_path go through a descriptor and /proc.
  // Errors   VmmError: nobody listens. VmmTimeout.
  static UnixStream connect(const Path& path, std::chrono::milliseconds timeout);

  // Sends all of it. Errors VmmError: the peer closed. VmmTimeout.
  void send(std::string_view bytes, std::chrono::milliseconds timeout, Cancel& cancel);
  // The same with a descriptor, which the peer gets one of its own of (SCM_RIGHTS). `fd` stays ours.
  void send_with_fd(std::string_view bytes, int fd, std::chrono::milliseconds timeout, Cancel& cancel);
  // The next line without its '\n'; at most `max_bytes`. Errors VmmError: the peer closed, or the line is too long.
  std::string receive_line(std::chrono::milliseconds timeout, Cancel& cancel, std::size_t max_bytes = 1 << 20);

  // The next `bytes` bytes. Errors VmmError: the peer closed before.
  std::string receive_exactly(std::size_t bytes, std::chrono::milliseconds timeout, Cancel& cancel);

  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  explicit UnixStream(Fd fd) : fd_(std::move(fd)) {}
  // Waits for more and appends it to the buffer. Errors as above.
  void receive_more(std::chrono::steady_clock::time_point deadline, Cancel& cancel, const char* awaited);
  void send_all(std::string_view bytes, int fd, std::chrono::milliseconds timeout, Cancel& cancel);
  Fd fd_;
  std::string buffer_;  // received, not yet returned
};

}  // namespace cocoon::system
