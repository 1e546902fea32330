// cocoon-shim: the parent of one VMM, for as long as that lives. It starts the VMM, waits for its death, and writes one
// line to the exit file that says when and how it died:
//   pid start_ticks uptime_ns wall_ns code status boot_id '\n'
// where code is CLD_EXITED, CLD_KILLED or CLD_DUMPED, see waitid(2). It never touches anything else. If it is killed,
// the VMM lives on and only this line is missing.
//
// One runs per VMM, so its memory counts: no C library, and vfork, which copies no page.
// argv and the answer: cocoon/system/shim_protocol.h.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "cocoon/system/shim_protocol.h"

#include "syscalls.h"

enum {
  USAGE_STATUS = 64,
  BOOT_ID_SIZE = 8,
  FIRST_FD_ARG = 9,
  LAST_SIGNAL = 64,
  SPACES_TO_START = 20  // from the end of field 2 of /proc/PID/stat to field 22
};

struct plan {
  int answer_fd;
  int folder_fd;
  const char* exit_name;
  const char* boot_id;
  int working_fd;
  int namespace_fd;
  int count;
  int fds[COCOON_SHIM_MAX_FDS];
  char** argv;
  char** environment;
};

// Set by the vfork child, in the memory it shares with us.
static volatile int32_t failed_step;
static volatile int32_t failed_error;

static bool same_text(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

static size_t text_size(const char* text) {
  size_t size = 0;
  while (text[size] != '\0') ++size;
  return size;
}

static bool parse_int(const char* text, int least, int* value) {
  if (same_text(text, "-1")) {
    *value = -1;
    return least < 0;
  }
  int result = 0;
  if (*text == '\0' || text_size(text) > 7) return false;
  for (; *text != '\0'; ++text) {
    if (*text < '0' || *text > '9') return false;
    result = result * 10 + (*text - '0');
  }
  *value = result;
  return result >= least;
}

static bool parse_plan(int argc, char** argv, struct plan* plan) {
  if (argc < FIRST_FD_ARG || !same_text(argv[1], COCOON_SHIM_PROTOCOL)) return false;
  plan->exit_name = argv[4];
  plan->boot_id = argv[5];
  if (!parse_int(argv[2], 0, &plan->answer_fd) || !parse_int(argv[3], 0, &plan->folder_fd) ||
      text_size(plan->boot_id) != BOOT_ID_SIZE || !parse_int(argv[6], 0, &plan->working_fd) ||
      !parse_int(argv[7], -1, &plan->namespace_fd) || !parse_int(argv[8], 3, &plan->count) ||
      plan->count > COCOON_SHIM_MAX_FDS || argc < FIRST_FD_ARG + plan->count + 2) {
    return false;
  }
  for (int i = 0; i < plan->count; ++i) {
    if (!parse_int(argv[FIRST_FD_ARG + i], -1, &plan->fds[i])) return false;
  }
  plan->argv = argv + FIRST_FD_ARG + plan->count + 1;
  return same_text(plan->argv[-1], "--");
}

static int close_fds(unsigned first, unsigned last) { return first > last ? 0 : (int)sys_close_range(first, last); }

// Everything but the answer pipe and the folder: above all the lock, which says whether the VMM lives.
static int close_others(const struct plan* plan) {
  const bool answer_first = plan->answer_fd < plan->folder_fd;
  const unsigned low = (unsigned)(answer_first ? plan->answer_fd : plan->folder_fd);
  const unsigned high = (unsigned)(answer_first ? plan->folder_fd : plan->answer_fd);
  int result = low > 0 ? close_fds(0, low - 1) : 0;
  if (result == 0) result = close_fds(low + 1, high - 1);
  if (result == 0) result = close_fds(high + 1, ~0U);
  return result;
}

static int arrange_fds(const struct plan* plan) {
  // Out of the way first: a target's number may be another one's source.
  int moved[COCOON_SHIM_MAX_FDS];
  for (int i = 0; i < plan->count; ++i) {
    moved[i] = -1;
    if (plan->fds[i] < 0) continue;
    moved[i] = (int)sys_fcntl(plan->fds[i], F_DUPFD_CLOEXEC, plan->count);
    if (moved[i] < 0) return moved[i];
  }
  for (int i = 0; i < plan->count; ++i) {
    if (moved[i] < 0) {
      sys_close(i);
      continue;
    }
    const long result = sys_dup_to(moved[i], i);
    if (result < 0) return (int)result;
  }
  return close_fds((unsigned)plan->count, ~0U);
}

static _Noreturn void fail_program(int32_t step, long result) {
  failed_error = (int32_t)-result;
  failed_step = step;
  sys_exit(127);
}

// In the vfork child.
static _Noreturn void run_program(const struct plan* plan) {
  sys_setsid();
  long result = plan->namespace_fd < 0 ? 0 : sys_setns(plan->namespace_fd, CLONE_NEWNET);
  if (result < 0) fail_program(COCOON_SHIM_NAMESPACE, result);
  result = sys_fchdir(plan->working_fd);
  if (result < 0) fail_program(COCOON_SHIM_FOLDER, result);
  result = arrange_fds(plan);
  if (result < 0) fail_program(COCOON_SHIM_DESCRIPTORS, result);
  sys_set_signal_mask(0);
  fail_program(COCOON_SHIM_EXEC, sys_execve(plan->argv[0], plan->argv, plan->environment));
}

static char* put_number(char* at, uint64_t number) {
  char digits[20];
  int count = 0;
  do {
    digits[count++] = (char)('0' + number % 10);
    number /= 10;
  } while (number > 0);
  while (count > 0) *at++ = digits[--count];
  return at;
}

static char* put_text(char* at, const char* text) {
  while (*text != '\0') *at++ = *text++;
  return at;
}

static int open_proc_file(int pid, const char* name) {
  char path[40];
  *put_text(put_number(put_text(path, "/proc/"), (uint64_t)pid), name) = '\0';
  return (int)sys_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
}

// vfork returns in the middle of execve: the new program has no argv yet, and still has the descriptors that are to be
// closed. The kernel sets argv last, so wait for that, or for its death.
static void wait_until_executed(int pid) {
  const int fd = open_proc_file(pid, "/cmdline");
  if (fd < 0) return;
  siginfo_t death;
  for (int round = 0;; ++round) {
    char first;
    if (sys_pread(fd, &first, 1, 0) != 0) break;
    death.si_pid = 0;
    if (sys_waitid(P_PID, pid, &death, WEXITED | WNOWAIT | WNOHANG) < 0 || death.si_pid == pid) break;
    if (round < 200) {  // microseconds, unless the program must be read from the disk
      sys_yield();
    } else {
      sys_sleep_ns(100000);
    }
  }
  sys_close(fd);
}

// Field 22 of /proc/PID/stat, 0 if it cannot be had. Our child is there until we reap it, dead or alive.
static uint64_t read_start_ticks(int pid) {
  const int fd = open_proc_file(pid, "/stat");
  if (fd < 0) return 0;
  char text[512];
  const long size = sys_read(fd, text, sizeof text);
  sys_close(fd);
  const char* end = text + (size > 0 ? size : 0);
  const char* at = end;
  while (at > text && at[-1] != ')') --at;  // the last one: the name before it may hold anything
  for (int spaces = 0; at < end && spaces < SPACES_TO_START; ++at) spaces += *at == ' ';
  uint64_t ticks = 0;
  for (; at < end && *at >= '0' && *at <= '9'; ++at) ticks = ticks * 10 + (uint64_t)(*at - '0');
  return ticks;
}

// Best effort: without us a death is only seen later, and we are too small to be worth killing.
static void refuse_oom_kill(void) {
  const int fd = (int)sys_openat(AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0);
  if (fd < 0) return;
  sys_write(fd, "-1000", 5);
  sys_close(fd);
}

// If the engine is gone, it matters to nobody.
static void answer(const struct plan* plan, int32_t step, int32_t error, int pid, uint64_t start_ticks) {
  const struct cocoon_shim_answer message = {step, error, pid, start_ticks};
  sys_write(plan->answer_fd, &message, sizeof message);
  sys_close(plan->answer_fd);
}

static void reap(int pid) {
  while (sys_waitid(P_PID, pid, NULL, WEXITED) == -EINTR) {
  }
}

static uint64_t read_clock(int id) {
  struct __kernel_timespec now = {0, 0};
  sys_clock_gettime(id, &now);
  return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

// Waits for the VMM, and reaps its orphans meanwhile. The VMM itself stays a zombie, so that nobody gets its pid
// before the line is on the disk.
static int wait_and_record(const struct plan* plan, int pid, uint64_t start_ticks) {
  siginfo_t death;
  for (;;) {
    const long result = sys_waitid(P_ALL, 0, &death, WEXITED | WNOWAIT);
    if (result == -EINTR) continue;
    if (result < 0) return 1;
    if (death.si_pid == pid) break;
    reap(death.si_pid);
  }
  const uint64_t uptime_ns = read_clock(CLOCK_BOOTTIME);
  const uint64_t wall_ns = read_clock(CLOCK_REALTIME);

  char line[160];
  char* at = put_number(line, (uint64_t)pid);
  at = put_number(put_text(at, " "), start_ticks);
  at = put_number(put_text(at, " "), uptime_ns);
  at = put_number(put_text(at, " "), wall_ns);
  at = put_number(put_text(at, " "), (uint64_t)death.si_code);
  at = put_number(put_text(at, " "), (uint64_t)death.si_status);
  at = put_text(put_text(put_text(at, " "), plan->boot_id), "\n");

  // O_NONBLOCK: a fifo somebody put there must not hold us. One write: readers see nothing or the whole line.
  const int fd = (int)sys_openat(plan->folder_fd, plan->exit_name,
                                 O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
  const bool written = fd >= 0 && sys_write(fd, line, (size_t)(at - line)) == at - line && sys_fdatasync(fd) == 0;
  reap(pid);
  return written ? 0 : 1;
}

// In the second process, whom init reaps.
static int run_shim(const struct plan* plan) {
  sys_setsid();
  sys_umask(077);
  sys_prctl(PR_SET_CHILD_SUBREAPER, 1);

  // Returns once the program is being executed or has failed to, and then knows which: no second pipe.
  const int pid = (int)sys_vfork();
  if (pid == 0) run_program(plan);

  if (pid > 0 && failed_step == COCOON_SHIM_RUNNING) wait_until_executed(pid);
  // Before the answer: once the engine knows of the program, only the program holds its lock.
  const int closed = close_others(plan);
  if (pid < 0) {
    answer(plan, COCOON_SHIM_FORK, -pid, 0, 0);
    return 1;
  }
  if (failed_step != COCOON_SHIM_RUNNING) {
    reap(pid);
    answer(plan, failed_step, failed_error, 0, 0);
    return 1;
  }
  const uint64_t start_ticks = read_start_ticks(pid);
  if (closed < 0 || start_ticks == 0) {
    sys_kill(pid, SIGKILL);
    reap(pid);
    if (closed < 0) {
      answer(plan, COCOON_SHIM_DESCRIPTORS, -closed, 0, 0);
    } else {
      answer(plan, COCOON_SHIM_IDENTITY, ENOENT, 0, 0);
    }
    return 1;
  }
  refuse_oom_kill();  // not before: the program would have inherited it
  sys_chdir("/");     // nobody's mount stays busy for us
  answer(plan, COCOON_SHIM_RUNNING, 0, pid, start_ticks);
  return wait_and_record(plan, pid, start_ticks);
}

static int shim_main(int argc, char** argv, char** environment) {
  struct plan plan;
  if (!parse_plan(argc, argv, &plan)) return USAGE_STATUS;
  plan.environment = environment;
  sys_set_signal_mask(~(uint64_t)0);
  for (int number = 1; number <= LAST_SIGNAL; ++number) sys_default_signal(number);  // ignored SIGCHLD: no death seen
  // The engine reaps the first process at once and never has to think of the second.
  const int pid = (int)sys_fork();
  if (pid == 0) return run_shim(&plan);
  if (pid < 0) answer(&plan, COCOON_SHIM_FORK, -pid, 0, 0);
  return pid < 0 ? 1 : 0;
}
