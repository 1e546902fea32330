#include "simvmm/server.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace cocoon::simvmm {

Server::Server(Machine& machine, system::Fd listener, system::Fd signals)
    : machine_(machine), listener_(std::move(listener)), signals_(std::move(signals)) {}

Server::~Server() = default;

int Server::run() {
  while (true) {
    advance_guest();
    if (exit_code_) break;
    std::vector<pollfd> ready = polls();
    if (::poll(ready.data(), ready.size(), wait_ms()) < 0) {
      if (errno == EINTR) continue;
      return 1;
    }
    const auto is_ready = [&](int fd) {
      return fd >= 0 && std::any_of(ready.begin(), ready.end(),
                                    [fd](const pollfd& poll) { return poll.fd == fd && poll.revents != 0; });
    };
    if (is_ready(signals_.get())) {
      signalfd_siginfo signal{};
      if (::read(signals_.get(), &signal, sizeof signal) != sizeof signal) continue;
      exit_code_ = machine_.exit_code_of_signal(static_cast<int>(signal.ssi_signo));
      break;
    }
    machine_.guest().type(machine_.console().read(ready));
    for (const auto& connection : connections_) {
      if (exit_code_) break;
      if (!is_ready(connection->fd.get())) continue;
      if (connection->unsent.empty()) {
        receive(*connection);
      } else {
        flush(*connection);
      }
    }
    std::erase_if(connections_, [](const auto& connection) { return !connection->fd; });
    if (!exit_code_ && is_ready(listener_.get())) accept_one();
  }
  machine_.console().write(machine_.guest().take_output());
  machine_.close();
  return *exit_code_;
}

std::vector<pollfd> Server::polls() const {
  std::vector<pollfd> polls;
  const auto add = [&](int fd, short events) {
    if (fd >= 0) polls.push_back({.fd = fd, .events = events, .revents = 0});
  };
  add(signals_.get(), POLLIN);
  add(listener_.get(), POLLIN);
  // A client that does not read its answers is not listened to.
  for (const auto& connection : connections_) add(connection->fd.get(), connection->unsent.empty() ? POLLIN : POLLOUT);
  machine_.console().add_to(polls);
  return polls;
}

int Server::wait_ms() const {
  const std::optional<Clock::time_point> next = machine_.guest().next();
  if (!next) return -1;
  const auto left = *next - std::min(*next, Clock::now());
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count());
}

void Server::accept_one() {
  system::Fd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!client) return;
  if (connections_.size() >= kMostConnections) {
    const std::string refusal = too_many_connections();
    [[maybe_unused]] const ssize_t sent = ::send(client.get(), refusal.data(), refusal.size(), MSG_NOSIGNAL);
    return;
  }
  connections_.push_back(std::make_unique<Connection>(std::move(client), machine_.max_body_bytes()));
}

void Server::receive(Connection& connection) {
  std::array<char, 4096> buffer{};
  const ssize_t count = ::recv(connection.fd.get(), buffer.data(), buffer.size(), 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    connection.fd.reset();
    return;
  }
  for (const Event& event : connection.parser.feed({buffer.data(), static_cast<std::size_t>(count)})) {
    if (exit_code_ || !connection.fd) return;
    if (const auto* request = std::get_if<Request>(&event)) {
      answer(connection, *request);
    } else if (const auto* refusal = std::get_if<Refusal>(&event)) {
      send(connection, refusal->text);
    } else {
      send(connection, render({.status = 100, .body = {}}, "Firecracker API"));
    }
  }
}

void Server::answer(Connection& connection, const Request& request) {
  const Answer answer = machine_.handle(request);
  send(connection, render(answer.response, machine_.server_name()));
  if (answer.exit_code) exit_code_ = answer.exit_code;
}

void Server::send(Connection& connection, std::string_view bytes) {
  connection.unsent += bytes;
  flush(connection);
}

void Server::flush(Connection& connection) {
  while (connection.fd && !connection.unsent.empty()) {
    const ssize_t count = ::send(connection.fd.get(), connection.unsent.data(), connection.unsent.size(), MSG_NOSIGNAL);
    if (count >= 0) {
      connection.unsent.erase(0, static_cast<std::size_t>(count));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      connection.fd.reset();
    }
  }
}

void Server::advance_guest() {
  const std::optional<GuestEnd> end = machine_.guest().advance(Clock::now());
  machine_.console().write(machine_.guest().take_output());
  if (!end) return;
  exit_code_ = machine_.on_guest_end(*end);
  machine_.console().write(machine_.guest().take_output());
}

}  // namespace cocoon::simvmm
