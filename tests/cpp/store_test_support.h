#pragma once
// What the store's tests share: a root of their own, small transitions, the ledger as lines, children that may die.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "cocoon/error.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::store {

namespace fs = std::filesystem;

inline std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(in ? fs::file_size(path) : 0, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(text.size())))
    throw std::runtime_error("cannot read " + path.string());
  return text;
}

inline void write_file(const fs::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

inline void append_file(const fs::path& path, std::string_view text) {
  write_file(path, read_file(path) + std::string(text));
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The seq numbers of a ledger's lines, 0 for a line that is no entry or has none.
inline std::vector<std::uint64_t> seqs_of(const std::string& text) {
  std::vector<std::uint64_t> all;
  for (const auto& line : lines_of(text)) {
    try {
      all.push_back(metering::from_json(line).seq.value_or(0));
    } catch (const InvalidArgument&) {
      all.push_back(0);
    }
  }
  return all;
}

inline std::vector<std::uint64_t> count_up(std::uint64_t last, std::uint64_t first = 1) {
  std::vector<std::uint64_t> all;
  for (auto seq = first; seq <= last; ++seq) all.push_back(seq);
  return all;
}

// COCOON_SEED repeats a run.
inline std::uint64_t test_seed() {
  const char* given = std::getenv("COCOON_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::random_device{}();
  std::cout << "seed: COCOON_SEED=" << seed << '\n';
  return seed;
}

// What the logger "cocoon.metering" says while this lives.
class LogCapture {
 public:
  LogCapture() {
    auto logger = std::make_shared<spdlog::logger>("cocoon.metering",
                                                   std::make_shared<spdlog::sinks::ostream_sink_mt>(text_, true));
    logger->set_pattern("%l %v");
    spdlog::drop("cocoon.metering");
    spdlog::register_logger(logger);
  }
  ~LogCapture() { spdlog::drop("cocoon.metering"); }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  [[nodiscard]] std::string text() const { return text_.str(); }
  // Lines that contain `part`.
  [[nodiscard]] std::size_t count(std::string_view part) const {
    const auto lines = lines_of(text_.str());
    return static_cast<std::size_t>(
        std::count_if(lines.begin(), lines.end(), [&](const auto& line) { return line.find(part) != line.npos; }));
  }

 private:
  std::ostringstream text_;
};

// The class and the message of what `action` throws; "" if it throws nothing.
inline std::string error_of(const std::function<void()>& action) {
  const auto told = [](const char* name, const std::exception& error) {
    return std::string(name) + ": " + error.what();
  };
  try {
    action();
  } catch (const NotFound& error) {
    return told("NotFound", error);
  } catch (const AmbiguousRef& error) {
    return told("AmbiguousRef", error);
  } catch (const AlreadyExists& error) {
    return told("AlreadyExists", error);
  } catch (const InvalidArgument& error) {
    return told("InvalidArgument", error);
  } catch (const StoreError& error) {
    return told("StoreError", error);
  } catch (const LedgerError& error) {
    return told("LedgerError", error);
  } catch (const Error& error) {
    return told("Error", error);
  }
  return "";
}

inline testing::AssertionResult contains(std::string_view text, std::string_view part) {
  if (text.find(part) != std::string_view::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "\"" << text << "\" does not contain \"" << part << "\"";
}

inline Row vm_row(std::string id, std::string name, std::string hypervisor = "qemu") {
  return {.id = std::move(id),
          .hypervisor = std::move(hypervisor),
          .name = std::move(name),
          .state = "created",
          .generation = 1,
          .document = "{}"};
}

// An entry of the transaction's moment, with its next seq plus `ahead`.
inline metering::Entry entry_for(const Transaction& transaction, const std::string& vm_id, std::uint64_t ahead = 0) {
  metering::Entry entry;
  entry.kind = metering::Kind::kVmComputeStart;
  entry.vm_id = vm_id;
  entry.reason = metering::Reason::kBoot;
  entry.hypervisor = "qemu";
  entry.shape = {.cpu = 2, .mem_bytes = 512 << 20, .storage_bytes = 0};
  entry.emitted_at_ns = transaction.moment().wall_ns;
  entry.seq = transaction.next_seq() + ahead;
  entry.interval = entry.seq;
  entry.boot_id = transaction.moment().boot_id;
  entry.uptime_ns = transaction.moment().uptime_ns;
  return entry;
}

// Puts the VM with a new generation and adds `entries` entries. The record counts the entries it ever gave.
inline void transition(MetaStore& store, const std::string& vm_id, std::uint64_t entries = 1) {
  store.transact([&](Transaction& transaction) {
    auto row = transaction.find(Table::kVm, vm_id).value_or(vm_row(vm_id, vm_id));
    row.generation += static_cast<std::int64_t>(entries);
    row.document = "{\"entries\":" + std::to_string(row.generation - 1) + "}";
    transaction.put(Table::kVm, row);
    std::vector<metering::Entry> added;
    for (std::uint64_t i = 0; i < entries; ++i) added.push_back(entry_for(transaction, vm_id, i));
    transaction.append(added);
  });
}

// A child process; killed and reaped when it goes. `body` returns its exit status; an exception is status 99.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    std::cout.flush();  // or the child's copy of the buffer is printed too
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ != 0) return;
    int status = 99;
    try {
      status = body();
    } catch (const std::exception& error) {
      std::cerr << "child: " << error.what() << '\n';
    }
    ::_exit(status);
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  Child(const Child&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  // The exit status, or 128 + the signal that ended it.
  int wait() {
    int status = 0;
    if (::waitpid(std::exchange(pid_, -1), &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int kill() {
    ::kill(pid_, SIGKILL);
    return wait();
  }

 private:
  pid_t pid_ = -1;
};

// A folder whose syncs cost nothing, for tests that open a node a thousand times.
inline fs::path memory_folder() {
  return ::access("/dev/shm", R_OK | W_OK | X_OK) == 0 ? fs::path("/dev/shm") : fs::temp_directory_path();
}

class StoreTest : public testing::Test {
 protected:
  explicit StoreTest(const fs::path& base = fs::temp_directory_path()) {
    std::string pattern = (base / "cocoon-store-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    root = pattern;
    ledger = root / "metering" / "ledger.jsonl";
  }
  ~StoreTest() override {
    std::error_code ignored;
    fs::remove_all(root, ignored);
  }

  // A store that appends to `ledger`.
  [[nodiscard]] std::unique_ptr<MetaStore> open(std::size_t prune_every = 512) const {
    return std::make_unique<MetaStore>(Options{
        .root = root, .recorder = std::make_shared<metering::FileRecorder>(ledger), .prune_every = prune_every});
  }
  [[nodiscard]] std::unique_ptr<MetaStore> open_with(std::shared_ptr<metering::Recorder> recorder) const {
    return std::make_unique<MetaStore>(Options{.root = root, .recorder = std::move(recorder)});
  }
  [[nodiscard]] std::vector<std::uint64_t> ledger_seqs() const { return seqs_of(read_file(ledger)); }

  // Runs `body` on a store of a child process that then dies without closing anything.
  void in_dying_process(const std::function<void(MetaStore&)>& body, std::size_t prune_every = 512) const {
    Child child([&] {
      const auto store = open(prune_every);
      body(*store);
      ::kill(::getpid(), SIGKILL);
      return 1;
    });
    ASSERT_EQ(child.wait(), 128 + SIGKILL);
  }

  fs::path root;
  fs::path ledger;
};

}  // namespace cocoon::store
