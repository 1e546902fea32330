#pragma once
// The kernel's calls without a C library: a static one costs every shim 300 KB, this 12. All return the
// result, or -errno. Also the entry point, which calls shim_main().

#include <linux/time_types.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__)

__asm__(
    ".globl _start\n"
    "_start:\n"
    "  xor %ebp, %ebp\n"
    "  mov %rsp, %rdi\n"
    "  and $-16, %rsp\n"
    "  call start\n");

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}

#elif defined(__aarch64__)

__asm__(
    ".globl _start\n"
    "_start:\n"
    "  mov x29, #0\n"
    "  mov x30, #0\n"
    "  mov x0, sp\n"
    "  bl start\n");

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
}

#else
#error "cocoon-shim: only x86-64 and AArch64"
#endif

static _Noreturn void sys_exit(int status) {
  for (;;) call(SYS_exit_group, status, 0, 0, 0, 0);
}
static inline long sys_fork(void) { return call(SYS_clone, SIGCHLD, 0, 0, 0, 0); }
static inline long sys_openat(int folder, const char* name, int flags, unsigned mode) {
  return call(SYS_openat, folder, (long)name, flags, (long)mode, 0);
}
static inline long sys_read(int fd, void* buffer, size_t size) {
  return call(SYS_read, fd, (long)buffer, (long)size, 0, 0);
}
static inline long sys_pread(int fd, void* buffer, size_t size, long offset) {
  return call(SYS_pread64, fd, (long)buffer, (long)size, offset, 0);
}
static inline long sys_write(int fd, const void* buffer, size_t size) {
  return call(SYS_write, fd, (long)buffer, (long)size, 0, 0);
}
static inline long sys_close(int fd) { return call(SYS_close, fd, 0, 0, 0, 0); }
static inline long sys_close_range(unsigned first, unsigned last) {
  return call(SYS_close_range, (long)first, (long)last, 0, 0, 0);
}
static inline long sys_fcntl(int fd, int command, int value) { return call(SYS_fcntl, fd, command, value, 0, 0); }
static inline long sys_dup_to(int fd, int target) { return call(SYS_dup3, fd, target, 0, 0, 0); }
static inline long sys_fdatasync(int fd) { return call(SYS_fdatasync, fd, 0, 0, 0, 0); }
static inline long sys_chdir(const char* path) { return call(SYS_chdir, (long)path, 0, 0, 0, 0); }
static inline long sys_fchdir(int fd) { return call(SYS_fchdir, fd, 0, 0, 0, 0); }
static inline long sys_umask(unsigned mask) { return call(SYS_umask, (long)mask, 0, 0, 0, 0); }
static inline long sys_setsid(void) { return call(SYS_setsid, 0, 0, 0, 0, 0); }
static inline long sys_setns(int fd, int kind) { return call(SYS_setns, fd, kind, 0, 0, 0); }
static inline long sys_prctl(int option, long value) { return call(SYS_prctl, option, value, 0, 0, 0); }
static inline long sys_kill(int pid, int number) { return call(SYS_kill, pid, number, 0, 0, 0); }
static inline long sys_execve(const char* program, char** argv, char** environment) {
  return call(SYS_execve, (long)program, (long)argv, (long)environment, 0, 0);
}
static inline long sys_waitid(int kind, int pid, siginfo_t* info, int options) {
  return call(SYS_waitid, kind, pid, (long)info, options, 0);
}
static inline void sys_yield(void) { call(SYS_sched_yield, 0, 0, 0, 0, 0); }
static inline void sys_sleep_ns(long ns) {
  const struct __kernel_timespec time = {0, ns};
  call(SYS_nanosleep, (long)&time, 0, 0, 0, 0);
}
static inline void sys_clock_gettime(int id, struct __kernel_timespec* now) {
  call(SYS_clock_gettime, id, (long)now, 0, 0, 0);
}
static inline void sys_set_signal_mask(uint64_t mask) {
  call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, sizeof mask, 0);
}
static inline void sys_default_signal(int number) {
  static const uint64_t zeros[8];  // the kernel's struct of SIG_DFL, whatever its layout
  call(SYS_rt_sigaction, number, (long)zeros, 0, sizeof(uint64_t), 0);
}

// The child runs first, on the same stack and memory, until it executes a program or exits. It may call functions, but
// must not return from its caller, into which this is inlined for the same reason.
static inline __attribute__((always_inline)) long sys_vfork(void) {
  return call(SYS_clone, 0x100 /* CLONE_VM */ | 0x4000 /* CLONE_VFORK */ | SIGCHLD, 0, 0, 0, 0);
}

static int shim_main(int argc, char** argv, char** environment);

// What the kernel puts on a new program's stack: argc, argv, NULL, the environment, NULL.
__attribute__((used)) static _Noreturn void start(long* stack) {
  const int argc = (int)stack[0];
  char** argv = (char**)(stack + 1);
  sys_exit(shim_main(argc, argv, argv + argc + 1));
}
