#pragma once
// Temp folders, deadlines, and programs under a shim that are gone when the test is.

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/system/file.h"
#include "cocoon/system/process.h"

namespace cocoon::system::testing {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPatience{20'000};  // a loaded machine is no failure

inline bool eventually(const std::function<bool()>& holds, milliseconds patience = kPatience) {
  const auto deadline = steady_clock::now() + patience;
  while (!holds()) {
    if (steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  return true;
}

class TempDir {
 public:
  TempDir() {
    const char* base = ::getenv("TMPDIR");
    std::string name = std::string(base != nullptr ? base : "/tmp") + "/cocoon-system-test-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
    path_ = std::filesystem::canonical(name);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] const Path& path() const { return path_; }
  Path operator/(const Path& name) const { return path_ / name; }

 private:
  Path path_;
};

inline std::string slurp(const Path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void put(const Path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

inline std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> result;
  for (std::string word; in >> word;) result.push_back(word);
  return result;
}

// Fields 3… of /proc/PID/stat: [0] is the state.
inline std::vector<std::string> stat_fields(pid_t pid) {
  const std::string text = slurp("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t end = text.rfind(')');
  return end == std::string::npos ? std::vector<std::string>() : words(text.substr(end + 2));
}

// True once that thread waits in the kernel.
inline bool falls_asleep(pid_t thread) {
  return eventually([&] { return stat_fields(thread).at(0) == "S"; });
}

inline pid_t parent_of(pid_t pid) {
  const std::vector<std::string> fields = stat_fields(pid);
  return fields.size() > 1 ? std::stoi(fields[1]) : -1;
}

// The value of "Name:\tvalue" in /proc/PID/status.
inline std::string status_value(pid_t pid, const std::string& name) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(name + ":\t")) return line.substr(name.size() + 2);
  }
  return "";
}

// Number and target of every open descriptor.
using Fds = std::map<int, std::string>;
inline Fds open_fds(pid_t pid) {
  Fds result;
  std::error_code error;  // descriptors come and go while a program is being loaded
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", error)) {
    const Path target = std::filesystem::read_symlink(entry.path(), error);
    if (!error) result[std::stoi(entry.path().filename())] = target;
  }
  return result;
}

// True once the process has those and no others.
inline bool comes_to_hold(pid_t pid, const Fds& expected) {
  return eventually([&] { return open_fds(pid) == expected; }, milliseconds(5000));
}

inline bool gone(const ProcessIdentity& identity) { return !Pidfd::open(identity).has_value(); }

// A child made by fork(), killed and reaped at the end unless it was before.
class ForkedChild {
 public:
  explicit ForkedChild(const std::function<int()>& body) : pid_(::fork()) {
    if (pid_ != 0) return;
    try {
      ::_exit(body());
    } catch (const std::exception& error) {
      ::dprintf(STDERR_FILENO, "in the child: %s\n", error.what());
      ::_exit(99);
    }
  }
  ~ForkedChild() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      wait();
    }
  }
  ForkedChild(const ForkedChild&) = delete;
  ForkedChild& operator=(const ForkedChild&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_;
};

// A program under a shim. Both are gone afterwards.
class Program {
 public:
  explicit Program(ProcessIdentity identity) : identity_(std::move(identity)) {
    const pid_t parent = parent_of(identity_.pid);
    if (const auto info = find_process(parent); info && !info->argv.empty() && info->argv[0] == "cocoon-shim") {
      shim_ = info->identity;
    }
  }
  ~Program() {
    if (const auto process = Pidfd::open(identity_)) process->signal(SIGKILL);
    wait_shim();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  [[nodiscard]] const ProcessIdentity& identity() const { return identity_; }
  [[nodiscard]] pid_t pid() const { return identity_.pid; }
  [[nodiscard]] const ProcessIdentity& shim() const { return shim_; }  // pid 0: it ended before we looked
  void kill() const {
    if (const auto process = Pidfd::open(identity_)) kill_now(*process);
  }
  // The exit record is written by then.
  bool wait_shim() const {
    return shim_.pid == 0 || eventually([&] { return gone(shim_); });
  }

 private:
  ProcessIdentity identity_;
  ProcessIdentity shim_;
};

// A spec that runs in `dir`: log in "log", exit record in "exit".
inline SpawnSpec spec_in(const TempDir& dir, std::vector<std::string> argv) {
  SpawnSpec spec;
  spec.argv = std::move(argv);
  spec.environment = {"PATH=/usr/bin:/bin"};
  spec.working_dir = dir.path();
  spec.output = dir / "log";
  spec.exit_file = dir / "exit";
  return spec;
}

inline Path shim_path() { return COCOON_SHIM; }

// Ends only when it is killed.
inline std::vector<std::string> long_sleep() { return {"/bin/sleep", "1000"}; }

// The record of a program that ends by itself.
inline std::optional<ExitRecord> wait_exit_record(const Path& exit_file) {
  std::optional<ExitRecord> record;
  eventually([&] { return (record = find_exit_record(exit_file)).has_value(); });
  return record;
}

}  // namespace cocoon::system::testing
