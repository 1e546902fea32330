#include "simvmm/run.h"

#include <signal.h>

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace cocoon::simvmm {
namespace {

// EX_CONFIG of sysexits.h; no VMM exits with it.
constexpr int kBadPlan = 78;
constexpr std::string_view kUsage =
    "usage: cocoon-simvmm firecracker|cloud-hypervisor ARGUMENT...\n"
    "Called by either of these names, or with --api-sock or --api-socket, it takes the arguments of that VMM at "
    "once.\n";

using Run = int (*)(const std::vector<std::string>&, Faults&);

std::string_view base_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// By the name it is called by, else by an option that only one of them has; null if neither says.
Run runner_of(const std::vector<std::string>& argv) {
  const auto has = [&](std::string_view argument) {
    return std::any_of(argv.begin(), argv.end(), [&](std::string_view given) {
      return given == argument || (given.starts_with(argument) && given.substr(argument.size()).starts_with('='));
    });
  };
  const std::string_view name = argv.empty() ? std::string_view() : base_name(argv[0]);
  if (name.starts_with("firecracker")) return run_firecracker;
  if (name.starts_with("cloud-hypervisor")) return run_cloud_hypervisor;
  if (has("--api-sock") || has("--no-api")) return run_firecracker;
  return has("--api-socket") ? run_cloud_hypervisor : nullptr;
}

}  // namespace

int run(const std::vector<std::string>& argv) {
  ::signal(SIGPIPE, SIG_IGN);
  if (argv.size() > 1 && (argv[1] == "firecracker" || argv[1] == "cloud-hypervisor")) {
    return run({argv.begin() + 1, argv.end()});
  }
  const Run run_vmm = runner_of(argv);
  if (run_vmm == nullptr) {
    fmt::print(stderr, "{}", kUsage);
    return 2;
  }
  try {
    Faults faults(load_plan(argv[0]));
    if (faults.at_start(Deed::kIgnoreSigterm) != nullptr) ::signal(SIGTERM, SIG_IGN);
    return run_vmm(argv, faults);
  } catch (const PlanError& error) {
    fmt::print(stderr, "cocoon-simvmm: {}\n", error.message);
    return kBadPlan;
  }
}

}  // namespace cocoon::simvmm
