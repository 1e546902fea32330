#include "simvmm/server.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

namespace cocoon::simvmm {

Server::Server(Machine& machine, Faults& faults, system::Fd listener, system::Fd signals)
    : machine_(machine), faults_(faults), listener_(std::move(listener)), signals_(std::move(signals)) {}

Server::~Server() = default;

int Server::run() {
  for (const Deed deed : {Deed::kFork, Deed::kDie, Deed::kHang, Deed::kRefuse}) {
    if (const Fault* fault = faults_.at_start(deed)) inflict(*fault);
  }
  while (true) {
    advance_guest();
    if (exit_code_) break;
    // What was due may have given the guest or a request something to do.
    if (advance_faults()) continue;
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
      if (exit_code_ || is_deaf()) break;
      if (!is_ready(connection->fd.get())) continue;
      if (connection->unsent.empty()) {
        receive(*connection);
      } else {
        flush(*connection);
      }
      serve(*connection);
    }
    std::erase_if(connections_,
                  [this](const auto& connection) { return !connection->fd && connection.get() != slow_; });
    if (!exit_code_ && !is_deaf() && is_ready(listener_.get())) accept_one();
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
  machine_.console().add_to(polls);
  if (is_deaf()) return polls;
  add(listener_.get(), POLLIN);
  // A client that does not read its answers is not listened to.
  for (const auto& connection : connections_) add(connection->fd.get(), connection->unsent.empty() ? POLLIN : POLLOUT);
  return polls;
}

int Server::wait_ms() const {
  std::optional<Clock::time_point> next;
  for (const auto& one : {machine_.guest().next(), faults_.next(), slow_until_}) {
    if (one && (!next || *one < *next)) next = one;
  }
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
  for (Event& event : connection.parser.feed({buffer.data(), static_cast<std::size_t>(count)})) {
    connection.received.push_back(std::move(event));
  }
}

void Server::serve(Connection& connection) {
  while (!connection.received.empty() && connection.fd && connection.unsent.empty() && !exit_code_ && !is_deaf()) {
    const Event event = std::move(connection.received.front());
    connection.received.pop_front();
    if (const auto* request = std::get_if<Request>(&event)) {
      if (const Fault* fault = faults_.on_request(*request)) {
        answer_wrongly(connection, *request, *fault);
      } else {
        answer(connection, *request);
      }
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

void Server::answer_wrongly(Connection& connection, const Request& request, const Fault& fault) {
  machine_.log().write(Level::kError, "fault",
                       fmt::format("simulated fault: {} on {} {}", fault.name, name_of(request.method), request.path));
  std::string right;
  if (fault.takes_effect) {
    const Answer answer = machine_.handle(request);
    right = render(answer.response, machine_.server_name());
    exit_code_ = answer.exit_code;
    advance_guest();
  }
  switch (fault.deed) {
    case Deed::kAnswer: {
      Response wrong = machine_.refusal(fault.status, "simulated fault");
      if (!fault.body.empty()) wrong.body = fault.body;
      if (fault.status == 204) wrong.body.clear();
      send(connection, render(wrong, machine_.server_name()));
      return;
    }
    case Deed::kGarbage:
      send(connection, fault.body.empty() ? std::string_view("\x7f\0 this is not HTTP\r\n\r\n\xff", 24) : fault.body);
      return;
    case Deed::kClose:
      send(connection, std::string_view(right).substr(0, std::min(fault.bytes, right.size())));
      connection.fd.reset();
      return;
    case Deed::kSlow:
      slow_until_ = Clock::now() + fault.time;
      slow_ = &connection;
      connection.received.emplace_front(request);
      return;
    case Deed::kFork:
      inflict(fault);
      answer(connection, request);
      return;
    case Deed::kDie:
    case Deed::kHang:
    case Deed::kRefuse:
    case Deed::kPowerOff:
    case Deed::kIgnoreSigterm:
    case Deed::kKeepSocket:
    case Deed::kNoSocket:
      inflict(fault);
      return;
  }
}

void Server::inflict(const Fault& fault) {
  switch (fault.deed) {
    case Deed::kDie:
      machine_.log().write(Level::kError, "fault", "simulated fault: die");
      // At once, with nothing put away.
      if (fault.signal) {
        ::signal(*fault.signal, SIG_DFL);
        ::kill(::getpid(), *fault.signal);
        ::pause();
      }
      ::_exit(fault.exit_code);
    case Deed::kHang:
      hung_ = true;
      return;
    case Deed::kRefuse:
      listener_.reset();
      for (const auto& connection : connections_) connection->fd.reset();
      return;
    case Deed::kFork:
      // Its child has all that it had open, and outlives it.
      if (::fork() == 0) {
        ::signal(SIGTERM, SIG_DFL);
        sigset_t all;
        ::sigfillset(&all);
        ::sigprocmask(SIG_UNBLOCK, &all, nullptr);
        const auto left = std::chrono::duration_cast<std::chrono::seconds>(fault.time);
        const timespec time{.tv_sec = left.count(), .tv_nsec = (fault.time - left) / std::chrono::nanoseconds(1)};
        ::nanosleep(&time, nullptr);
        ::_exit(0);
      }
      return;
    case Deed::kPowerOff:
      machine_.guest().type("q");
      return;
    case Deed::kAnswer:
    case Deed::kGarbage:
    case Deed::kClose:
    case Deed::kSlow:
    case Deed::kIgnoreSigterm:
    case Deed::kKeepSocket:
    case Deed::kNoSocket:
      return;
  }
}

bool Server::advance_faults() {
  const Clock::time_point now = Clock::now();
  if (const Fault* fault = faults_.take_due(now)) {
    inflict(*fault);
    return true;
  }
  if (!slow_until_ || now < *slow_until_) return false;
  slow_until_.reset();
  Connection& connection = *std::exchange(slow_, nullptr);
  const Event event = std::move(connection.received.front());
  connection.received.pop_front();
  if (const auto* request = std::get_if<Request>(&event)) answer(connection, *request);
  serve(connection);
  return true;
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
