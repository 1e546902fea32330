#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/clock.h"
#include "cocoon/system/path_error.h"
#include "cocoon/system/process.h"
#include "cocoon/system/shim_protocol.h"

namespace cocoon::system {
namespace {

constexpr int kFirstPassedFd = 4;  // 0, 1, 2, and 3 for the lock

Fd open_or_throw(const char* tried, const Path& path, int flags, mode_t mode = 0) {
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, mode));
  if (!fd) throw_store_error(tried, path);
  return fd;
}

void check_spec(const SpawnSpec& spec) {
  if (spec.argv.empty() || !Path(spec.argv.front()).is_absolute()) {
    throw Error("start a program: argv[0] must be an absolute path");
  }
  if (!spec.exit_file.has_filename()) throw Error("start " + spec.argv.front() + ": no exit file was named");
  if (spec.pass_fds.size() > COCOON_SHIM_MAX_FDS - kFirstPassedFd) {
    throw Error(fmt::format("start {}: {} descriptors to pass, at most {} are allowed", spec.argv.front(),
                            spec.pass_fds.size(), COCOON_SHIM_MAX_FDS - kFirstPassedFd));
  }
  // A NUL would cut the string, and another program or argument would be meant.
  const auto holds_nul = [](const std::string& text) { return text.find('\0') != std::string::npos; };
  if (std::any_of(spec.argv.begin(), spec.argv.end(), holds_nul) ||
      std::any_of(spec.environment.begin(), spec.environment.end(), holds_nul)) {
    throw Error("start " + spec.argv.front() + ": an argument or environment variable holds a NUL byte");
  }
}

// What posix_spawn needs; only the descriptors named here reach the shim by our doing.
class SpawnPlan {
 public:
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
    // From its first instruction on, nothing but SIGKILL reaches the shim: no Ctrl-C of our terminal, for example.
    sigset_t all;
    ::sigfillset(&all);
    ::posix_spawnattr_setsigmask(&attributes_, &all);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  void add(std::string argument) { arguments_.push_back(std::move(argument)); }
  // The shim gets the descriptor under its own number: dup2 onto itself clears FD_CLOEXEC, in the child only.
  void add_fd(int fd) {
    if (fd >= 0) {
      const int code = ::posix_spawn_file_actions_adddup2(&actions_, fd, fd);
      if (code != 0) throw Error(system_message(fmt::format("pass descriptor {}", fd), code));
    }
    add(std::to_string(std::max(fd, -1)));
  }

  pid_t run(const Path& shim, const std::vector<std::string>& environment) const {
    pid_t pid = 0;
    // vfork inside: safe with other threads, and nothing is copied.
    const int code = ::posix_spawn(&pid, shim.c_str(), &actions_, &attributes_, pointers(arguments_).data(),
                                   pointers(environment).data());
    if (code != 0) throw_store_error("start", shim, code);
    return pid;
  }

 private:
  static std::vector<char*> pointers(const std::vector<std::string>& strings) {
    std::vector<char*> result;
    result.reserve(strings.size() + 1);
    for (const std::string& text : strings) result.push_back(const_cast<char*>(text.c_str()));
    result.push_back(nullptr);
    return result;
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  std::vector<std::string> arguments_;
};

// The first of the shim's two processes, which ends at once.
std::string reap(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    // ECHILD: the program we live in ignores SIGCHLD, or waits for everybody's children.
    if (errno != EINTR) return "status unknown";
  }
  return WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                             : fmt::format("status {}", WEXITSTATUS(status));
}

std::optional<cocoon_shim_answer> read_answer(int fd, const Path& shim) {
  cocoon_shim_answer answer{};
  for (;;) {
    const ssize_t n = ::read(fd, &answer, sizeof answer);  // a pipe: written whole, read whole
    if (std::cmp_equal(n, sizeof answer)) return answer;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_store_error("read the answer of", shim);
    return std::nullopt;
  }
}

[[noreturn]] void throw_failed_step(const cocoon_shim_answer& answer, const SpawnSpec& spec) {
  const std::string& program = spec.argv.front();
  switch (static_cast<cocoon_shim_step>(answer.step)) {
    case COCOON_SHIM_NAMESPACE:
      throw_store_error("start " + program + ": enter network namespace", spec.network_namespace, answer.error);
    case COCOON_SHIM_FOLDER:
      throw_store_error("start " + program + ": enter folder", spec.working_dir, answer.error);
    case COCOON_SHIM_DESCRIPTORS:
      throw_store_error("pass descriptors to", program, answer.error);
    case COCOON_SHIM_FORK:
      throw_store_error("make a process for", program, answer.error);
    case COCOON_SHIM_IDENTITY:
      throw_store_error("read from /proc the start time of", program, answer.error);
    case COCOON_SHIM_EXEC:
    case COCOON_SHIM_RUNNING:
      break;
  }
  throw_store_error("start", program, answer.error);
}

}  // namespace

ProcessIdentity spawn(const Path& shim, const SpawnSpec& spec) {
  check_spec(spec);
  const std::string& program = spec.argv.front();
  const std::string boot_id = system_clock().boot_id();

  // Whatever can fail is opened here, where the error can be said well, and handed over open.
  const Fd working = open_or_throw("open folder", spec.working_dir, O_PATH | O_DIRECTORY);
  const Path exit_folder = spec.exit_file.has_parent_path() ? spec.exit_file.parent_path() : Path(".");
  const Fd folder = open_or_throw("open folder", exit_folder, O_PATH | O_DIRECTORY);
  const Fd output = open_or_throw("open log", spec.output, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
  const Fd null = open_or_throw("open", "/dev/null", O_RDONLY);
  Fd network;
  if (!spec.network_namespace.empty()) {
    network = open_or_throw("open network namespace", spec.network_namespace, O_RDONLY);
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_store_error("make a pipe to", shim);
  const Fd answers(ends[0]);
  Fd answer_end(ends[1]);

  SpawnPlan plan;
  plan.add("cocoon-shim");
  plan.add(COCOON_SHIM_PROTOCOL);
  plan.add_fd(answer_end.get());
  plan.add_fd(folder.get());
  plan.add(spec.exit_file.filename().string());
  plan.add(boot_id);
  plan.add_fd(working.get());
  plan.add_fd(network.get());
  plan.add(std::to_string(kFirstPassedFd + spec.pass_fds.size()));
  plan.add_fd(spec.stdin_fd >= 0 ? spec.stdin_fd : null.get());
  plan.add_fd(spec.stdout_fd >= 0 ? spec.stdout_fd : output.get());
  plan.add_fd(output.get());
  plan.add_fd(spec.lock_fd);
  for (const int fd : spec.pass_fds) plan.add_fd(fd);
  plan.add("--");
  for (const std::string& argument : spec.argv) plan.add(argument);

  const pid_t first = plan.run(shim, spec.environment);
  answer_end.reset();
  const std::string end = reap(first);
  const std::optional<cocoon_shim_answer> answer = read_answer(answers.get(), shim);
  if (!answer) throw StoreError(fmt::format("start {}: {} died before it ({})", program, shim.string(), end), program);
  if (answer->step != COCOON_SHIM_RUNNING) throw_failed_step(*answer, spec);
  return {static_cast<pid_t>(answer->pid), answer->start_ticks, boot_id};
}

}  // namespace cocoon::system
