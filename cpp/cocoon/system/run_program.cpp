#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <sys/pidfd.h>  // glibc 2.36 has no extern "C" in it
}

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/path_error.h"
#include "cocoon/system/process.h"

namespace cocoon::system {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kMaxOutput = 64 << 10;

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (const std::string& text : strings) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

// Our own child: killed and reaped unless it was awaited.
class Child {
 public:
  Child(const std::vector<std::string>& argv, int output) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
    ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, output, 1);
    ::posix_spawn_file_actions_adddup2(&actions, output, 2);
    // A group of its own, so that what it has started can be killed with it.
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    const auto environment = base_environment();
    const int code = ::posix_spawn(&pid_, argv.front().c_str(), &actions, &attributes, pointers(argv).data(),
                                   pointers(environment).data());
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
    if (code != 0) {
      pid_ = 0;
      throw_store_error("start", argv.front(), code);
    }
    pidfd_.reset(::pidfd_open(pid_, 0));
  }
  ~Child() {
    if (pid_ == 0) return;
    ::kill(-pid_, SIGKILL);
    await();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // True once it has ended, whoever took its wait status.
  [[nodiscard]] bool wait(milliseconds timeout) const {
    pollfd poll{pidfd_.get(), POLLIN, 0};
    return !pidfd_ || ::poll(&poll, 1, static_cast<int>(timeout.count())) > 0;
  }

  // Its wait status, nullopt if somebody else has taken it.
  std::optional<int> await() {
    const pid_t pid = std::exchange(pid_, 0);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
      if (errno != EINTR) return std::nullopt;
    }
    return status;
  }

 private:
  pid_t pid_ = 0;
  Fd pidfd_;  // empty: it is gone already
};

// True at the end of what there is to read.
bool read_some(int fd, std::string& output, const std::string& program) {
  std::array<char, 4096> piece;
  const ssize_t n = ::read(fd, piece.data(), piece.size());
  if (n == 0) return true;
  if (n > 0) {
    output.append(piece.data(), std::min(static_cast<std::size_t>(n), kMaxOutput - output.size()));
  } else if (errno != EINTR && errno != EAGAIN) {
    throw_store_error("read the output of", program);
  }
  return false;
}

}  // namespace

std::vector<std::string> base_environment() {
  std::vector<std::string> environment;
  for (const char* name : {"PATH", "TMPDIR", "LD_LIBRARY_PATH"})
    if (const char* value = std::getenv(name)) environment.push_back(fmt::format("{}={}", name, value));
  environment.emplace_back("LANG=C.UTF-8");
  return environment;
}

ProgramEnd run_program(const std::vector<std::string>& argv, milliseconds timeout, Cancel& cancel) {
  const std::string& program = argv.front();
  const auto deadline = steady_clock::now() + timeout;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_store_error("make a pipe to", program);
  const Fd reading(ends[0]);
  Fd writing(ends[1]);
  Child child(argv, writing.get());
  writing.reset();

  ProgramEnd end;
  const auto slice = [&] {
    cancel.check();
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
    if (left <= milliseconds(0)) {
      throw VmmTimeout(fmt::format("{}: it did not end within {} ms", program, timeout.count()), 0, end.output);
    }
    return std::min(left, Cancel::kSlice / 2);
  };
  // A child of its own that outlives it may hold the pipe: its end is the end.
  for (bool closed = false; !closed;) {
    const bool ended = child.wait(milliseconds(0));
    pollfd poll{reading.get(), POLLIN, 0};
    const int ready = ::poll(&poll, 1, ended ? 0 : static_cast<int>(slice().count()));
    if (ready > 0)
      closed = read_some(reading.get(), end.output, program);
    else if (ended)
      break;
  }
  while (!child.wait(slice())) {
  }
  const auto status = child.await();
  if (!status) {
    end.status = -1;
  } else {
    end.signalled = WIFSIGNALED(*status);
    end.status = end.signalled ? WTERMSIG(*status) : WEXITSTATUS(*status);
  }
  return end;
}

}  // namespace cocoon::system
