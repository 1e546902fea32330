#include "cocoon/system/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kSlice = Cancel::kSlice / 2;  // so that a poll is never missed by a whole one
constexpr std::size_t kReadBytes = 16384;
constexpr int kBacklog = 128;

milliseconds left_until(steady_clock::time_point deadline) {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
}

struct Connection {
  Fd fd;          // non-blocking; empty if `error` is set
  int error = 0;  // EAGAIN: the time is up
};

// connect(2) on a UNIX socket never is "in progress": with a full backlog it fails at once, or waits SO_SNDTIMEO.
int connect_until(int fd, const sockaddr_un& address, steady_clock::time_point deadline) {
  for (;;) {
    const milliseconds left = left_until(deadline);
    if (left > milliseconds(0)) {
      const timeval limit{left.count() / 1000, (left.count() % 1000) * 1000};
      if (::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0) return errno;
    } else if (::fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
      return errno;
    }
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) break;
    if (errno == EAGAIN && left > milliseconds(0)) continue;  // woken a little early, or by no time left: look again
    if (errno != EINTR) return errno;
  }
  return ::fcntl(fd, F_SETFL, O_NONBLOCK) != 0 ? errno : 0;
}

Connection try_connect(const Path& path, milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return {Fd(), errno};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string name = path.string();
  if (name.empty() || name.find('\0') != std::string::npos) return {Fd(), EINVAL};
  Fd file;
  if (name.size() >= sizeof address.sun_path) {
    file = Fd(::open(name.c_str(), O_PATH | O_CLOEXEC));
    if (!file) return {Fd(), errno};
    name = fmt::format("/proc/self/fd/{}", file.get());
  }
  std::memcpy(address.sun_path, name.data(), name.size());
  const int error = connect_until(fd.get(), address, deadline);
  if (error != 0) return {Fd(), error};
  return {std::move(fd), 0};
}

bool nobody_listens(int error) { return error == ENOENT || error == ECONNREFUSED; }

// Errors   VmmTimeout, Cancelled.
void wait_ready(int fd, short events, steady_clock::time_point deadline, Cancel& cancel, const char* what) {
  for (;;) {
    cancel.check();
    const milliseconds left = left_until(deadline);
    pollfd poll{fd, events, 0};
    const int ready = ::poll(&poll, 1, static_cast<int>(std::min(left, kSlice).count()));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) throw VmmError(system_message(what, errno));
    if (left <= milliseconds(0)) throw VmmTimeout(fmt::format("{}: no answer in time", what));
  }
}

// As send(2); `fd` goes along unless it is -1.
ssize_t send_some(int socket, std::string_view bytes, int fd) {
  iovec data{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> rights{};
  if (fd >= 0) {
    message.msg_control = rights.data();
    message.msg_controllen = rights.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

SocketProbe probe_socket(const Path& path, milliseconds timeout) {
  const int error = try_connect(path, timeout).error;
  if (error == 0) return SocketProbe::kLive;
  return nobody_listens(error) ? SocketProbe::kDead : SocketProbe::kInconclusive;
}

Fd listen_on(const Path& path) {
  const auto fail = [&](const char* step) { throw_store_error(step, path); };
  // By the folder's descriptor, so that sun_path is long enough for any folder.
  const Fd folder(::open(path.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder) fail("open the folder of socket");
  const std::string name = fmt::format("/proc/self/fd/{}/{}", folder.get(), path.filename().string());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.size() >= sizeof address.sun_path) throw_store_error("bind socket", path, ENAMETOOLONG);
  std::memcpy(address.sun_path, name.data(), name.size());
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) fail("make socket");
  // Linux gives the file the mode of the descriptor, less the umask: there is no moment at which others may connect.
  if (::fchmod(fd.get(), 0600) != 0) fail("set the mode of socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fail("bind socket");
  if (::listen(fd.get(), kBacklog) != 0) fail("listen on socket");
  return fd;
}

UnixStream UnixStream::connect(const Path& path, milliseconds timeout) {
  Connection made = try_connect(path, timeout);
  if (made.error == 0) return UnixStream(std::move(made.fd));
  const std::string tried = "connect to " + path.string();
  if (made.error == EAGAIN) throw VmmTimeout(fmt::format("{}: not accepted within {} ms", tried, timeout.count()));
  throw VmmError(system_message(tried, made.error));
}

void UnixStream::send(std::string_view bytes, milliseconds timeout, Cancel& cancel) {
  send_all(bytes, -1, timeout, cancel);
}

void UnixStream::send_with_fd(std::string_view bytes, int fd, milliseconds timeout, Cancel& cancel) {
  send_all(bytes, fd, timeout, cancel);
}

void UnixStream::send_all(std::string_view bytes, int fd, milliseconds timeout, Cancel& cancel) {
  const auto deadline = steady_clock::now() + timeout;
  while (!bytes.empty()) {
    const ssize_t n = send_some(fd_.get(), bytes, fd);
    if (n >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
      fd = -1;  // it went with the first byte
    } else if (errno == EAGAIN) {
      wait_ready(fd_.get(), POLLOUT, deadline, cancel, "send to the VMM");
    } else if (errno != EINTR) {
      throw VmmError(system_message("send to the VMM", errno));
    }
  }
}

std::string UnixStream::receive_line(milliseconds timeout, Cancel& cancel, std::size_t max_bytes) {
  const auto deadline = steady_clock::now() + timeout;
  std::size_t searched = 0;
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched);
    if (std::min(end, buffer_.size()) > max_bytes) {
      throw VmmError(fmt::format("receive from the VMM: a line longer than {} bytes", max_bytes));
    }
    if (end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    searched = buffer_.size();
    receive_more(deadline, cancel, "an unfinished line");
  }
}

std::string UnixStream::receive_exactly(std::size_t bytes, milliseconds timeout, Cancel& cancel) {
  const auto deadline = steady_clock::now() + timeout;
  while (buffer_.size() < bytes) receive_more(deadline, cancel, "an unfinished answer");
  std::string received = buffer_.substr(0, bytes);
  buffer_.erase(0, bytes);
  return received;
}

void UnixStream::receive_more(steady_clock::time_point deadline, Cancel& cancel, const char* awaited) {
  for (;;) {
    std::array<char, kReadBytes> piece;
    const ssize_t n = ::recv(fd_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (n > 0) {
      buffer_.append(piece.data(), static_cast<std::size_t>(n));
      return;
    }
    if (n == 0) {
      throw VmmError(buffer_.empty() ? "receive from the VMM: it closed the connection"
                                     : fmt::format("receive from the VMM: it closed the connection after {} bytes of "
                                                   "{}",
                                                   buffer_.size(), awaited));
    }
    if (errno == EAGAIN) {
      wait_ready(fd_.get(), POLLIN, deadline, cancel, "receive from the VMM");
    } else if (errno != EINTR) {
      throw VmmError(system_message("receive from the VMM", errno));
    }
  }
}

}  // namespace cocoon::system
