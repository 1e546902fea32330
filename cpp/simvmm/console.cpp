#include "simvmm/console.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace cocoon::simvmm {
namespace {

constexpr std::size_t kMostWaitingBytes = 65536;

void unblock(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw SystemError{ENAMETOOLONG};
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

bool is_ready(const std::vector<pollfd>& polls, int fd) {
  for (const pollfd& poll : polls) {
    if (fd >= 0 && poll.fd == fd) return poll.revents != 0;
  }
  return false;
}

}  // namespace

system::Fd listen_at(const std::string& path) {
  const sockaddr_un address = address_of(path);
  system::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) throw SystemError{errno};
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), 128) != 0) {
    throw SystemError{errno};
  }
  return fd;
}

void check_listens(const std::string& path) {
  const sockaddr_un address = address_of(path);
  const system::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw SystemError{errno};
  }
}

Console Console::stdio() {
  Console console;
  console.in_ = STDIN_FILENO;
  console.out_ = system::Fd(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  // As Firecracker does, for everyone who has these open.
  unblock(STDIN_FILENO);
  unblock(STDOUT_FILENO);
  return console;
}

Console Console::file(const std::string& path) {
  Console console;
  console.path_ = path;
  console.out_ = system::Fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0666));
  if (!console.out_) throw SystemError{errno};
  return console;
}

Console Console::pty() {
  Console console;
  console.out_ = system::Fd(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
  std::array<char, 64> name{};
  if (!console.out_ || ::unlockpt(console.out_.get()) != 0 ||
      ::ptsname_r(console.out_.get(), name.data(), name.size()) != 0) {
    throw SystemError{errno};
  }
  console.path_ = name.data();
  console.held_ = system::Fd(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  termios settings{};
  if (!console.held_ || ::tcgetattr(console.held_.get(), &settings) != 0) throw SystemError{errno};
  ::cfmakeraw(&settings);
  if (::tcsetattr(console.held_.get(), TCSANOW, &settings) != 0) throw SystemError{errno};
  console.both_ways_ = true;
  return console;
}

Console Console::socket(const std::string& path) {
  Console console;
  console.path_ = path;
  console.listener_ = listen_at(path);
  console.both_ways_ = true;
  return console;
}

void Console::write(std::string_view bytes) {
  if (bytes.empty()) return;
  if (listener_) {
    waiting_ += bytes;
    if (waiting_.size() > kMostWaitingBytes) waiting_.erase(0, waiting_.size() - kMostWaitingBytes);
    flush();
    return;
  }
  if (!out_) return;
  // What a full pipe does not take is lost, as with the VMMs. SIGPIPE is ignored.
  [[maybe_unused]] const ssize_t written = ::write(out_.get(), bytes.data(), bytes.size());
}

void Console::flush() {
  if (!out_ || waiting_.empty()) return;
  const ssize_t written = ::write(out_.get(), waiting_.data(), waiting_.size());
  if (written > 0) waiting_.erase(0, static_cast<std::size_t>(written));
}

void Console::add_to(std::vector<pollfd>& polls) const {
  if (in_ >= 0) polls.push_back({.fd = in_, .events = POLLIN, .revents = 0});
  if (listener_ && !was_reset_) polls.push_back({.fd = listener_.get(), .events = POLLIN, .revents = 0});
  if (both_ways_ && out_) polls.push_back({.fd = out_.get(), .events = POLLIN, .revents = 0});
}

std::string Console::read(const std::vector<pollfd>& polls) {
  std::string typed;
  std::array<char, 512> buffer{};
  if (is_ready(polls, in_)) {
    const ssize_t count = ::read(in_, buffer.data(), buffer.size());
    if (count > 0) typed.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) in_ = -1;
  }
  if (both_ways_ && out_ && is_ready(polls, out_.get())) {
    const ssize_t count = ::read(out_.get(), buffer.data(), buffer.size());
    const int error = count < 0 ? errno : 0;
    if (count > 0) typed.append(buffer.data(), static_cast<std::size_t>(count));
    if (listener_ && error == ECONNRESET) was_reset_ = true;
    if (count == 0 || (count < 0 && error != EAGAIN && error != EINTR)) out_.reset();
  }
  if (!was_reset_ && listener_ && is_ready(polls, listener_.get())) {
    system::Fd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (client) {
      out_ = std::move(client);  // and the one before it is gone
      flush();
    }
  }
  return typed;
}

void Console::unlink_socket() {
  if (listener_) ::unlink(path_.c_str());
}

}  // namespace cocoon::simvmm
