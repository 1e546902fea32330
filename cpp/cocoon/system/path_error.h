#pragma once
// Inside the module: an error number of one path becomes a StoreError.

#include <cerrno>
#include <string>

#include "cocoon/error.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

// "open /x: Permission denied"
[[noreturn]] inline void throw_store_error(const std::string& tried, const Path& path, int code = errno) {
  throw StoreError(system_message(tried + " " + path.string(), code), path.string(), code);
}

}  // namespace cocoon::system
