#pragma once
// One VMM as its server sees it: requests in, answers out, a guest inside.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "simvmm/console.h"
#include "simvmm/guest.h"
#include "simvmm/http.h"
#include "simvmm/log.h"

namespace cocoon::simvmm {

struct Answer {
  Response response;
  std::optional<int> exit_code = {};  // the VMM exits once it has answered
};

class Machine {
 public:
  Machine(Log& log, Guest guest) : guest_(std::move(guest)), log_(log) {}
  virtual ~Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  [[nodiscard]] virtual std::string_view server_name() const = 0;
  [[nodiscard]] virtual std::size_t max_body_bytes() const = 0;
  virtual Answer handle(const Request& request) = 0;
  // An answer that says no in this VMM's way.
  [[nodiscard]] virtual Response refusal(int status, std::string_view why) const = 0;
  // The guest ended by itself. Says what the VMM exits with, if that is what it does then.
  virtual std::optional<int> on_guest_end(GuestEnd end) = 0;
  // Of the signals it does not die of.
  [[nodiscard]] virtual int exit_code_of_signal(int signal) const = 0;
  // On the way out of an orderly exit.
  virtual void close() = 0;

  Guest& guest() { return guest_; }
  Console& console() { return console_; }
  Log& log() { return log_; }

 protected:
  Guest guest_;
  Console console_;

 private:
  Log& log_;
};

}  // namespace cocoon::simvmm
