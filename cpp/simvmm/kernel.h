#pragma once

#include <string>

namespace cocoon::simvmm {

// An ELF or a bzImage, which is what both VMMs boot. False as well for what cannot be read.
bool is_kernel(const std::string& path);

}  // namespace cocoon::simvmm
