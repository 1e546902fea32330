// The engine's sequences with real threads and, where QEMU is installed, real VMMs: what the sanitizers watch. The
// scenarios with a booted guest, other processes and kills are in tests/py.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/engine/backend.h"
#include "cocoon/engine/commit.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

int scaled(int rounds) {
  const char* scale = std::getenv("COCOON_TEST_SCALE");
  return std::max(1, static_cast<int>(rounds * (scale != nullptr ? std::strtod(scale, nullptr) : 1.0)));
}

// What a verb may be told that came second; a start too that its VMM was killed, by a removal that is not done yet.
bool is_lost_race(const Error& error) {
  return dynamic_cast<const NotFound*>(&error) != nullptr || dynamic_cast<const VmmError*>(&error) != nullptr ||
         dynamic_cast<const InvalidState*>(&error) != nullptr || dynamic_cast<const AlreadyExists*>(&error) != nullptr;
}

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    std::string form = (fs::temp_directory_path() / "ce-XXXXXX").string();
    root_ = ::mkdtemp(form.data());
    recorder_ = std::make_shared<metering::CaptureRecorder>();
    NodeOptions options;
    options.root = root_;
    options.recorder = recorder_;
    options.shim = COCOON_SHIM;
    node_ = std::make_unique<Node>(std::move(options));
    backend_ = std::make_unique<Backend>(*node_, "qemu", BackendOptions{.binary = {}, .socket_timeout = 60s});
  }

  ~EngineTest() override {
    for (const auto& vm : node_->vms()) {
      const std::string ref[] = {vm.record.id};
      backend_->remove(ref, true, never_);
    }
    backend_.reset();
    node_.reset();
    fs::remove_all(root_);
  }

  std::string create(const std::string& name, const std::string& machine = {}) {
    VmSpec spec;
    spec.name = name;
    spec.storage_bytes = 0;
    spec.mem_bytes = 64 << 20;
    spec.machine = machine;
    spec.accelerator = "tcg";
    return backend_->create(spec, never_).record.id;
  }

  // Entries of one VM as "vm.compute.start boot".
  std::vector<std::string> said(const std::string& id) const {
    std::vector<std::string> lines;
    for (const auto& entry : recorder_->entries())
      if (entry.vm_id == id)
        lines.push_back(fmt::format("{} {}", to_string(entry.kind), entry.reason ? to_string(*entry.reason) : "-"));
    return lines;
  }

  // Runs the calls at once; true for those that did not throw NotFound or InvalidState.
  static std::vector<bool> race(const std::vector<std::function<void()>>& calls) {
    std::barrier gate(static_cast<std::ptrdiff_t>(calls.size()));
    std::vector<std::atomic<bool>> won(calls.size());
    std::vector<std::jthread> threads;
    threads.reserve(calls.size());
    for (std::size_t i = 0; i < calls.size(); ++i)
      threads.emplace_back([&, i] {
        gate.arrive_and_wait();
        try {
          calls[i]();
          won[i] = true;
        } catch (const Error& error) {
          EXPECT_TRUE(is_lost_race(error)) << error.what();
        }
      });
    threads.clear();
    return {won.begin(), won.end()};
  }

  void start(const std::string& id) { backend_->start(std::vector{id}, never_); }
  void remove(const std::string& id) { backend_->remove(std::vector{id}, true, never_); }

  fs::path root_;
  std::shared_ptr<metering::CaptureRecorder> recorder_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<Backend> backend_;
  system::Cancel never_;
};

TEST_F(EngineTest, RemoveWithForceBeatsMarkError) {
  for (int i = 0; i < scaled(200); ++i) {
    const auto id = create(fmt::format("v{}", i));
    backend_->mark_started(std::vector{id}, never_);
    const auto won = race({[&] { backend_->mark_error(id); }, [&] { remove(id); }});
    EXPECT_TRUE(won[1]);
    EXPECT_EQ(said(id), (std::vector<std::string>{"vm.storage.start boot", "vm.compute.start boot",
                                                  "vm.compute.stop stop-crash", "vm.storage.stop vm-rm"}));
    recorder_->reset();
  }
}

TEST_F(EngineTest, OneOfManyRemovalsWins) {
  for (int i = 0; i < scaled(50); ++i) {
    const auto id = create(fmt::format("v{}", i));
    const auto won = race({4, [&] { remove(id); }});
    EXPECT_EQ(std::count(won.begin(), won.end(), true), 1);
  }
}

// Its placeholder has a name already: who removes that takes the folders from under the creation.
TEST_F(EngineTest, CreateAgainstRemoveWithForceLosesAsNotFound) {
  for (int i = 0; i < scaled(100); ++i) {
    std::atomic<bool> over = false;
    race({[&] {
            try {
              create("web");
            } catch (const Error& error) {
              EXPECT_NE(dynamic_cast<const NotFound*>(&error), nullptr) << error.what();
            }
            over = true;
          },
          [&] {
            while (!over) try {
                remove("web");
              } catch (const NotFound&) {
                std::this_thread::yield();
              }
          }});
    for (const auto& vm : node_->vms()) remove(vm.record.id);
    EXPECT_TRUE(fs::is_empty(root_ / "run" / "qemu"));
  }
}

TEST_F(EngineTest, StormOfVerbsKeepsEntriesAlternating) {
  const auto seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::vector<std::function<void()>> storms;
  storms.reserve(6);
  for (unsigned t = 0; t < 6; ++t)
    storms.emplace_back([&, t] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < scaled(80); ++i) {
        const std::vector<std::string> ref{fmt::format("v{}", random() % 3)};
        try {
          switch (random() % 8) {
            case 0:
            case 1:
              create(ref.front());
              break;
            case 2:
              backend_->mark_started(ref, never_);
              break;
            case 3:
              backend_->mark_error(ref.front());
              break;
            case 4:
              backend_->stop(ref, {.force = true, .timeout = {}}, never_);
              break;
            case 5:
              backend_->remove(ref, true, never_);
              break;
            case 6:
              node_->reconcile(true, never_);
              break;
            default:
              EXPECT_LE(backend_->list({}, {}).size(), 3U);
              break;
          }
        } catch (const Error& error) {
          EXPECT_TRUE(is_lost_race(error)) << error.what();
        }
      }
    });
  race(storms);
  std::map<std::string, std::pair<bool, bool>> open;  // storage, compute
  std::uint64_t seq = 0;
  for (const auto& entry : recorder_->entries()) {
    EXPECT_EQ(entry.seq, ++seq);
    auto& [storage, compute] = open[entry.vm_id];
    const bool is_compute =
        entry.kind == metering::Kind::kVmComputeStart || entry.kind == metering::Kind::kVmComputeStop;
    auto& dimension = is_compute ? compute : storage;
    EXPECT_NE(dimension, is_start(entry.kind)) << to_json(entry);
    dimension = is_start(entry.kind);
    EXPECT_TRUE(storage || !compute) << to_json(entry);
  }
}

TEST_F(EngineTest, CancelledWaitForTheOpLockLeavesEverythingAsItWas) {
  const auto id = create("web");
  const auto held = system::FileLock::acquire(node_->op_lock_path(id));
  system::Cancel cancel;
  std::jthread requester([&] { cancel.request(); });
  EXPECT_THROW(backend_->stop(std::vector{id}, {}, cancel), Cancelled);
  EXPECT_EQ(backend_->inspect(id).record.state, lifecycle::VmState::kCreated);
}

TEST_F(EngineTest, CommitIfLosesAgainstAnyCommit) {
  const auto id = create("web");
  const auto seen = load_vm(node_->store(), id);
  commit(node_->store(), id, lifecycle::MarkError{});
  const auto lost = commit_if(node_->store(), seen, lifecycle::MarkStarted{});
  EXPECT_EQ(lost.race, Race::kChanged);
  EXPECT_EQ(lost.record->state, lifecycle::VmState::kError);
  EXPECT_EQ(said(id), std::vector<std::string>{"vm.storage.start boot"});
  remove(id);
  EXPECT_EQ(commit_if(node_->store(), seen, lifecycle::MarkStarted{}).race, Race::kGone);
}

// A q35 machine without a kernel sits in its firmware: a real VMM, alive within a tenth of a second.
class EngineVmmTest : public EngineTest {
 protected:
  void SetUp() override {
    try {
      (void)node_->find_binary("qemu");
    } catch (const VmmError& error) {
      GTEST_SKIP() << error.what();
    }
  }

  std::size_t living() const {
    return system::scan_processes([&](const system::ProcessInfo& process) {
             return !process.zombie() && process.cwd.string().starts_with((root_ / "run").string());
           })
        .size();
  }
};

TEST_F(EngineVmmTest, StartStopAndRemove) {
  const auto id = create("web", "q35");
  start(id);
  auto vm = backend_->inspect("web");
  EXPECT_EQ(vm.liveness.life, Life::kAlive);
  EXPECT_EQ(vm.record.process, to_record(*vm.liveness.process));
  backend_->pause("web", never_);
  backend_->resume("web", never_);
  backend_->stop(std::vector{id}, {.force = false, .timeout = 0ms}, never_);
  EXPECT_EQ(backend_->inspect("web").liveness.life, Life::kDead);
  start(id);
  remove(id);
  EXPECT_EQ(said(id), (std::vector<std::string>{"vm.storage.start boot", "vm.compute.start boot",
                                                "vm.compute.stop stop-user", "vm.compute.start restart",
                                                "vm.compute.stop stop-user", "vm.storage.stop vm-rm"}));
  EXPECT_EQ(living(), 0U);
  EXPECT_FALSE(fs::exists(vm.record.run_dir));
}

TEST_F(EngineVmmTest, KilledVmmIsACrashDatedByItsParent) {
  const auto id = create("web", "q35");
  start(id);
  kill_process(*backend_->inspect(id).liveness.process);
  start(id);
  remove(id);
  EXPECT_EQ(said(id)[2], "vm.compute.stop stop-crash");
  EXPECT_EQ(said(id)[3], "vm.compute.start restart");
  EXPECT_EQ(recorder_->entries()[2].evidence, "shim");
}

TEST_F(EngineVmmTest, StartAgainstRemoveLeavesNoProcess) {
  for (int i = 0; i < scaled(12); ++i) {
    const auto id = create(fmt::format("v{}", i), "q35");
    const auto won = race({[&] { start(id); },
                           [&] {
                             system::pause_for(std::chrono::milliseconds(10 * i), never_);
                             remove(id);
                           }});
    EXPECT_TRUE(won[1]);
    EXPECT_EQ(living(), 0U);
  }
}

TEST_F(EngineVmmTest, StartsAtOnceMakeOneVmm) {
  const auto id = create("web", "q35");
  const auto won = race({4, [&] { start(id); }});
  EXPECT_EQ(std::count(won.begin(), won.end(), true), 4);
  EXPECT_EQ(living(), 1U);
}

TEST_F(EngineVmmTest, CancelledStartLeavesNothingRunning) {
  const auto id = create("web", "q35");
  system::Cancel cancel;
  std::jthread requester([&] {
    // As soon as a process of it exists.
    while (living() == 0) system::pause_for(1ms, never_);
    cancel.request();
  });
  bool cancelled = false;
  try {
    backend_->start(std::vector{id}, cancel);
  } catch (const Cancelled&) {
    cancelled = true;
  }
  if (!cancelled) GTEST_SKIP() << "the start was done before it could be cancelled";
  requester.join();
  EXPECT_EQ(living(), 0U);
  EXPECT_EQ(backend_->inspect(id).record.state, lifecycle::VmState::kCreated);
  EXPECT_EQ(said(id).size(), 1U);
}

}  // namespace
}  // namespace cocoon::engine
