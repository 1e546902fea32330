#include "cocoon/system/fd.h"

#include <unistd.h>

namespace cocoon::system {

void Fd::reset(int fd) {
  const int old = std::exchange(fd_, fd);
  // Not repeated on EINTR: Linux has freed the number by then, and another thread may own it already. See close(2).
  if (old >= 0) ::close(old);
}

}  // namespace cocoon::system
