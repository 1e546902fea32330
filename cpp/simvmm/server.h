#pragma once
// Serves one machine: its API socket, its console, its guest's time. One thread, one request at a time, as the VMMs do.

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cocoon/system/fd.h"

#include "simvmm/faults.h"
#include "simvmm/http.h"
#include "simvmm/machine.h"

namespace cocoon::simvmm {

class Server {
 public:
  // `listener` may be none: then there is no API. `signals` is a signalfd of those that end the VMM in an orderly way.
  Server(Machine& machine, Faults& faults, system::Fd listener, system::Fd signals);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Until the VMM exits. Returns its exit code.
  int run();

 private:
  static constexpr std::size_t kMostConnections = 10;

  struct Connection {
    Connection(system::Fd its_fd, std::size_t max_body_bytes) : fd(std::move(its_fd)), parser(max_body_bytes) {}
    system::Fd fd;
    HttpParser parser;
    std::deque<Event> received;  // not yet answered
    std::string unsent;
  };

  [[nodiscard]] std::vector<pollfd> polls() const;
  [[nodiscard]] int wait_ms() const;
  void accept_one();
  void receive(Connection& connection);
  void serve(Connection& connection);
  void answer(Connection& connection, const Request& request);
  void answer_wrongly(Connection& connection, const Request& request, const Fault& fault);
  void inflict(const Fault& fault);
  [[nodiscard]] bool is_deaf() const { return hung_ || slow_until_; }
  [[nodiscard]] bool advance_faults();
  void send(Connection& connection, std::string_view bytes);
  void flush(Connection& connection);
  void advance_guest();

  Machine& machine_;
  Faults& faults_;
  system::Fd listener_;
  system::Fd signals_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::optional<int> exit_code_;
  bool hung_ = false;  // nothing is answered any more; the guest and signals go on
  // A request is being worked on, and nobody else is served.
  std::optional<Clock::time_point> slow_until_;
  Connection* slow_ = nullptr;
};

}  // namespace cocoon::simvmm
