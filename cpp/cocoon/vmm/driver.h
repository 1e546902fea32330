#pragma once
// One hypervisor's way of doing what the engine asks: which command, which files, which calls. A driver keeps no state
// and decides nothing: when to call what, and what it means for the ledger, is the engine's.
// Threads  every method may be called concurrently.
// Errors   VmmError (the VMM's status and answer), VmmTimeout, Cancelled, unless said otherwise.

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"
#include "cocoon/system/process.h"

namespace cocoon::vmm {

// What the VMM says of its guest. A VMM exists before its guest runs.
enum class GuestState { kNotBooted, kRunning, kPaused, kEnded };

// Of a guest that was booted: it is paused, or it runs. Errors `no_guest`, where there is none.
bool is_paused(GuestState state, const VmmError& no_guest);

// What the engine spawns. The run dir is the working directory.
struct Command {
  std::vector<std::string> argv;         // argv[0]: absolute path of the binary
  std::vector<std::string> environment;  // "K=V", beside the engine's short list
  system::Fd input;                      // stdin; empty: /dev/null
  system::Fd output;                     // stdout; empty: the log, as stderr
  std::vector<system::Fd> passed;        // fd 4, 5, … of the VMM
};

// What save() wrote, and what the driver must know to load it. The engine keeps it beside the files, in a SavedVm.
struct SavedState {
  std::string vmm_version;                  // of the VMM that was asked, in the words of version()
  std::vector<lifecycle::SavedFile> files;  // devices and memory: names in the folder, logical sizes
  std::map<std::string, std::string>
      facts;  // the driver's own: machine type, accelerator, paths the VMM will look for, …
};

// A saved VM on this host: a folder that others read at the same time and nobody writes to, and what is known of it.
struct Saved {
  system::Path dir;  // absolute
  lifecycle::SavedVm vm;
};

class Driver {
 public:
  virtual ~Driver() = default;

  // "qemu", "firecracker", "cloud-hypervisor".
  [[nodiscard]] virtual std::string_view hypervisor() const = 0;
  // The program's usual name, looked up in PATH.
  [[nodiscard]] virtual std::string_view program() const = 0;

  // Refuses what this hypervisor cannot do, before anything is made. Errors InvalidArgument.
  virtual void check(const lifecycle::VmConfig& config) const = 0;

  // Makes the sockets and fifos that it hands over, in the run dir.
  // Requires runtime_files() are gone.
  // Errors   InvalidArgument: what may be created but not be started by us, such as a VM with nothing to boot from.
  //          StoreError.
  [[nodiscard]] virtual Command command(const lifecycle::VmRecord& vm, const system::Path& binary) const = 0;
  // Names in the run dir that a VMM leaves behind and that must be gone before the next one starts.
  [[nodiscard]] virtual std::vector<std::string> runtime_files() const = 0;
  [[nodiscard]] virtual system::Path api_socket(const lifecycle::VmRecord& vm) const = 0;
  // The guest's serial console: a UNIX socket for both directions, or a fifo that takes the input while console_log()
  // is the output.
  [[nodiscard]] virtual system::Path console(const lifecycle::VmRecord& vm) const = 0;
  // What the guest printed; nullopt: this hypervisor writes no log of it.
  [[nodiscard]] virtual std::optional<system::Path> console_log(const lifecycle::VmRecord& vm) const = 0;
  // The UNIX socket at which the guest's vsock is reached ("CONNECT <port>"); nullopt: it has none.
  [[nodiscard]] virtual std::optional<system::Path> vsock(const lifecycle::VmRecord& vm) const = 0;
  [[nodiscard]] virtual system::Path log(const lifecycle::VmRecord& vm) const = 0;  // the VMM's own
  // True for a process that this driver would have spawned for this VM id with this run dir.
  [[nodiscard]] virtual bool owns(const system::ProcessInfo& process, std::string_view vm_id,
                                  const system::Path& run_dir) const = 0;

  // The VMM answers on its socket: configure it and let the guest run.
  virtual void boot(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const = 0;
  [[nodiscard]] virtual GuestState guest_state(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                                               system::Cancel& cancel) const = 0;
  // Both succeed when it is so already.
  virtual void pause(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                     system::Cancel& cancel) const = 0;
  virtual void resume(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                      system::Cancel& cancel) const = 0;
  // Asks the guest to power off (ACPI button, Ctrl-Alt-Del), a paused one after it was resumed, for it would not hear
  // of it; returns when it was asked. Errors VmmError also: no guest runs.
  virtual void request_power_off(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout,
                                 system::Cancel& cancel) const = 0;
  // Ends the VMM in its own orderly way (disks flushed); returns when it was asked. False: it knows of no such call,
  // and SIGTERM is all there is.
  virtual bool quit(const lifecycle::VmRecord& vm, std::chrono::milliseconds timeout, system::Cancel& cancel) const = 0;

  // What this program calls its version: "7.2.22", "1.17.0-dev".
  // Blocks   while it is run with --version, once per process for each binary. Errors VmmError.
  [[nodiscard]] virtual std::string version(const system::Path& binary) const = 0;

  // Writes the devices and the memory of a paused guest as new files into `dir`, an existing folder; the guest stays
  // paused, and what it wrote to its disks is in their files. The engine copies the disks after that, and syncs all.
  // Requires pause(). After an error the guest can be resumed, and what is in `dir` is rubbish.
  [[nodiscard]] virtual SavedState save(const lifecycle::VmRecord& vm, const system::Path& dir,
                                        std::chrono::milliseconds timeout, system::Cancel& cancel) const = 0;
  // Refuses what load() with this program could not load, before anything is touched: another version of the VMM,
  // memory that is not of the configuration's size, … `saved` may come from an archive of anybody's.
  // Requires each file that `saved` names is in its folder, and as long as it says (the engine has looked).
  // Errors   InvalidArgument: not on this host, or not by this program: what, and what is allowed.
  //          CorruptSnapshot: by no program. VmmError: the program cannot be asked.
  virtual void check_saved(const Saved& saved, const system::Path& binary) const = 0;
  // As command(), for a VMM that waits for load(). `vm` is who it becomes: its id, its run dir, its configuration.
  [[nodiscard]] virtual Command load_command(const lifecycle::VmRecord& vm, const system::Path& binary,
                                             const Saved& saved) const = 0;
  // The VMM of load_command() answers: load the saved state and let the guest run. It runs on return.
  // vm.config.disks are those of saved.vm.config in the same order, with paths of vm's own; those files are there, and
  // so are the sockets' places. What must be edited is written into vm's run dir. The VMM may map files of saved.dir
  // for as long as it lives, privately; they may be unlinked after this. A VMM that failed to load may end by itself.
  virtual void load(const lifecycle::VmRecord& vm, const Saved& saved, std::chrono::milliseconds timeout,
                    system::Cancel& cancel) const = 0;

 protected:
  // True if the process has the run dir as its working directory, by whatever name.
  static bool works_in(const system::ProcessInfo& process, const system::Path& run_dir);
};

// One per hypervisor name. Errors InvalidArgument naming the known ones.
std::unique_ptr<Driver> make_driver(std::string_view hypervisor);
std::vector<std::string_view> hypervisors();

}  // namespace cocoon::vmm
