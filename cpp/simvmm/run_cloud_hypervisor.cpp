// Cloud Hypervisor's command line and exit codes.

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <thread>

#include <fmt/format.h>

#include "simvmm/cloud_hypervisor.h"
#include "simvmm/run.h"
#include "simvmm/server.h"
#include "simvmm/text.h"

namespace cocoon::simvmm {
namespace {

constexpr int kBadArgument = 2;

struct Exit {
  int code;
  std::vector<std::string> chain;  // outermost first
};

// clap's, before anything runs.
struct UsageError {
  std::string text;
};

// The API socket: where it came from, and what must go when the VMM exits in an orderly way.
struct ApiSocket {
  system::Fd listener;
  system::Fd lock;
  std::string path;  // empty: somebody else's, handed over as a descriptor
};

std::map<std::string, std::string> parse(const std::vector<std::string>& argv) {
  static constexpr std::string_view kWithValue[] = {"api-socket",    "log-file", "log-format",
                                                    "event-monitor", "seccomp",  "restore"};
  static constexpr std::string_view kFlags[] = {"no-shutdown", "help", "version"};
  const auto has = [](const auto& names, std::string_view name) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  std::map<std::string, std::string> given;
  for (std::size_t i = 1; i < argv.size(); ++i) {
    std::string name = argv[i];
    if (name == "-V") name = "--version";
    if (name == "-h") name = "--help";
    if (name.starts_with("-v") && name.find_first_not_of('v', 1) == std::string::npos) {
      given["verbose"] = name.substr(1);
      continue;
    }
    const std::size_t equals = name.find('=');
    const std::string whole = name;
    std::string value;
    const bool inlined = name.starts_with("--") && equals != std::string::npos;
    if (inlined) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    const std::string bare = name.starts_with("--") ? name.substr(2) : std::string();
    if (!has(kWithValue, bare) && !has(kFlags, bare)) {
      throw UsageError{fmt::format("unexpected argument '{}' found", name)};
    }
    if (given.contains(bare)) {
      throw UsageError{fmt::format("the argument '{0} <{1}>' cannot be used multiple times", name, bare)};
    }
    if (has(kWithValue, bare) && !inlined) {
      if (i + 1 == argv.size() || argv[i + 1].starts_with("-")) {
        throw UsageError{fmt::format("a value is required for '{0} <{1}>' but none was supplied", name, bare)};
      }
      value = argv[++i];
    }
    given[bare] = value;
  }
  return given;
}

ApiSocket listen_at_path(const std::string& path) {
  constexpr std::string_view kCannot = "Failed to start the VMM thread";
  ApiSocket api{.listener = {}, .lock = {}, .path = path};
  // Whoever holds the lock beside it has the socket; one without it is stale.
  api.lock = system::Fd(::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  struct flock whole{};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (api.lock && ::fcntl(api.lock.get(), F_OFD_SETLK, &whole) != 0) {
    throw Exit{1,
               {std::string(kCannot),
                fmt::format("API socket {} is already in use by another running instance", dump(Json(path)))}};
  }
  ::unlink(path.c_str());
  const mode_t before = ::umask(0077);
  try {
    api.listener = listen_at(path);
  } catch (const SystemError& error) {
    throw Exit{1,
               {std::string(kCannot), "Error creation API server's socket",
                error.code == ENAMETOOLONG ? "path must be shorter than SUN_LEN" : os_error(error.code)}};
  }
  ::umask(before);
  return api;
}

ApiSocket api_socket(const std::string& argument, Log& log) {
  if (argument.starts_with("fd=")) {
    const auto fd = parse_number<int>(argument.substr(3));
    if (!fd) throw Exit{1, {"Error parsing --api-socket", fmt::format("not a descriptor: {}", argument)}};
    int listening = 0;
    socklen_t size = sizeof listening;
    if (::getsockopt(*fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || listening == 0) {
      // The real one's panic runs into its seccomp filter.
      log.write(Level::kError, "main", fmt::format("no listening socket: {}", argument));
      ::raise(SIGSYS);
    }
    ::fcntl(*fd, F_SETFD, FD_CLOEXEC);
    ::fcntl(*fd, F_SETFL, ::fcntl(*fd, F_GETFL) | O_NONBLOCK);
    return {.listener = system::Fd(*fd), .lock = {}, .path = {}};
  }
  return listen_at_path(argument.starts_with("path=") ? argument.substr(5) : argument);
}

system::Fd ending_signals(bool with_sigterm) {
  sigset_t set;
  ::sigemptyset(&set);
  if (with_sigterm) ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGINT);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return system::Fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

// "source_url=file:///d,resume=true" as the body of vm.restore.
Json restore_request(const std::string& argument) {
  Json request = Json::object();
  for (std::size_t at = 0; at <= argument.size();) {
    const std::size_t comma = std::min(argument.find(',', at), argument.size());
    const std::string option = argument.substr(at, comma - at);
    const std::size_t equals = std::min(option.find('='), option.size());
    const std::string name = option.substr(0, equals);
    const std::string value = equals == option.size() ? std::string() : option.substr(equals + 1);
    if (name == "resume" || name == "prefault") {
      request[name] = value == "true" || value == "on";
    } else if (name == "memory_restore_mode") {
      request[name] = lower(value) == "ondemand" ? "OnDemand" : "Copy";
    } else {
      request[name] = value;
    }
    at = comma + 1;
  }
  check_object(request, cloud_hypervisor::kRestore, "");
  return request;
}

int serve(const std::map<std::string, std::string>& given, Log& log, Faults& faults) {
  const auto value = [&](const std::string& name) {
    const auto found = given.find(name);
    return found == given.end() ? std::string() : found->second;
  };
  if (given.contains("verbose")) log.set_level(value("verbose").size() == 1 ? Level::kInfo : Level::kDebug);
  if (given.contains("log-file")) {
    try {
      log.append_to(value("log-file"));
    } catch (const SystemError& error) {
      throw Exit{1, {"Error creating log file", os_error(error.code)}};
    }
  }
  system::Fd signals = ending_signals(faults.at_start(Deed::kIgnoreSigterm) == nullptr);
  ApiSocket api;
  if (const Fault* slow = faults.at_start(Deed::kSlow)) std::this_thread::sleep_for(slow->time);
  if (given.contains("api-socket") && faults.at_start(Deed::kNoSocket) == nullptr) {
    api = api_socket(value("api-socket"), log);
  }
  cloud_hypervisor::CloudHypervisor machine({.exits_with_guest = !given.contains("no-shutdown"),
                                             .guest_ignores_requests = faults.plan().guest_ignores_requests},
                                            log, Guest(faults.plan().tick));
  if (given.contains("restore")) {
    try {
      machine.restore(restore_request(value("restore")));
    } catch (const cloud_hypervisor::Failure& failure) {
      throw Exit{1, failure.chain};
    } catch (const JsonError& error) {
      throw Exit{1, {"Error parsing --restore", error.text}};
    }
  }
  Server server(machine, faults, std::move(api.listener), std::move(signals));
  const int code = server.run();
  const bool keeps = machine.is_broken() || faults.at_start(Deed::kKeepSocket) != nullptr;
  if (!api.path.empty() && !keeps) ::unlink(api.path.c_str());
  return code;
}

}  // namespace

int run_cloud_hypervisor(const std::vector<std::string>& argv, Faults& faults) {
  Log log(Log::Format::kCloudHypervisor, STDERR_FILENO, Level::kWarning);
  constexpr std::string_view kMore = "For more information, try '--help'.";
  try {
    const std::map<std::string, std::string> given = parse(argv);
    if (given.contains("version")) {
      fmt::print("cloud-hypervisor {}\nMigration Protocol Versions: 0\n", cloud_hypervisor::kBuildVersion);
      return 0;
    }
    if (given.contains("help")) {
      fmt::print("Simulated by cocoon-simvmm.\n\nUsage: cloud-hypervisor [OPTIONS]\n");
      return 0;
    }
    if (given.empty()) {
      fmt::print(stderr, "Simulated by cocoon-simvmm.\n\nUsage: cloud-hypervisor [OPTIONS]\n");
      return kBadArgument;
    }
    return serve(given, log, faults);
  } catch (const UsageError& error) {
    fmt::print(stderr, "error: {}\n\nUsage: cloud-hypervisor [OPTIONS]\n\n{}\n", error.text, kMore);
    return kBadArgument;
  } catch (const Exit& exit) {
    log.write(Level::kError, "main", fmt::format("Fatal error: {}", exit.chain.back()));
    fmt::print(stderr, "Error: Cloud Hypervisor exited with the following chain of errors:\n");
    for (std::size_t i = 0; i < exit.chain.size(); ++i) fmt::print(stderr, "  {}: {}\n", i, exit.chain[i]);
    return exit.code;
  }
}

}  // namespace cocoon::simvmm
