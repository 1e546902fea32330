#include "cocoon/system/byte_stream.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

constexpr std::size_t kBlock = 1 << 20;

bool is_regular(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

// A pipe may be silent for ever: waited for in slices.
void wait_until_ready(int fd, short events, Cancel& cancel) {
  for (;;) {
    cancel.check();
    pollfd ready{.fd = fd, .events = events, .revents = 0};
    if (::poll(&ready, 1, static_cast<int>(Cancel::kSlice.count())) > 0) return;  // or an error that read will tell
  }
}

}  // namespace

FdSource::FdSource(int fd, Path shown, Cancel& cancel)
    : fd_(fd),
      shown_(std::move(shown)),
      cancel_(cancel),
      may_block_(!is_regular(fd)),
      buffer_(std::make_unique_for_overwrite<char[]>(kBlock)) {}

std::string_view FdSource::read() {
  for (;;) {
    if (may_block_)
      wait_until_ready(fd_, POLLIN, cancel_);
    else
      cancel_.check();
    const ssize_t n = ::read(fd_, buffer_.get(), kBlock);
    if (n >= 0) return {buffer_.get(), static_cast<std::size_t>(n)};
    if (errno != EINTR && errno != EAGAIN) throw_store_error("read", shown_);
  }
}

FdSink::FdSink(int fd, Path shown, Cancel& cancel)
    : fd_(fd), shown_(std::move(shown)), cancel_(cancel), may_block_(!is_regular(fd)) {
  gathered_.reserve(kBlock);
}

void FdSink::write(std::string_view bytes) {
  if (gathered_.size() + bytes.size() > kBlock) flush();
  if (bytes.size() >= kBlock)
    write_out(bytes);
  else
    gathered_ += bytes;
}

void FdSink::flush() {
  write_out(gathered_);
  gathered_.clear();
}

void FdSink::write_out(std::string_view bytes) {
  while (!bytes.empty()) {
    if (may_block_)
      wait_until_ready(fd_, POLLOUT, cancel_);
    else
      cancel_.check();
    // More than this could block even in a pipe that is ready.
    const auto most = may_block_ ? std::size_t{PIPE_BUF} : kBlock;
    const ssize_t n = ::write(fd_, bytes.data(), std::min(most, bytes.size()));
    if (n >= 0)
      bytes.remove_prefix(static_cast<std::size_t>(n));
    else if (errno != EINTR && errno != EAGAIN)
      throw_store_error("write", shown_);
  }
}

}  // namespace cocoon::system
