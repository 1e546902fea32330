// What the engine adds to its VMMs: a start's own time, the loop create → start → stop → remove, and 256 at once.
//
//     start_bench [--dir FOLDER] [--run-dir FOLDER] [--rounds 200] [--real-rounds 40] [--together 256]
//
// Records and ledgers are in the one folder, on a disk; run and log dirs in the other, in memory, as /run is: for a
// minute after files were removed ext4 passes over their inodes one by one, which would be most of what is measured.
//
// The VMMs are cocoon-simvmm, called as Firecracker and as Cloud Hypervisor, and for the loop also the real ones where
// COCOON_TEST_VMM_DIR has them with a kernel, guest.elf, and KVM is there. The simulated ones show the engine's own
// time best; how much that is of a VM's life, only the real ones show. What stands against the engine is a bare program
// that has the same VMM spawned by the same system::spawn(), waits for its socket in shorter steps than the engine may,
// sends the same requests, with bodies written beforehand, over a single connection, and ends the guest by the same
// request. It asks nobody whether something is alive and keeps no record. For the loop it does the least that a program
// must do whose VMs are to outlive a power cut: a folder and a disk for each, and one durable line of a ledger for each
// of the four verbs. Whatever the engine does beyond that counts as the engine's own.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/node.h"
#include "cocoon/error.h"
#include "cocoon/system/http.h"
#include "cocoon/system/process.h"
#include "cocoon/system/socket.h"

#include "bench_support.h"

namespace {

namespace fs = std::filesystem;
namespace bench = cocoon::bench;
namespace engine = cocoon::engine;
namespace sys = cocoon::system;
using bench::Clock;
using namespace std::chrono_literals;

constexpr double kOwnTimeLimitUs = 2000;  // of a start; also of all four verbs
constexpr double kLoopLimit = 1.25;
constexpr int kWarmUps = 150;
constexpr auto kTimeout = 10s;
constexpr std::size_t kMaxBody = 50'000;
constexpr std::int64_t kDiskBytes = std::int64_t{1} << 30;
constexpr const char* kDisk = "disk";
constexpr std::array kHypervisors{"firecracker", "cloud-hypervisor"};
constexpr std::string_view kVmId = "abcdefghijklmnopqrstuvwxyz";

struct Request {
  std::string_view method;
  std::string target;
  std::string body = {};
};

// What a program must know of a VMM to run a guest under it.
struct Vmm {
  std::string_view name;
  std::vector<std::string> arguments;
  bool takes_socket;               // bound by us, as descriptor 4; else it makes api.sock itself
  Request is_ready;                // the first that is answered
  std::vector<Request> boot;       // as the driver's boot()
  std::vector<Request> power_off;  // as the driver's request_power_off()
};

Vmm firecracker(const fs::path& kernel, const fs::path& disk) {
  return {.name = "firecracker",
          .arguments = {"--id", std::string(kVmId), "--api-sock", "api.sock", "--log-path", "vmm.log", "--level",
                        "Warning"},
          .takes_socket = false,
          .is_ready = {"GET", "/"},
          .boot = {{"GET", "/"},
                   {"PUT", "/machine-config", R"({"mem_size_mib":512,"vcpu_count":1})"},
                   {"PUT", "/boot-source",
                    fmt::format(R"({{"boot_args":"console=ttyS0 reboot=k panic=1","kernel_image_path":"{}"}})",
                                kernel.string())},
                   {"PUT", "/drives/disk0",
                    fmt::format(R"({{"cache_type":"Writeback","drive_id":"disk0","is_read_only":false,)"
                                R"("is_root_device":false,"path_on_host":"{}"}})",
                                disk.string())},
                   {"PUT", "/entropy", "{}"},
                   {"PUT", "/vsock", R"({"guest_cid":3,"uds_path":"vsock.uds"})"},
                   {"PUT", "/actions", R"({"action_type":"InstanceStart"})"}},
          .power_off = {{"GET", "/"}, {"PUT", "/actions", R"({"action_type":"SendCtrlAltDel"})"}}};
}

Vmm cloud_hypervisor(const fs::path& kernel, const fs::path& disk) {
  return {.name = "cloud-hypervisor",
          .arguments = {"--api-socket", "fd=4"},
          .takes_socket = true,
          .is_ready = {"GET", "/api/v1/vm.info"},
          .boot = {{"GET", "/api/v1/vmm.ping"},
                   {"PUT", "/api/v1/vm.create",
                    fmt::format(R"({{"console":{{"mode":"Off"}},"cpus":{{"boot_vcpus":1,"max_vcpus":1}},)"
                                R"("disks":[{{"id":"disk0","image_type":"Raw","path":"{}","readonly":false,)"
                                R"("sparse":true}}],"memory":{{"shared":true,"size":536870912}},)"
                                R"("payload":{{"cmdline":"console=ttyS0","kernel":"{}"}},)"
                                R"("serial":{{"mode":"Socket","socket":"console.sock"}},)"
                                R"("vsock":{{"cid":3,"id":"vsock","socket":"vsock.uds"}}}})",
                                disk.string(), kernel.string())},
                   {"PUT", "/api/v1/vm.boot"}},
          .power_off = {{"GET", "/api/v1/vm.info"}, {"PUT", "/api/v1/vm.power-button"}}};
}

// Microseconds of each step.
struct Times {
  std::vector<double> create;
  std::vector<double> start;
  std::vector<double> stop;
  std::vector<double> remove;
  std::vector<double> loop;
};

template <class Step>
void timed(std::vector<double>& into, Step&& step) {
  const auto begin = Clock::now();
  step();
  into.push_back(bench::microseconds_since(begin));
}

void append_and_sync(int fd) {
  const std::string entry(300, 'x');
  if (::write(fd, entry.data(), entry.size()) < 0 || ::fdatasync(fd) != 0) throw std::runtime_error("cannot append");
}

class Bare {
 public:
  // `folder` is made for each VM anew, with its disk in it; `ledger` stays.
  Bare(const Vmm& vmm, fs::path binary, fs::path folder, const fs::path& ledger)
      : vmm_(vmm),
        folder_(std::move(folder)),
        ledger_(::open(ledger.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)) {
    spec_.argv = vmm.arguments;
    spec_.argv.insert(spec_.argv.begin(), binary.string());
    spec_.environment = sys::base_environment();
    spec_.working_dir = folder_;
    spec_.output = folder_ / "output";
    spec_.exit_file = folder_ / "exit";
  }

  void run(Times& times) {
    std::optional<sys::Pidfd> process;
    timed(times.loop, [&] {
      timed(times.create, [&] {
        fs::create_directory(folder_);
        sys::make_sparse_file(folder_ / kDisk, kDiskBytes);
        note();
      });
      // The engine's own time in a start has its commit in it.
      timed(times.start, [&] { process = start(); });
      note();
      timed(times.stop, [&] {
        stop(*process);
        note();
      });
      timed(times.remove, [&] {
        fs::remove_all(folder_);
        note();
      });
    });
  }

 private:
  void note() { append_and_sync(ledger_.get()); }

  sys::Pidfd start() {
    auto spec = spec_;
    sys::Fd socket;
    if (vmm_.takes_socket) {
      socket = sys::listen_on(folder_ / "api.sock");
      spec.pass_fds = {socket.get()};
    }
    const auto identity = sys::spawn(COCOON_SHIM, spec);
    socket.reset();
    auto process = sys::Pidfd::open(identity);
    if (!process) throw std::runtime_error(fmt::format("{} ended at once", vmm_.name));
    sys::HttpSession api(folder_ / "api.sock", kMaxBody, kTimeout, never_);
    await(api, *process);
    for (const auto& request : vmm_.boot) send(api, request);
    return *std::move(process);
  }

  void await(sys::HttpSession& api, const sys::Pidfd& process) {
    for (;;) {
      try {
        static_cast<void>(api.request(vmm_.is_ready.method, vmm_.is_ready.target));
        return;
      } catch (const cocoon::VmmError&) {
        if (process.wait(0ms, never_)) throw;
      }
      std::this_thread::sleep_for(100us);
    }
  }

  void stop(const sys::Pidfd& process) {
    sys::HttpSession api(folder_ / "api.sock", kMaxBody, kTimeout, never_);
    for (const auto& request : vmm_.power_off) send(api, request);
    if (!process.wait(kTimeout, never_)) throw std::runtime_error(fmt::format("{} did not end", vmm_.name));
    // Its parent stamps its death, also into a folder that is about to go.
    while (!fs::exists(folder_ / "exit")) std::this_thread::sleep_for(20us);
  }

  static void send(sys::HttpSession& api, const Request& request) {
    const auto answer = api.request(request.method, request.target, request.body);
    if (answer.status >= 300)
      throw std::runtime_error(fmt::format("{} {}: {} {}", request.method, request.target, answer.status, answer.body));
  }

  const Vmm& vmm_;
  fs::path folder_;
  sys::Fd ledger_;
  sys::SpawnSpec spec_;
  sys::Cancel never_;
};

class Engine {
 public:
  Engine(engine::Node& node, const Vmm& vmm, fs::path kernel) : backend_(node, vmm.name), kernel_(std::move(kernel)) {}

  std::string create(std::string name) {
    engine::VmSpec spec;
    spec.name = std::move(name);
    spec.storage_bytes = kDiskBytes;
    spec.kernel = kernel_.string();
    return backend_.create(spec, never_).record.id;
  }

  void warm_up() { backend_.remove(std::vector{create("warm-up")}, false, never_); }

  void run(Times& times) {
    timed(times.loop, [&] {
      std::vector<std::string> ids;
      timed(times.create, [&] { ids.push_back(create("bench")); });
      timed(times.start, [&] { backend_.start(ids, never_); });
      timed(times.stop, [&] { backend_.stop(ids, {}, never_); });
      timed(times.remove, [&] { backend_.remove(ids, false, never_); });
    });
  }

  // Microseconds per VM of one call that starts all of them.
  double start_together(int count) {
    std::vector<std::string> ids;
    for (int i = 0; i < count; ++i) ids.push_back(create(fmt::format("together-{}", i)));
    const auto begin = Clock::now();
    backend_.start(ids, never_);
    const double took = bench::microseconds_since(begin);
    backend_.remove(ids, true, never_);
    return took / count;
  }

 private:
  engine::Backend backend_;
  fs::path kernel_;
  sys::Cancel never_;
};

double median_difference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> differences;
  for (std::size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  return bench::median(differences);
}

void print_steps(std::string_view vmm, std::string_view whose, const Times& times) {
  fmt::print(stderr, "{:<28} {:<8} {:>8.0f} {:>8.0f} {:>8.0f} {:>8.0f} {:>8.0f}\n", vmm, whose,
             bench::median(times.create), bench::median(times.start), bench::median(times.stop),
             bench::median(times.remove), bench::median(times.loop));
}

// Both sides, in turn.
struct Loops {
  Times ours;
  Times bare;
};

Loops run_loops(Engine& ours, Bare& bare, int rounds, std::string_view name) {
  // Until the database's log has its size, which it then keeps: growing a file is a slower kind of sync.
  for (int round = 0; round < kWarmUps; ++round) ours.warm_up();
  Loops warm_up;
  ours.run(warm_up.ours);
  bare.run(warm_up.bare);
  Loops loops;
  for (int round = 0; round < rounds; ++round) {
    ours.run(loops.ours);
    bare.run(loops.bare);
  }
  print_steps(name, "engine", loops.ours);
  print_steps(name, "bare", loops.bare);
  return loops;
}

bench::Row loop_row(std::string_view name, const Loops& loops) {
  return {.what = fmt::format("create, start, stop, remove: {}", name),
          .unit = "us",
          .value = bench::median(loops.ours.loop),
          .baseline = bench::median(loops.bare.loop),
          .against = "bare spawn, calls and books"};
}

bench::Row own_time_row(std::string what, const std::vector<double>& ours, const std::vector<double>& bare) {
  return {.what = std::move(what),
          .unit = "us",
          .value = median_difference(ours, bare),
          .baseline = kOwnTimeLimitUs,
          .against = "allowed",
          .limit = 1};
}

// Where what is measured lies.
struct Place {
  fs::path root;     // of the node
  fs::path run_dir;  // of the node's VMs
  fs::path ledger;   // of the bare program
  fs::path bare;     // its VM
};

engine::NodeOptions node_in(const Place& place) {
  engine::NodeOptions options;
  options.root = place.root;
  options.run_dir = place.run_dir / "run";
  options.log_dir = place.run_dir / "log";
  options.shim = COCOON_SHIM;
  return options;
}

std::array<Vmm, 2> vmms_with(const fs::path& kernel, const Place& place) {
  const auto disk = place.bare / kDisk;
  return {firecracker(kernel, disk), cloud_hypervisor(kernel, disk)};
}

std::vector<bench::Row> measure_simulated(const bench::Folder& folder, const Place& place, int rounds, int together) {
  const auto kernel = folder / "kernel";
  std::string elf =
      "\x7f"
      "ELF";
  elf.resize(1024);
  sys::write_text_atomic(kernel, elf);
  auto options = node_in(place);
  for (const auto* name : kHypervisors) {
    // The simulator is a VMM under that VMM's name.
    fs::copy_file(COCOON_SIMVMM, folder / name);
    options.binaries[name] = folder / name;
  }
  engine::Node node(options);
  std::vector<bench::Row> rows;
  for (const auto& vmm : vmms_with(kernel, place)) {
    const auto name = fmt::format("simulated {}", vmm.name);
    Engine ours(node, vmm, kernel);
    Bare bare(vmm, node.find_binary(vmm.name), place.bare, place.ledger);
    const auto loops = run_loops(ours, bare, rounds, name);
    std::vector<double> per_vm;
    for (int round = 0; round < 3; ++round) per_vm.push_back(ours.start_together(together));
    rows.push_back(own_time_row(fmt::format("start, {}: engine's own time", name), loops.ours.start, loops.bare.start));
    rows.push_back(
        own_time_row(fmt::format("create, start, stop, remove, {}: own time", name), loops.ours.loop, loops.bare.loop));
    rows.push_back(loop_row(name, loops));
    rows.push_back({.what = fmt::format("{} starts at once, per VM: {}", together, name),
                    .unit = "us",
                    .value = bench::median(per_vm),
                    .baseline = bench::median(loops.ours.start),
                    .against = "one alone"});
  }
  return rows;
}

std::vector<bench::Row> measure_real(const fs::path& vmms, const Place& place, int rounds) {
  const auto kernel = vmms / "guest.elf";
  if (vmms.empty() || !fs::exists(kernel) || ::access("/dev/kvm", R_OK | W_OK) != 0) {
    fmt::print(stderr, "no guest.elf in COCOON_TEST_VMM_DIR, or no KVM: only the simulated VMMs\n");
    return {};
  }
  auto options = node_in(place);
  for (const auto* name : kHypervisors) {
    if (fs::exists(vmms / name)) options.binaries[name] = vmms / name;
  }
  engine::Node node(options);
  std::vector<bench::Row> rows;
  for (const auto& vmm : vmms_with(kernel, place)) {
    if (!options.binaries.contains(std::string(vmm.name))) continue;
    Engine ours(node, vmm, kernel);
    Bare bare(vmm, node.find_binary(vmm.name), place.bare, place.ledger);
    rows.push_back(loop_row(vmm.name, run_loops(ours, bare, rounds, vmm.name)));
    rows.back().limit = kLoopLimit;
  }
  return rows;
}

}  // namespace

int main(int count, char** values) {
  const bench::Folder folder(bench::argument(count, values, "--dir", fs::temp_directory_path()));
  const bench::Folder memory(bench::argument(count, values, "--run-dir", "/dev/shm"), bench::Folder::kAny);
  const int rounds = std::stoi(bench::argument(count, values, "--rounds", "200"));
  const int real_rounds = std::stoi(bench::argument(count, values, "--real-rounds", "40"));
  const int together = std::stoi(bench::argument(count, values, "--together", "256"));
  const auto place = [&](const std::string& name) {
    return Place{.root = folder / name,
                 .run_dir = memory / name,
                 .ledger = folder / (name + "-bare-ledger"),
                 .bare = memory / (name + "-bare")};
  };

  fmt::print(stderr, "\n{:<37} {:>8} {:>8} {:>8} {:>8} {:>8}  us, p50\n", "", "create", "start", "stop", "remove",
             "loop");
  bench::report(measure_simulated(folder, place("simulated"), rounds, together));
  const char* vmms = std::getenv("COCOON_TEST_VMM_DIR");
  bench::report(measure_real(vmms != nullptr ? vmms : "", place("real"), real_rounds));
  return 0;
}
