#include "cocoon/ledger/buffer.h"

#include <sys/mman.h>

#include <cstdint>

namespace cocoon::ledger {

void prefer_huge_pages(void* memory, std::size_t bytes) {
  constexpr std::uintptr_t kHuge = std::uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
  const std::uintptr_t last = (begin + bytes) / kHuge * kHuge;
  // Advice: where the kernel has no such pages, all is as it was.
  if (first < last)
    static_cast<void>(::madvise(static_cast<char*>(memory) + (first - begin), last - first, MADV_HUGEPAGE));
}

}  // namespace cocoon::ledger
