#include <sys/random.h>

#include <array>
#include <cerrno>

#include "cocoon/error.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::store {

std::string make_id() {
  constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::array<unsigned char, 26> random{};
  // Up to 256 bytes come at once and whole; only the wait for the kernel's first entropy can be interrupted.
  while (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    if (errno != EINTR) throw Error(system_message("read random bytes", errno));
  }
  std::string id;
  id.reserve(random.size());
  for (const auto byte : random) id += kAlphabet[byte & 31U];
  return id;
}

}  // namespace cocoon::store
