#include "cocoon/vmm/qmp.h"

#include <algorithm>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/system/excerpt.h"

namespace cocoon::vmm {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using system::excerpt;

constexpr std::size_t kMaxLineBytes = 1 << 20;  // the longest answer we ask for is a few hundred bytes

milliseconds until(steady_clock::time_point deadline) {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
}

// In slices, since a connect(2) to a full queue waits and cannot be cancelled.
system::UnixStream connect_until(const system::Path& socket, steady_clock::time_point deadline,
                                 system::Cancel& cancel) {
  for (;;) {
    cancel.check();
    const milliseconds left = until(deadline);
    try {
      return system::UnixStream::connect(socket, std::min(left, system::Cancel::kSlice));
    } catch (const VmmTimeout&) {
      if (left <= system::Cancel::kSlice) throw;
    }
  }
}

[[noreturn]] void throw_nonsense(std::string_view awaited, const std::string& line) {
  throw VmmError(fmt::format("QMP: expected {}, received '{}'", awaited, excerpt(line)), 0, line);
}

// Safe on any JSON; "?" if it is not there.
std::string text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string("?");
}

// "7.2.22" of {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, …}, …}}; "" if it is not there.
std::string version_of(const json& greeting) {
  const json qemu = greeting.value(json::json_pointer("/QMP/version/qemu"), json::object());
  const auto number = [&](const char* key) {
    const auto found = qemu.find(key);
    return found != qemu.end() && found->is_number_integer() ? found->get<int>() : -1;
  };
  if (number("major") < 0 || number("minor") < 0 || number("micro") < 0) return {};
  return fmt::format("{}.{}.{}", number("major"), number("minor"), number("micro"));
}

}  // namespace

Qmp Qmp::connect(const system::Path& socket, milliseconds timeout, system::Cancel& cancel) {
  const auto deadline = steady_clock::now() + timeout;
  Qmp session(connect_until(socket, deadline, cancel), deadline, cancel);
  try {
    const json greeting = session.receive("a QMP greeting");
    if (!greeting.contains("QMP")) throw_nonsense("a QMP greeting", greeting.dump());
    session.version_ = version_of(greeting);
  } catch (const VmmTimeout&) {
    throw VmmTimeout(fmt::format("QMP: no greeting on {} within {} ms: QEMU is stopped, or serves another client",
                                 socket.string(), timeout.count()));
  }
  session.execute("qmp_capabilities");
  return session;
}

json Qmp::execute(std::string_view command) { return run(command, {{"execute", command}}); }

json Qmp::execute(std::string_view command, const json& arguments) {
  return run(command, {{"execute", command}, {"arguments", arguments}});
}

json Qmp::execute_with_fd(std::string_view command, const json& arguments, int fd) {
  return run(command, {{"execute", command}, {"arguments", arguments}}, fd);
}

void Qmp::execute_last(std::string_view command) {
  try {
    execute(command);
  } catch (const VmmTimeout&) {
    throw;
  } catch (const VmmError& error) {
    if (!error.body.empty()) throw;  // without one it has closed, which is what was asked
  }
}

json Qmp::run(std::string_view command, json request, int fd) {
  const int id = ++last_id_;
  request["id"] = id;
  const std::string line = request.dump() + "\r\n";
  if (fd >= 0) {
    stream_.send_with_fd(line, fd, left(), *cancel_);
  } else {
    stream_.send(line, left(), *cancel_);
  }
  const std::string awaited = fmt::format("the answer to '{}'", command);
  for (;;) {
    json answer = receive(awaited);
    if (answer.contains("event")) continue;
    const auto error = answer.find("error");
    // An error in the syntax of a request carries no id: the JSON could not be read.
    const auto answered = answer.find("id");
    if ((answered == answer.end() && error == answer.end()) || (answered != answer.end() && *answered != id)) {
      throw_nonsense(awaited, answer.dump());
    }
    if (error != answer.end()) {
      const std::string body = text_of(*error, "class") + ": " + text_of(*error, "desc");
      throw VmmError(fmt::format("QMP: '{}' was refused: {}", command, excerpt(body)), 0, body);
    }
    const auto value = answer.find("return");
    if (value == answer.end()) throw_nonsense(awaited, answer.dump());
    return std::move(*value);
  }
}

json Qmp::receive(std::string_view awaited) {
  cancel_->check();
  // Lines that are there already are received whatever the time: events without end must not go on for ever.
  if (left() == milliseconds(0)) throw VmmTimeout(fmt::format("QMP: not {} in time", awaited));
  const std::string line = stream_.receive_line(left(), *cancel_, kMaxLineBytes);
  json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) throw_nonsense(awaited, line);
  return message;
}

milliseconds Qmp::left() const { return until(deadline_); }

}  // namespace cocoon::vmm
