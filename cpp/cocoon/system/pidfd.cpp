#include <poll.h>
#include <signal.h>
#include <string.h>

extern "C" {
#include <sys/pidfd.h>  // glibc 2.36 forgot this in the header
}

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/clock.h"
#include "cocoon/system/process.h"

namespace cocoon::system {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;

constexpr milliseconds kSlice = Cancel::kSlice / 2;  // so that a poll is never missed by a whole one
constexpr milliseconds kKillLimit{5000};

}  // namespace

std::optional<Pidfd> Pidfd::open(const ProcessIdentity& identity) {
  if (identity.pid <= 0 || identity.boot_id != system_clock().boot_id()) return std::nullopt;
  Fd fd(::pidfd_open(identity.pid, 0));
  if (!fd) {
    // EINVAL, ENOENT: the number now belongs to a thread of another process.
    if (errno == ESRCH || errno == EINVAL || errno == ENOENT) return std::nullopt;
    throw Error(system_message(fmt::format("open process {}", identity.pid), errno));
  }
  // The descriptor is of whoever had the pid when it was opened. If the identity still fits now, that was the one
  // meant: it has lived all along.
  const std::optional<ProcessInfo> info = find_process(identity.pid);
  if (!info || info->identity != identity || info->zombie()) return std::nullopt;
  return Pidfd(std::move(fd));
}

bool Pidfd::wait(nanoseconds timeout, Cancel& cancel) const {
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    const nanoseconds left = deadline - steady_clock::now();
    const timespec slice{0, std::clamp<nanoseconds>(left, nanoseconds(0), kSlice).count()};
    pollfd poll{fd_.get(), POLLIN, 0};
    const int ready = ::ppoll(&poll, 1, &slice, nullptr);
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) throw Error(system_message("wait for a process", errno));
    if (left <= nanoseconds(0)) return false;
    cancel.check();
  }
}

bool Pidfd::signal(int number) const {
  // A zombie takes signals without a word.
  pollfd poll{fd_.get(), POLLIN, 0};
  if (::poll(&poll, 1, 0) > 0) return false;
  if (::pidfd_send_signal(fd_.get(), number, nullptr, 0) == 0) return true;
  if (errno == ESRCH) return false;
  const int code = errno;
  const char* name = ::sigabbrev_np(number);
  throw Error(system_message(fmt::format("send SIG{} to a process", name != nullptr ? name : "?"), code));
}

void terminate(const Pidfd& process, milliseconds grace, Cancel& cancel) {
  if (!process.signal(SIGTERM) || process.wait(grace, cancel)) return;
  kill_now(process);
}

void kill_now(const Pidfd& process) {
  Cancel never;
  if (!process.signal(SIGKILL) || process.wait(kKillLimit, never)) return;
  throw Error(fmt::format("kill a process: still alive {} s after SIGKILL",
                          std::chrono::duration_cast<std::chrono::seconds>(kKillLimit).count()));
}

}  // namespace cocoon::system
