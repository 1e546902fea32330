#include "cocoon/system/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <memory>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/clock.h"

namespace cocoon::system {
namespace {

constexpr int kFieldsFromStateToStart = 19;  // fields 3 and 22 of /proc/PID/stat, see proc(5)

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};
using Dir = std::unique_ptr<DIR, CloseDir>;

// The process ended between two of our calls.
bool vanished(int code) { return code == ENOENT || code == ESRCH; }

[[noreturn]] void throw_inconclusive(const std::string& what, int code) {
  throw Inconclusive(system_message("read " + what, code));
}

Dir open_proc() {
  Dir dir(::opendir("/proc"));
  if (!dir) throw_inconclusive("/proc", errno);
  return dir;
}

std::optional<pid_t> parse_pid(std::string_view name) {
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
  if (error != std::errc() || end != name.data() + name.size() || pid <= 0) return std::nullopt;
  return pid;
}

struct StatFields {
  char state;
  std::uint64_t start_ticks;
};

// "PID (NAME) STATE …": NAME may hold anything, spaces and parentheses included, so count from the last ')'.
std::optional<StatFields> parse_stat(std::string_view text) {
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string_view::npos || text.size() < name_end + 3) return std::nullopt;
  text.remove_prefix(name_end + 2);
  StatFields fields{text.front(), 0};
  for (int i = 0; i < kFieldsFromStateToStart; ++i) {
    const std::size_t space = text.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    text.remove_prefix(space + 1);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), fields.start_ticks);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return fields;
}

// Reads the processes one after the other, into the same buffer.
class ProcReader {
 public:
  explicit ProcReader(int proc_fd) : proc_fd_(proc_fd), boot_id_(system_clock().boot_id()) {}

  std::optional<ProcessInfo> find(pid_t pid) {
    // One descriptor for all files: they are of one process, even if the pid is reused meanwhile.
    const Fd folder(::openat(proc_fd_, fmt::format_int(pid).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder) {
      if (vanished(errno)) return std::nullopt;
      throw_inconclusive(shown(pid, ""), errno);
    }
    if (!read_file(folder.get(), pid, "stat")) return std::nullopt;
    const std::optional<StatFields> stat = parse_stat({buffer_.data(), used_});
    if (!stat) throw Inconclusive("read " + shown(pid, "stat") + ": not in the form of proc(5)");

    ProcessInfo info;
    info.identity = {pid, stat->start_ticks, boot_id_};
    info.state = stat->state;
    if (!read_file(folder.get(), pid, "cmdline")) return std::nullopt;
    split_argv(info.argv);
    read_cwd(folder.get(), pid, info.cwd);
    return info;
  }

 private:
  static std::string shown(pid_t pid, const char* name) { return fmt::format("/proc/{}/{}", pid, name); }

  // False: the process has vanished.
  bool read_file(int folder, pid_t pid, const char* name) {
    const Fd fd(::openat(folder, name, O_RDONLY | O_CLOEXEC));
    used_ = 0;
    while (fd) {
      const std::size_t room = buffer_.size() - used_;
      const ssize_t n = ::read(fd.get(), buffer_.data() + used_, room);
      if (n < 0) break;
      used_ += static_cast<std::size_t>(n);
      if (std::cmp_less(n, room)) return true;  // procfs gives less at the end only: saves the read of 0
      buffer_.resize(buffer_.size() * 2);
    }
    if (vanished(errno)) return false;
    throw_inconclusive(shown(pid, name), errno);
  }

  void split_argv(std::vector<std::string>& argv) const {
    std::string_view rest(buffer_.data(), used_);
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find('\0'), rest.size());
      argv.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }

  static void read_cwd(int folder, pid_t pid, Path& cwd) {
    std::array<char, PATH_MAX> target;
    const ssize_t size = ::readlinkat(folder, "cwd", target.data(), target.size());
    if (size < 0) {
      // Another user's, or a zombie's.
      if (errno == EACCES || errno == EPERM || errno == ENAMETOOLONG || vanished(errno)) return;
      throw_inconclusive(shown(pid, "cwd"), errno);
    }
    std::string_view text(target.data(), static_cast<std::size_t>(size));
    constexpr std::string_view kDeleted = " (deleted)";
    if (text.ends_with(kDeleted)) text.remove_suffix(kDeleted.size());
    cwd = text;
  }

  int proc_fd_;
  std::string boot_id_;
  std::vector<char> buffer_ = std::vector<char>(4096);
  std::size_t used_ = 0;
};

}  // namespace

std::optional<ProcessInfo> find_process(pid_t pid) {
  if (pid <= 0) return std::nullopt;
  const Fd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!proc) throw_inconclusive("/proc", errno);
  std::optional<ProcessInfo> info = ProcReader(proc.get()).find(pid);
  // Absence means something only where /proc is mounted.
  if (!info && ::faccessat(proc.get(), "self/stat", F_OK, 0) != 0) throw_inconclusive("/proc/self/stat", errno);
  return info;
}

std::vector<ProcessInfo> scan_processes(const std::function<bool(const ProcessInfo&)>& wanted) {
  const Dir dir = open_proc();
  ProcReader reader(::dirfd(dir.get()));
  std::vector<ProcessInfo> found;
  bool saw_any = false;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) {
      if (errno != 0) throw_inconclusive("/proc", errno);
      break;
    }
    const std::optional<pid_t> pid = parse_pid(entry->d_name);
    if (!pid) continue;
    std::optional<ProcessInfo> info;
    try {
      info = reader.find(*pid);
    } catch (const Inconclusive&) {
      // Mounted with hidepid, /proc keeps other users' processes to itself: none of those is anything we started.
      struct stat owner{};
      if (::fstatat(::dirfd(dir.get()), entry->d_name, &owner, 0) != 0 || owner.st_uid == ::geteuid()) throw;
      continue;
    }
    if (!info) continue;
    saw_any = true;
    if (wanted(*info)) found.push_back(std::move(*info));
  }
  if (!saw_any) throw Inconclusive("read /proc: it shows no process, not even this one");
  return found;
}

}  // namespace cocoon::system
