#pragma once
// Processes: identity, the /proc scan, pidfds, and children under cocoon-shim.
// A pid is reused, so it never names a process by itself here: (pid, start time, boot id) does, and every signal goes
// through a pidfd that was checked against it.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

struct ProcessIdentity {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;  // field 22 of /proc/PID/stat, see proc(5)
  std::string boot_id;            // 8 hex digits
  bool operator==(const ProcessIdentity&) const = default;
};

struct ProcessInfo {
  ProcessIdentity identity;
  char state = '?';               // R S D Z T …, see proc(5)
  std::vector<std::string> argv;  // empty for a zombie or kernel thread
  Path cwd;                       // " (deleted)" cut off; empty if it may not be read
  [[nodiscard]] bool zombie() const { return state == 'Z' || state == 'X'; }
};

// nullopt: there is no such process. Errors Inconclusive: /proc cannot be read.
std::optional<ProcessInfo> find_process(pid_t pid);

// Every process for which `wanted` is true. One that ends during the scan is left out.
// Errors   Inconclusive: /proc cannot be read.
std::vector<ProcessInfo> scan_processes(const std::function<bool(const ProcessInfo&)>& wanted);

// A process that cannot become another one.
class Pidfd {
 public:
  // nullopt: that very process is gone (or a zombie).
  static std::optional<Pidfd> open(const ProcessIdentity& identity);

  // True once the process has died (zombies are dead); false when the time is up.
  bool wait(std::chrono::milliseconds timeout, Cancel& cancel) const;
  // False if it is gone already. Errors Error: not permitted.
  bool signal(int number) const;

 private:
  explicit Pidfd(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

// SIGTERM, `grace`, SIGKILL, until it is dead. Errors Error: still alive 5 s after SIGKILL.
void terminate(const Pidfd& process, std::chrono::milliseconds grace, Cancel& cancel);
// SIGKILL, until it is dead; not to be cancelled.
void kill_now(const Pidfd& process);

inline constexpr int kLockFd = 3;  // of the child: the lock it was given

struct SpawnSpec {
  std::vector<std::string> argv;         // argv[0]: absolute path of the program
  std::vector<std::string> environment;  // "K=V"; nothing is inherited
  Path working_dir;
  Path output;                // stdout and stderr are appended here (made 0600)
  int stdin_fd = -1;          // -1: /dev/null. Borrowed, as the next two
  int stdout_fd = -1;         // -1: `output`
  int lock_fd = -1;           // an flocked file: the child holds it as fd 3 for all its life
  std::vector<int> pass_fds;  // become fd 4, 5, … of the child
  Path exit_file;             // the shim writes here when and how the child died
  Path network_namespace;     // entered before the program starts; empty: ours
};

// Starts a program in a session of its own, with umask 077 and no other descriptor of ours, as the child of a
// cocoon-shim that outlives us. Returns when the program runs, or has failed to: exec errors are reported here.
// Errors   StoreError: the program, its folder, its log or the namespace cannot be opened or entered (nothing runs).
ProcessIdentity spawn(const Path& shim, const SpawnSpec& spec);

struct ProgramEnd {
  bool signalled = false;  // else exited
  int status = 0;          // signal number or exit status; -1: the program we live in takes its children's ends away
  std::string output;      // stdout and stderr, cut after 64 KiB
};

// Runs a program to its end: for short questions such as --version. It gets /dev/null to read, and of our environment
// PATH, TMPDIR and LD_LIBRARY_PATH.
// Blocks   until its end; it is killed when the time is up, or on `cancel`.
// Errors   StoreError: it cannot be started. VmmTimeout. Cancelled.
ProgramEnd run_program(const std::vector<std::string>& argv, std::chrono::milliseconds timeout, Cancel& cancel);

// The short list of our environment that programs we start may know of: "K=V".
std::vector<std::string> base_environment();

// What the shim wrote. Source: cpp/shim/shim.c.
struct ExitRecord {
  ProcessIdentity identity;
  std::int64_t uptime_ns = 0;
  std::int64_t wall_ns = 0;
  bool signalled = false;                      // else exited
  int status = 0;                              // signal number or exit status
  [[nodiscard]] std::string describe() const;  // "status 1", "signal 9 (Killed)"
};

// nullopt: there is none, or it is not a well-formed file of ours (regular, our owner, one line).
std::optional<ExitRecord> find_exit_record(const Path& exit_file);

}  // namespace cocoon::system
