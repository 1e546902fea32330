#pragma once
// The version that a program says it is.

#include <string>
#include <string_view>

#include "cocoon/system/file.h"

namespace cocoon::vmm {

// The word that follows `before` in what `binary --version` prints, without a leading "v": "7.2.22", "1.17.0-dev".
// Blocks   while it runs, once per process for each state of the file.
// Errors   VmmError: it cannot be run, fails, or says something else. VmmTimeout.
std::string program_version(const system::Path& binary, std::string_view before);

// The same of a text. Empty: it is not there.
std::string version_after(std::string_view text, std::string_view before);

}  // namespace cocoon::vmm
