#pragma once
// Serves one machine: its API socket, its console, its guest's time. One thread, one request at a time, as the VMMs do.

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cocoon/system/fd.h"
#include "simvmm/http.h"
#include "simvmm/machine.h"

namespace cocoon::simvmm {

class Server {
 public:
  // `listener` may be none: then there is no API. `signals` is a signalfd of those that end the VMM in an orderly way.
  Server(Machine& machine, system::Fd listener, system::Fd signals);
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
    std::string unsent;
  };

  [[nodiscard]] std::vector<pollfd> polls() const;
  [[nodiscard]] int wait_ms() const;
  void accept_one();
  void receive(Connection& connection);
  void answer(Connection& connection, const Request& request);
  void send(Connection& connection, std::string_view bytes);
  void flush(Connection& connection);
  void advance_guest();

  Machine& machine_;
  system::Fd listener_;
  system::Fd signals_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::optional<int> exit_code_;
};

}  // namespace cocoon::simvmm
