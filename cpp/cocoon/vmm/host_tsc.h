#pragma once
// The rate of this host's time stamp counter, which is what a guest under QEMU's TCG reads as its own.

#include <cstdint>

namespace cocoon::vmm {

// Units    kHz, rounded to whole MHz. 0 where the processor has none.
// Blocks   5 ms, once per process.
std::int64_t host_tsc_khz();

}  // namespace cocoon::vmm
