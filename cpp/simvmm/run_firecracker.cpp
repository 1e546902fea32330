// Firecracker's command line and exit codes.

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "simvmm/firecracker.h"
#include "simvmm/run.h"
#include "simvmm/server.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm {
namespace {

constexpr int kBadArgument = 153;
constexpr int kBadLevel = 152;

constexpr std::array<std::string_view, 15> kWithValue{"api-sock",
                                                      "config-file",
                                                      "describe-snapshot",
                                                      "http-api-max-payload-size",
                                                      "id",
                                                      "level",
                                                      "log-path",
                                                      "metadata",
                                                      "metrics-path",
                                                      "mmds-size-limit",
                                                      "module",
                                                      "parent-cpu-time-us",
                                                      "seccomp-filter",
                                                      "start-time-cpu-us",
                                                      "start-time-us"};
constexpr std::array<std::string_view, 9> kFlags{"boot-timer",      "enable-pci",       "help",
                                                 "no-api",          "no-seccomp",       "show-level",
                                                 "show-log-origin", "snapshot-version", "version"};

// What ends the process before it serves: a line of its log, another on standard error, and the code.
struct Exit {
  int code;
  std::string log;
  std::string error;
};

Exit argument_error(std::string_view text, std::string_view error) {
  return {kBadArgument, fmt::format("Arguments parsing error: {} \\n\\nFor more information try --help.", text),
          fmt::format("ParseArguments({})", error)};
}

std::map<std::string, std::string> parse(const std::vector<std::string>& argv) {
  std::map<std::string, std::string> given;
  for (std::size_t i = 1; i < argv.size(); ++i) {
    std::string name = argv[i];
    if (name.starts_with("--")) name = name.substr(2);
    const bool flag = std::find(kFlags.begin(), kFlags.end(), name) != kFlags.end();
    const bool with_value = std::find(kWithValue.begin(), kWithValue.end(), name) != kWithValue.end();
    if (!argv[i].starts_with("--") || (!flag && !with_value)) {
      throw argument_error(
          fmt::format("Found argument '{}' which wasn't expected, or isn't valid in this context.", name),
          fmt::format("UnexpectedArgument(\"{}\")", name));
    }
    if (given.contains(name)) {
      throw argument_error(fmt::format("The argument '{}' was provided more than once.", name),
                           fmt::format("DuplicateArgument(\"{}\")", name));
    }
    if (with_value && (i + 1 == argv.size() || argv[i + 1].starts_with("--"))) {
      throw argument_error(fmt::format("The argument '{}' requires a value, but none was supplied.", name),
                           fmt::format("MissingValue(\"{}\")", name));
    }
    given[name] = with_value ? argv[++i] : "";
  }
  if (given.contains("no-api") && !given.contains("config-file")) {
    throw argument_error("Argument 'config-file' required, but not found.", "MissingArgument(\"config-file\")");
  }
  return given;
}

// The real one panics and dumps core where no user should ever be.
[[noreturn]] void panic(Log& log, std::string_view text) {
  log.write(Level::kError, "main", fmt::format("Firecracker panicked: {}", text));
  ::abort();
}

void check_id(Log& log, const std::string& id) {
  if (id.empty() || id.size() > 64) panic(log, fmt::format("Invalid instance ID: InvalidLen({}, 1, 64)", id.size()));
  for (std::size_t i = 0; i < id.size(); ++i) {
    const char c = id[i];
    if (c == '-' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) continue;
    panic(log, fmt::format("Invalid instance ID: InvalidChar('{}', {})", c, i));
  }
}

Level level_of(const std::string& name) {
  const std::string lowered = lower(name);
  if (lowered == "error" || lowered == "off") return Level::kError;
  if (lowered == "warning" || lowered == "warn") return Level::kWarning;
  if (lowered == "info") return Level::kInfo;
  if (lowered == "debug" || lowered == "trace") return Level::kDebug;
  throw Exit{kBadLevel,
             fmt::format("Invalid value for logger level: Failed to parse string to level filter: {}.Possible values: "
                         "[Error, Warning, Info, Debug]",
                         name),
             fmt::format("InvalidLogLevel(LevelFilterFromStrError(\"{}\"))", name)};
}

system::Fd listen_on_api(const std::string& path) {
  try {
    return listen_at(path);
  } catch (const SystemError& error) {
    if (error.code == EADDRINUSE) {
      throw Exit{
          1,
          fmt::format("RunWithApiError error: Failed to open the API socket at: {}. Check that it is not already "
                      "used.",
                      path),
          fmt::format("RunWithApi(FailedToBindSocket(\"{}\"))", path)};
    }
    const std::string why = error.code == ENAMETOOLONG ? "path must be shorter than SUN_LEN" : os_error(error.code);
    throw Exit{1, fmt::format("RunWithApiError error: Failed to bind and run the HTTP server: IO error: {}", why),
               fmt::format("RunWithApi(FailedToBindAndRunHttpServer(IOError({})))", why)};
  }
}

void boot_from_file(firecracker::Firecracker& machine, Log& log, const std::string& path) {
  std::string text;
  try {
    text = read_file(path);
  } catch (const SystemError& error) {
    panic(log, fmt::format("Unable to open or read from the configuration file: {}", os_error(error.code)));
  }
  std::string why;
  try {
    machine.apply_config(parse_json(text));
    log.write(Level::kInfo, "main", "Successfully started microvm that was configured from one single json");
    return;
  } catch (const firecracker::Fault& fault) {
    why = fault.message;
  } catch (const JsonError& error) {
    why = error.text;
  }
  throw Exit{1,
             fmt::format("RunWithApiError error: Failed to build MicroVM from Json: Configuration for VMM from one "
                         "single json failed: {}",
                         why),
             "RunWithApi(BuildFromJson(ParseFromJson))"};
}

// SIGHUP ends it with a code of its own; of the others it dies.
system::Fd hang_up_signal() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGHUP);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return system::Fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int serve(const std::map<std::string, std::string>& given, Log& log, Faults& faults) {
  const auto value = [&](const std::string& name, std::string_view otherwise) {
    const auto found = given.find(name);
    return found == given.end() ? std::string(otherwise) : found->second;
  };
  firecracker::Options options{.id = value("id", "anonymous-instance"),
                               .pci = given.contains("enable-pci"),
                               .guest_ignores_requests = faults.plan().guest_ignores_requests};
  check_id(log, options.id);
  log.set_id(options.id);
  if (given.contains("level")) log.set_level(level_of(value("level", "")));
  if (given.contains("log-path")) {
    try {
      log.append_to(value("log-path", ""));
    } catch (const SystemError& error) {
      throw Exit{1, fmt::format("Could not initialize logger: Failed to open target file: {}", os_error(error.code)),
                 fmt::format("LoggerInitialization(LoggerUpdateError({}))", os_error(error.code))};
    }
  }
  log.write(Level::kInfo, "main", fmt::format("Running Firecracker v{}", firecracker::kVersion));
  if (given.contains("http-api-max-payload-size")) {
    const auto bytes = parse_number<std::size_t>(value("http-api-max-payload-size", ""));
    if (!bytes) panic(log, "'http-api-max-payload-size' parameter expected to be of 'usize' type.");
    options.max_body_bytes = *bytes;
  }

  system::Fd signals = hang_up_signal();
  system::Fd listener;
  if (const Fault* slow = faults.at_start(Deed::kSlow)) std::this_thread::sleep_for(slow->time);
  if (!given.contains("no-api") && faults.at_start(Deed::kNoSocket) == nullptr) {
    const std::string path = value("api-sock", "/run/firecracker.socket");
    listener = listen_on_api(path);
    log.write(Level::kInfo, "main", fmt::format("Listening on API socket (\"{}\").", path));
  }
  firecracker::Firecracker machine(options, log, Guest(faults.plan().tick));
  if (given.contains("config-file")) boot_from_file(machine, log, value("config-file", ""));
  log.write(Level::kInfo, "fc_api", "API server started.");
  Server server(machine, faults, std::move(listener), std::move(signals));
  const int code = server.run();
  if (machine.load_failed()) fmt::print(stderr, "Error: RunWithApi(BuildMicroVmError(Restore))\n");
  return code;
}

}  // namespace

int run_firecracker(const std::vector<std::string>& argv, Faults& faults) {
  Log log(Log::Format::kFirecracker, STDOUT_FILENO, Level::kInfo);
  try {
    const std::map<std::string, std::string> given = parse(argv);
    if (given.contains("help")) {
      fmt::print("Firecracker v{}\n\nSimulated by cocoon-simvmm.\n", firecracker::kVersion);
    } else if (given.contains("version")) {
      fmt::print("Firecracker v{}\n\n", firecracker::kVersion);
    } else if (given.contains("snapshot-version") || given.contains("describe-snapshot")) {
      fmt::print("v{}\n", firecracker::kSnapshotVersion);
    } else {
      return serve(given, log, faults);
    }
    ::fflush(stdout);
    log.write(Level::kInfo, "main", "Firecracker exiting successfully. exit_code=0");
    return 0;
  } catch (const Exit& exit) {
    log.write(Level::kError, "main", exit.log);
    log.write(Level::kError, "main", fmt::format("Firecracker exiting with error. exit_code={}", exit.code));
    fmt::print(stderr, "Error: {}\n", exit.error);
    return exit.code;
  }
}

}  // namespace cocoon::simvmm
