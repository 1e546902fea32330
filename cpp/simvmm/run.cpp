#include "simvmm/run.h"

#include <signal.h>

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace cocoon::simvmm {
namespace {

constexpr std::string_view kUsage =
    "usage: cocoon-simvmm firecracker|cloud-hypervisor ARGUMENT...\n"
    "Called by either of these names, or with --api-sock or --api-socket, it takes the arguments of that VMM at once.\n";

std::string_view base_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

int run(const std::vector<std::string>& argv) {
  ::signal(SIGPIPE, SIG_IGN);
  const auto has = [&](std::string_view argument) {
    return std::any_of(argv.begin(), argv.end(), [&](std::string_view given) {
      return given == argument || (given.starts_with(argument) && given.substr(argument.size()).starts_with('='));
    });
  };
  const std::string_view name = argv.empty() ? std::string_view() : base_name(argv[0]);
  if (name.starts_with("firecracker")) return run_firecracker(argv);
  if (name.starts_with("cloud-hypervisor")) return run_cloud_hypervisor(argv);
  if (argv.size() > 1 && (argv[1] == "firecracker" || argv[1] == "cloud-hypervisor")) {
    return run({argv.begin() + 1, argv.end()});
  }
  if (has("--api-sock") || has("--no-api")) return run_firecracker(argv);
  if (has("--api-socket")) return run_cloud_hypervisor(argv);
  fmt::print(stderr, "{}", kUsage);
  return 2;
}

}  // namespace cocoon::simvmm
