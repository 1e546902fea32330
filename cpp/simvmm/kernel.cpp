#include "simvmm/kernel.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <string_view>

#include "cocoon/system/fd.h"

namespace cocoon::simvmm {

bool is_kernel(const std::string& path) {
  const system::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 4> magic{};
  const auto at = [&](off_t offset) {
    const ssize_t count = ::pread(fd.get(), magic.data(), magic.size(), offset);
    return count == static_cast<ssize_t>(magic.size()) ? std::string_view(magic.data(), magic.size())
                                                       : std::string_view();
  };
  return at(0) ==
             "\x7f"
             "ELF" ||
         at(0x202) == "HdrS";
}

}  // namespace cocoon::simvmm
