// A durable transition: load the record, apply an event, put it back with a new generation, append one ledger entry;
// acknowledged when a power cut can take neither. Against append of 300 bytes + fdatasync of a plain file beside it,
// against the number of resident VMs, and against the number of threads and processes that do it at once.
//
//   transition_bench [--dir DISK] [--samples 1000] [--per-worker 400] [--rounds 5]

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/store/meta_store.h"

#include "bench_support.h"

namespace {

using namespace cocoon;
using bench::Clock;
namespace fs = std::filesystem;

lifecycle::VmRecord sample_vm(int number) {
  lifecycle::VmRecord vm;
  vm.id = store::make_id();
  vm.hypervisor = "qemu";
  vm.state = lifecycle::VmState::kCreated;
  vm.config.name = fmt::format("tenant-7-worker-{}", number);
  vm.config.cpu = 2;
  vm.config.mem_bytes = std::int64_t{512} << 20;
  vm.config.storage_bytes = std::int64_t{10} << 30;
  vm.config.kernel = "/var/lib/cocoon/guest/vmlinuz";
  vm.config.cmdline = "console=ttyS0 root=/dev/vda rw";
  vm.config.labels = {{"tenant", "seven"}};
  vm.shape = lifecycle::shape_of(vm.config);
  vm.generation = 1;
  vm.created_at_ns = vm.updated_at_ns = 1'790'000'000'123'456'789;
  vm.storage_interval = 1;
  vm.run_dir = "/var/lib/cocoon/run/" + vm.id;
  vm.log_dir = "/var/lib/cocoon/log/" + vm.id;
  return vm;
}

store::Row to_row(const lifecycle::VmRecord& vm) {
  return {.id = vm.id,
          .hypervisor = vm.hypervisor,
          .name = vm.config.name,
          .state = std::string(lifecycle::to_string(vm.state)),
          .generation = vm.generation,
          .document = lifecycle::to_document(vm)};
}

std::unique_ptr<store::MetaStore> open_node(const fs::path& root) {
  return std::make_unique<store::MetaStore>(store::Options{
      .root = root, .recorder = std::make_shared<metering::FileRecorder>(root / "metering" / "ledger.jsonl")});
}

const lifecycle::ProcessIdentity kProcess{.pid = 4242, .start_ticks = 123456, .boot_id = "0badcafe"};

// Makes `count` running VMs; returns their ids.
std::vector<std::string> populate(store::MetaStore& node, int count) {
  std::vector<std::string> ids;
  node.transact([&](store::Transaction& transaction) {
    const auto& moment = transaction.moment();
    const lifecycle::Context context{
        .now = {.wall_ns = moment.wall_ns, .uptime_ns = moment.uptime_ns, .boot_id = moment.boot_id}, .next_seq = 1};
    for (int i = 0; i < count; ++i) {
      const auto outcome = lifecycle::apply(sample_vm(i), lifecycle::MarkStarted{.process = kProcess}, context);
      transaction.put(store::Table::kVm, to_row(outcome.record.value()));
      ids.push_back(outcome.record->id);
    }
  });
  return ids;
}

// Starts the VM if it is not running, else stops it.
void transition(store::MetaStore& node, const std::string& id) {
  node.transact([&](store::Transaction& transaction) {
    const std::optional vm = lifecycle::vm_from_document(transaction.find(store::Table::kVm, id).value().document);
    const auto& moment = transaction.moment();
    const lifecycle::Context context{
        .now = {.wall_ns = moment.wall_ns, .uptime_ns = moment.uptime_ns, .boot_id = moment.boot_id},
        .next_seq = transaction.next_seq(),
        .metered_labels = &node.metered_labels()};
    lifecycle::VmEvent event = lifecycle::MarkStopped{};
    if (vm->state != lifecycle::VmState::kRunning) event = lifecycle::MarkStarted{.process = kProcess};
    const auto outcome = lifecycle::apply(vm, event, context);
    transaction.put(store::Table::kVm, to_row(outcome.record.value()));
    transaction.append(outcome.entries);
  });
}

// Runs the actions in turn, in blocks: in turn, so that a slow moment of the disk meets all of them alike; in blocks,
// so that each has its own data at hand, as it has in a process of its own. Returns the times of each. The first two
// blocks warm up.
std::vector<std::vector<double>> in_turn(const std::vector<std::function<void()>>& actions, int samples) {
  constexpr int kBlock = 20;
  std::vector<std::vector<double>> times(actions.size());
  const int blocks = std::max(1, samples / kBlock);
  for (int block = -2; block < blocks; ++block) {
    for (std::size_t which = 0; which < actions.size(); ++which) {
      for (int i = 0; i < kBlock; ++i) {
        const auto start = Clock::now();
        actions[which]();
        if (block >= 0) times[which].push_back(bench::microseconds_since(start));
      }
    }
  }
  return times;
}

void show_times(const std::string& what, const std::vector<double>& times) {
  fmt::print(stderr, "{:<28} {:>9.1f} {:>9.1f} {:>9.1f}\n", what, bench::median(times), bench::quantile(times, 0.9),
             bench::quantile(times, 0.99));
}

// One VM against the plain file.
bench::Row alone(const bench::Folder& folder, int samples) {
  const auto node = open_node(folder / "alone");
  const auto id = populate(*node, 1).front();
  const int fd = ::open((folder / "plain").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) throw std::runtime_error("cannot make the plain file");
  const std::string line(300, 'x');
  const auto append = [&] {
    if (::write(fd, line.data(), line.size()) < 0 || ::fdatasync(fd) != 0) throw std::runtime_error("plain file");
  };
  const auto times = in_turn({append, [&] { transition(*node, id); }}, samples);
  ::close(fd);
  fmt::print(stderr, "\n{:<28} {:>9} {:>9} {:>9}\n", "", "p50 us", "p90 us", "p99 us");
  show_times("append 300 B + fdatasync", times[0]);
  show_times("transition", times[1]);
  return {.what = "durable transition, 1 resident VM",
          .unit = "us",
          .value = bench::median(times[1]),
          .baseline = bench::median(times[0]),
          .against = "append + fdatasync",
          .limit = 1.2};
}

// Any of many VMs against the only one.
std::vector<bench::Row> resident_vms(const bench::Folder& folder, int samples) {
  constexpr std::array kCounts = {1, 1'000, 10'000, 100'000};
  std::mt19937_64 random(1);
  std::vector<std::function<void()>> actions;
  for (const int count : kCounts) {
    const std::shared_ptr node = open_node(folder / fmt::format("resident-{}", count));
    actions.emplace_back(
        [node, ids = populate(*node, count), &random] { transition(*node, ids[random() % ids.size()]); });
  }
  const auto times = in_turn(actions, samples);
  std::vector<bench::Row> rows;
  for (std::size_t i = 0; i < kCounts.size(); ++i) {
    show_times(fmt::format("transition, {} VMs", kCounts.at(i)), times[i]);
    if (i == 0) continue;
    rows.push_back({.what = fmt::format("the same, {} resident VMs", kCounts.at(i)),
                    .unit = "us",
                    .value = bench::median(times[i]),
                    .baseline = bench::median(times[0]),
                    .against = "at 1 VM",
                    .limit = 1.3});
  }
  return rows;
}

struct Mode {
  const char* what;
  int processes;
  int threads;
};

struct Throughput {
  double per_second = 0;
  double p50 = 0;
  double p99 = 0;
};

// `per_worker` transitions by each worker on a VM of its own. Workers start together.
Throughput run_mode(const fs::path& root, const std::vector<std::string>& ids, const Mode& mode, int per_worker) {
  struct Board {
    std::atomic<int> ready;
    std::atomic<bool> go;
  };
  const auto workers = static_cast<std::size_t>(mode.processes * mode.threads);
  const auto samples = workers * static_cast<std::size_t>(per_worker);
  const auto size = sizeof(Board) + samples * sizeof(double);
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("mmap");
  auto* board = new (memory) Board{};
  auto* times = reinterpret_cast<double*>(static_cast<char*>(memory) + sizeof(Board));

  const auto work = [&](store::MetaStore& node, std::size_t worker) {
    ++board->ready;
    while (!board->go) std::this_thread::yield();
    for (int i = 0; i < per_worker; ++i) {
      const auto start = Clock::now();
      transition(node, ids.at(worker));
      times[worker * static_cast<std::size_t>(per_worker) + static_cast<std::size_t>(i)] =
          bench::microseconds_since(start);
    }
  };
  std::vector<pid_t> children;
  for (int process = 0; process < mode.processes; ++process) {
    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("fork");
    if (child == 0) {
      const auto node = open_node(root);
      std::vector<std::thread> threads;
      for (int thread = 0; thread < mode.threads; ++thread)
        threads.emplace_back([&, thread] { work(*node, static_cast<std::size_t>(process * mode.threads + thread)); });
      for (auto& thread : threads) thread.join();
      // Closing is no part of it.
      ::_exit(0);
    }
    children.push_back(child);
  }
  while (board->ready < static_cast<int>(workers)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto start = Clock::now();
  board->go = true;
  bool good = true;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    good = good && status == 0;
  }
  const double seconds = bench::microseconds_since(start) / 1e6;
  const std::vector<double> all(times, times + samples);
  ::munmap(memory, size);
  if (!good) throw std::runtime_error("a worker failed");
  return {.per_second = static_cast<double>(samples) / seconds,
          .p50 = bench::median(all),
          .p99 = bench::quantile(all, 0.99)};
}

std::vector<bench::Row> concurrency(const bench::Folder& folder, int per_worker, int rounds) {
  const auto root = folder / "concurrency";
  std::vector<std::string> ids;
  {
    ids = populate(*open_node(root), 1'000);
  }
  constexpr std::array kModes = {Mode{"1 thread", 1, 1}, Mode{"8 threads", 1, 8}, Mode{"8 processes", 8, 1},
                                 Mode{"32 processes", 32, 1}};
  std::array<std::vector<Throughput>, kModes.size()> results;
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < kModes.size(); ++i) {
      // About as many transitions in each mode, so that each lasts about as long.
      const auto& mode = kModes.at(i);
      const int workers = mode.processes * mode.threads;
      results.at(i).push_back(run_mode(root, ids, mode, std::max(50, per_worker * 8 / std::max(workers, 4))));
    }
  }
  const auto middle = [](const std::vector<Throughput>& runs, double Throughput::* figure) {
    std::vector<double> values;
    for (const auto& run : runs) values.push_back(run.*figure);
    return bench::median(values);
  };
  std::vector<bench::Row> rows;
  fmt::print(stderr, "\n{:<16} {:>14} {:>9} {:>9}\n", "", "transitions/s", "p50 us", "p99 us");
  for (std::size_t i = 0; i < kModes.size(); ++i)
    fmt::print(stderr, "{:<16} {:>14.0f} {:>9.0f} {:>9.0f}\n", kModes.at(i).what,
               middle(results.at(i), &Throughput::per_second), middle(results.at(i), &Throughput::p50),
               middle(results.at(i), &Throughput::p99));
  const double alone = middle(results.front(), &Throughput::per_second);
  for (std::size_t i = 1; i < kModes.size(); ++i) {
    rows.push_back({.what = fmt::format("transitions, {}", kModes.at(i).what),
                    .unit = "/s",
                    .value = middle(results.at(i), &Throughput::per_second),
                    .baseline = alone,
                    .against = "1 thread",
                    .limit = 1.7,
                    .sense = bench::Limit::kAtLeast});
    rows.push_back({.what = fmt::format("p99, {}", kModes.at(i).what),
                    .unit = "us",
                    .value = middle(results.at(i), &Throughput::p99),
                    .baseline = middle(results.at(i), &Throughput::p50),
                    .against = "p50",
                    .limit = 15});
  }
  return rows;
}

}  // namespace

int main(int count, char** values) {
  const bench::Folder folder(bench::argument(count, values, "--dir", fs::temp_directory_path()));
  const auto number = [&](const char* name, const char* fallback) {
    return std::stoi(bench::argument(count, values, name, fallback));
  };
  // Processes are forked before this one opens anything.
  const auto together = concurrency(folder, number("--per-worker", "400"), number("--rounds", "5"));
  std::vector rows = {alone(folder, number("--samples", "1000"))};
  const auto resident = resident_vms(folder, number("--samples", "1000"));
  rows.insert(rows.end(), resident.begin(), resident.end());
  rows.insert(rows.end(), together.begin(), together.end());
  bench::report(rows);
  return 0;
}
