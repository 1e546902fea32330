#include "simvmm/log.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

#include <fmt/format.h>

#include "simvmm/console.h"

namespace cocoon::simvmm {
namespace {

std::string_view name_of(Level level) {
  switch (level) {
    case Level::kError:
      return "ERROR";
    case Level::kWarning:
      return "WARN";
    case Level::kInfo:
      return "INFO";
    case Level::kDebug:
      return "DEBUG";
  }
  return {};
}

timespec now(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return time;
}

std::string wall_time() {
  const timespec time = now(CLOCK_REALTIME);
  tm parts{};
  ::gmtime_r(&time.tv_sec, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec, time.tv_nsec);
}

double monotonic_seconds() {
  const timespec time = now(CLOCK_MONOTONIC);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

}  // namespace

Log::Log(Format format, int borrowed, Level level)
    : format_(format), borrowed_(borrowed), level_(level), started_(monotonic_seconds()) {}

void Log::append_to(const std::string& path) {
  system::Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644));
  if (!file) throw SystemError{errno};
  file_ = std::move(file);
}

void Log::write(Level level, std::string_view thread, std::string_view text) {
  if (level > level_) return;
  const std::string line = format_ == Format::kFirecracker
                               ? fmt::format("{} [{}:{}] {}\n", wall_time(), id_, thread, text)
                               : fmt::format("cloud-hypervisor: {:10.6f}s: <{}> {}:simvmm -- {}\n",
                                             monotonic_seconds() - started_, thread, name_of(level), text);
  // Nothing can be done about a log that takes no more.
  [[maybe_unused]] const ssize_t written = ::write(file_ ? file_.get() : borrowed_, line.data(), line.size());
}

}  // namespace cocoon::simvmm
