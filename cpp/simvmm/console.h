#pragma once
// Where the guest's serial line ends: nowhere, a pair of descriptors, a file, a pseudo-terminal, or a UNIX socket that
// one client at a time has. A reader that does not read never stops the guest: what does not fit is lost. Not so with a
// socket, as with Cloud Hypervisor 53: there it waits until the guest prints more or a new client comes, as does what
// is printed while there is no client; the oldest goes when it is too much. A client that leaves with something unread
// (a reset) is the last one.

#include <poll.h>

#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/system/fd.h"

namespace cocoon::simvmm {

// The system's refusal, errno.
struct SystemError : std::exception {
  explicit SystemError(int its_code) : code(its_code) {}
  int code;
};

// A bound and listening UNIX socket. Errors SystemError
system::Fd listen_at(const std::string& path);
// Whoever listens there is asked nothing. Errors SystemError: nobody does
void check_listens(const std::string& path);

class Console {
 public:
  Console() = default;  // nowhere
  static Console stdio();
  // Output goes here, input still comes from stdin.
  void redirect_output(system::Fd out) { out_ = std::move(out); }
  // Errors   SystemError
  static Console file(const std::string& path);
  static Console pty();
  static Console socket(const std::string& path);

  [[nodiscard]] const std::string& path() const { return path_; }  // of the file, the terminal or the socket

  void write(std::string_view bytes);
  void add_to(std::vector<pollfd>& polls) const;
  // What was typed, where these say that something is there.
  std::string read(const std::vector<pollfd>& polls);
  // Removes the socket's file.
  void unlink_socket();

 private:
  void flush();

  std::string path_;
  int in_ = -1;      // borrowed: stdin
  system::Fd out_;   // output; of a pseudo-terminal and a client also input
  system::Fd held_;  // a pseudo-terminal's other side, so that it never hangs up
  system::Fd listener_;
  bool both_ways_ = false;
  std::string waiting_;  // for the client of a socket
  bool was_reset_ = false;
};

}  // namespace cocoon::simvmm
