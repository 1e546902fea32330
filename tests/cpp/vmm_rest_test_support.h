#pragma once
// A REST server that does as it is told, and the real VMMs, for tests of the drivers of Firecracker and Cloud
// Hypervisor.

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cocoon/system/process.h"
#include "cocoon/system/socket.h"
#include "cocoon/vmm/driver.h"

#include "vmm_test_support.h"

namespace cocoon::vmm {

// Answers each request with what `answer` returns for "PUT /vm", and remembers all of them with their bodies.
class FakeApi {
 public:
  struct Request {
    std::string what;
    nlohmann::json body;
  };
  // "" closes without an answer; what begins with "HTTP" or "raw:" is said as it is, the rest is the body of a 200.
  using Answer = std::function<std::string(const std::string& what)>;

  FakeApi(const system::Path& path, Answer answer) : listener_(system::listen_on(path)), answer_(std::move(answer)) {
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeApi() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  FakeApi(const FakeApi&) = delete;
  FakeApi& operator=(const FakeApi&) = delete;

  std::vector<std::string> heard() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    names.reserve(requests_.size());
    for (const Request& request : requests_) names.push_back(request.what);
    return names;
  }
  nlohmann::json body_of(const std::string& what) {
    const std::lock_guard lock(mutex_);
    for (const Request& request : requests_)
      if (request.what == what) return request.body;
    return nullptr;
  }

 private:
  void serve() {
    for (;;) {
      const system::Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!fd) return;
      while (serve_one(fd.get())) {
      }
    }
  }

  bool serve_one(int fd) {
    std::string head;
    char c = 0;
    while (!head.ends_with("\r\n\r\n"))
      if (::recv(fd, &c, 1, 0) != 1)
        return false;
      else
        head += c;
    std::string body;
    if (const auto at = head.find("Content-Length: "); at != std::string::npos) {
      body.resize(std::stoul(head.substr(at + 16)));
      if (::recv(fd, body.data(), body.size(), MSG_WAITALL) != static_cast<ssize_t>(body.size())) return false;
    }
    const std::string what = head.substr(0, head.find(" HTTP/"));
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back({what, body.empty() ? nullptr : nlohmann::json::parse(body)});
    }
    std::string said = answer_(what);
    if (said.empty()) return false;
    const bool raw = said.starts_with("raw:");
    if (raw) said = said.substr(4);
    if (!raw && !said.starts_with("HTTP")) {
      said = fmt::format("HTTP/1.1 200 \r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{}", said.size(), said);
    }
    return ::send(fd, said.data(), said.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(said.size());
  }

  system::Fd listener_;
  Answer answer_;
  std::mutex mutex_;
  std::vector<Request> requests_;  // guarded by mutex_
  std::thread thread_;
};

inline constexpr const char* kNoContent = "HTTP/1.1 204 \r\n\r\n";

inline std::string refused(int status, const std::string& body) {
  return fmt::format("HTTP/1.1 {} \r\nContent-Length: {}\r\n\r\n{}", status, body.size(), body);
}

// A file of COCOON_TEST_VMM_DIR, else a program in PATH.
inline std::optional<system::Path> find_vmm(std::string_view name) {
  const char* folder = std::getenv("COCOON_TEST_VMM_DIR");
  const char* search = std::getenv("PATH");
  std::stringstream path((folder == nullptr ? "" : std::string(folder) + ":") + (search == nullptr ? "" : search));
  for (std::string each; std::getline(path, each, ':');) {
    system::Path candidate = system::Path(each) / name;
    if (candidate.is_absolute() && ::access(candidate.c_str(), R_OK) == 0) return candidate;
  }
  return std::nullopt;
}

// One real VMM with the guest of COCOON_TEST_VMM_DIR, spawned as the engine does it.
class RealVmm {
 public:
  // Why there can be none; "" if there can.
  static std::string missing(std::string_view hypervisor) {
    const system::Fd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (!kvm) return "/dev/kvm cannot be opened";
    if (!find_vmm(hypervisor)) return fmt::format("no {} in COCOON_TEST_VMM_DIR or PATH", hypervisor);
    if (!find_vmm("guest.elf")) return "no guest.elf in COCOON_TEST_VMM_DIR";
    return "";
  }

  explicit RealVmm(std::string_view hypervisor) : driver_(make_driver(hypervisor)) {
    // A name longer than a socket's may be, and with what JSON escapes.
    const system::Path root = dir_.path() / (R"(a "b"\)" + std::string(100, 'x'));
    vm_.id = "abcdefghijklmnopqrstuvwxyz";
    vm_.run_dir = (root / "run" / vm_.id).string();
    vm_.log_dir = (root / "log").string();
    std::filesystem::create_directories(vm_.run_dir);
    std::filesystem::create_directories(vm_.log_dir);
    vm_.config.name = "web-1";
    vm_.config.cpu = 1;
    vm_.config.mem_bytes = 64 << 20;
    vm_.config.kernel = find_vmm("guest.elf")->string();
    vm_.config.cmdline = "hello";
  }
  ~RealVmm() { end(); }
  RealVmm(const RealVmm&) = delete;
  RealVmm& operator=(const RealVmm&) = delete;

  void launch() {
    clear();
    start(driver_->command(vm_, binary()));
  }
  void launch_saved(const Saved& saved) {
    clear();
    start(driver_->load_command(vm_, binary(), saved));
  }
  void load(const Saved& saved) { driver_->load(vm_, saved, kTimeout, cancel_); }
  // Pauses, saves into a new folder and says what the engine would keep of it.
  Saved save(const std::string& name) {
    const system::Path dir = dir_.path() / name;
    std::filesystem::create_directory(dir);
    driver_->pause(vm_, kTimeout, cancel_);
    SavedState state = driver_->save(vm_, dir, kTimeout, cancel_);
    return {.dir = dir,
            .vm = {.hypervisor = std::string(driver_->hypervisor()),
                   .vmm_version = state.vmm_version,
                   .config = vm_.config,
                   .disk_files = {},
                   .state_files = state.files,
                   .facts = state.facts}};
  }
  [[nodiscard]] system::Path binary() const { return *find_vmm(driver_->program()); }
  void start(const Command& command) {
    system::SpawnSpec spec;
    spec.argv = command.argv;
    spec.environment = command.environment;
    spec.working_dir = vm_.run_dir;
    spec.output = driver_->log(vm_);
    spec.stdin_fd = command.input.get();
    spec.stdout_fd = command.output.get();
    lock_ = *system::FileLock::try_acquire(run_file("vm.lock"));
    spec.lock_fd = lock_->fd();
    for (const auto& fd : command.passed) spec.pass_fds.push_back(fd.get());
    spec.exit_file = run_file("exit");
    identity_ = system::spawn(COCOON_SHIM, spec);
    process_ = system::Pidfd::open(identity_);
    const bool up = eventually([&] {
      return system::probe_socket(driver_->api_socket(vm_), kTimeout) == system::SocketProbe::kLive || !alive();
    });
    ASSERT_TRUE(up && alive()) << log();
  }
  void boot() { driver_->boot(vm_, kTimeout, cancel_); }
  // Ends it, and waits until its parent has said so: nothing of it is left.
  void end() {
    if (process_) {
      system::kill_now(*process_);
      EXPECT_TRUE(eventually([&] { return exit().has_value(); }));
    }
    process_.reset();
    lock_.reset();
    console_.reset();
  }

  bool alive() { return process_ && !process_->wait(std::chrono::milliseconds(0), cancel_); }
  bool dies() {
    return process_->wait(kTimeout, cancel_) && eventually([&] { return exit().has_value(); });
  }
  GuestState state() { return driver_->guest_state(vm_, kTimeout, cancel_); }
  [[nodiscard]] std::optional<system::ExitRecord> exit() const { return system::find_exit_record(run_file("exit")); }
  [[nodiscard]] system::Path run_file(std::string_view name) const { return system::Path(vm_.run_dir) / name; }
  [[nodiscard]] std::string log() const { return system::tail_text(driver_->log(vm_), 20); }

  // Types at the guest's console.
  void type(std::string_view text) {
    if (std::filesystem::is_socket(driver_->console(vm_))) {
      attach();
      console_->send(text, kTimeout, cancel_);
      return;
    }
    const system::Fd fifo(::open(driver_->console(vm_).c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    ASSERT_TRUE(fifo) << "nobody reads the console's fifo";
    ASSERT_EQ(::write(fifo.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  // True when the guest has printed this since it was last asked.
  bool says(std::string_view text) {
    return eventually([&] { return take(text); });
  }

  TempDir dir_;
  std::unique_ptr<Driver> driver_;
  lifecycle::VmRecord vm_;
  system::Cancel cancel_;
  system::ProcessIdentity identity_;
  std::optional<system::Pidfd> process_;
  std::string printed_;  // not yet looked at

  static constexpr std::chrono::milliseconds kTimeout{60'000};

 private:
  void clear() const {
    for (const std::string& name : driver_->runtime_files()) std::filesystem::remove(run_file(name));
    std::filesystem::remove(run_file("exit"));
  }
  void attach() {
    if (console_) return;
    try {
      // Once, and to stay: a client that leaves with something unread is the last one that Cloud Hypervisor 53 takes.
      console_.emplace(system::UnixStream::connect(driver_->console(vm_), kTimeout));
    } catch (const VmmError&) {
      // not there yet
    }
  }
  bool take(std::string_view text) {
    if (const auto log = driver_->console_log(vm_)) {
      const std::string all = system::find_text(*log, 1 << 20).value_or("");
      printed_ = all.substr(std::min(looked_at_, all.size()));
    } else {
      attach();
      if (!console_) return false;
      std::array<char, 4096> piece;
      const ssize_t n = ::recv(console_->fd(), piece.data(), piece.size(), MSG_DONTWAIT);
      if (n > 0) printed_.append(piece.data(), static_cast<std::size_t>(n));
      if (n == 0) console_.reset();  // a guest that restarts gets new devices
    }
    const auto at = printed_.find(text);
    if (at == std::string::npos) return false;
    looked_at_ += at + text.size();
    printed_.erase(0, at + text.size());
    return true;
  }

  std::optional<system::FileLock> lock_;
  std::optional<system::UnixStream> console_;
  std::size_t looked_at_ = 0;
};

}  // namespace cocoon::vmm
