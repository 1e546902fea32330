#include "cocoon/vmm/qmp.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"

namespace cocoon::vmm {
namespace {

using nlohmann::json;

// An id of ours in each command tells its answer from one that somebody else's half-read conversation left.
constexpr std::string_view kId = "cocoon";

}  // namespace

Qmp::Qmp(const system::Path& socket, std::chrono::milliseconds timeout, system::Cancel& cancel)
    : deadline_(std::chrono::steady_clock::now() + timeout),
      cancel_(cancel),
      stream_(system::UnixStream::connect(socket, timeout)) {
  const auto greeting = receive();
  if (!greeting.contains("QMP")) throw VmmError("QMP: what answers is not QEMU", 0, greeting.dump());
  call("qmp_capabilities");
}

std::chrono::milliseconds Qmp::left() const {
  using namespace std::chrono_literals;
  return std::max(0ms, std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ -
                                                                             std::chrono::steady_clock::now()));
}

json Qmp::receive() {
  const auto line = stream_.receive_line(left(), cancel_);
  auto message = json::parse(line, nullptr, false);
  if (!message.is_object()) throw VmmError("QMP: the answer is not a JSON object", 0, line.substr(0, 1000));
  return message;
}

json Qmp::call(std::string_view command, const std::string& arguments) {
  json request{{"execute", command}, {"id", kId}};
  if (!arguments.empty()) request["arguments"] = json::parse(arguments);
  stream_.send(request.dump() + "\n", left(), cancel_);
  for (;;) {
    auto answer = receive();
    if (answer.contains("event") || answer.value("id", json()) != kId) continue;
    if (const auto error = answer.find("error"); error != answer.end()) {
      const auto why = error->is_object() && error->contains("desc") && (*error)["desc"].is_string()
                           ? (*error)["desc"].get<std::string>()
                           : error->dump();
      throw VmmError(fmt::format("QMP {}: {}", command, why), 0, error->dump());
    }
    if (!answer.contains("return"))
      throw VmmError(fmt::format("QMP {}: neither a result nor an error", command), 0, answer.dump());
    return answer["return"];
  }
}

}  // namespace cocoon::vmm
