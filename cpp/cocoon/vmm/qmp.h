#pragma once
// QMP, QEMU's control protocol: one JSON object per line. A greeting, qmp_capabilities, then commands; events come
// interleaved with answers and are skipped.
// Source   QEMU's docs/interop/qmp-spec.txt.

#include <chrono>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "cocoon/system/cancel.h"
#include "cocoon/system/socket.h"

namespace cocoon::vmm {

// One short conversation. QEMU talks to one client at a time, so hold it no longer than the calls need: a second client
// is connected by the kernel and greeted when the first has left.
// Errors   VmmError: refused (`body` is QMP's error), garbage, closed. VmmTimeout: the deadline covers everything.
class Qmp {
 public:
  Qmp(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel);

  // What stands behind "return". `arguments` is a JSON object, or empty.
  nlohmann::json call(std::string_view command, const std::string& arguments = {});

 private:
  [[nodiscard]] std::chrono::milliseconds left() const;
  nlohmann::json receive();

  std::chrono::steady_clock::time_point deadline_;
  system::Cancel& cancel_;
  system::UnixStream stream_;
};

}  // namespace cocoon::vmm
