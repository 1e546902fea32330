#pragma once
// One hypervisor on one node: the sequences, one file each (create.cpp, start.cpp, stop.cpp, remove.cpp, snapshot.cpp,
// clone.cpp, restore.cpp, hibernate.cpp), around the transitions of lifecycle. docs/lifecycle.md says what each one
// does to processes, files and the ledger.
//
// Threads  every method may be called concurrently. Sequences on one VM queue on its op lock; remove with force and
//          the mark_* verbs do not wait for it, and win: every commit that follows work outside the store is
//          conditional on the record's generation, and the loser undoes what it did.
// Errors   NotFound, AmbiguousRef, InvalidState, Inconclusive, VmmError, StoreError, Cancelled, unless said otherwise.
//          A call for several references tries all of them; BulkError if any failed (one reference: its own error).

#include <chrono>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/engine/node.h"
#include "cocoon/engine/spec.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/process.h"

namespace cocoon::engine {

class OpLock;

struct BackendOptions {
  system::Path binary;  // "": the node's configuration, then PATH, when first needed
  std::chrono::milliseconds socket_timeout{5000};
  std::chrono::milliseconds stop_timeout{30000};
  std::chrono::milliseconds terminate_grace{5000};
};

struct SnapshotOptions {
  std::string name;  // "": none
  std::string description;
};

struct StopOptions {
  bool force = false;                                // kill at once
  std::optional<std::chrono::milliseconds> timeout;  // for the guest to power off; default: stop_timeout
};

class Backend {
 public:
  using Refs = std::span<const std::string>;
  using Ids = std::vector<std::string>;

  // `node` must outlive it. Errors InvalidArgument: no such hypervisor.
  Backend(Node& node, std::string_view hypervisor, BackendOptions options = {});

  [[nodiscard]] Node& node() const { return *node_; }
  [[nodiscard]] std::string_view hypervisor() const { return driver_->hypervisor(); }
  [[nodiscard]] system::Path binary() const;

  // Errors   InvalidArgument, AlreadyExists. A failure leaves no record, no folder and no ledger entry.
  VmView create(const VmSpec& spec, system::Cancel& cancel);
  // Ids in order of the references. A running VM is left alone.
  Ids start(Refs refs, system::Cancel& cancel);
  Ids stop(Refs refs, const StopOptions& options, system::Cancel& cancel);
  Ids restart(Refs refs, const StopOptions& options, system::Cancel& cancel);
  Ids remove(Refs refs, bool force, system::Cancel& cancel);

  [[nodiscard]] VmView inspect(std::string_view ref) const;
  // By creation; `labels` must all match.
  [[nodiscard]] std::vector<VmView> list(std::optional<lifecycle::VmState> state,
                                         const std::map<std::string, std::string>& labels) const;
  VmView relabel(std::string_view ref, const std::map<std::string, std::optional<std::string>>& labels,
                 system::Cancel& cancel);
  void pause(std::string_view ref, system::Cancel& cancel);
  void resume(std::string_view ref, system::Cancel& cancel);

  // Memory, devices and disks at one moment. The guest stands still as briefly as can be, and goes on whatever happens;
  // one that was paused stays so. Errors InvalidState: no guest runs. AlreadyExists: the name.
  lifecycle::SnapshotRecord snapshot(std::string_view ref, const SnapshotOptions& options, system::Cancel& cancel);
  // A new VM that goes on where the snapshot's stopped. What `spec` leaves out is the snapshot's; cpu, memory and
  // storage cannot differ. A failure leaves no process, no record, no folder and no ledger entry.
  // Errors   InvalidArgument, AlreadyExists, CorruptSnapshot.
  VmView clone(std::string_view snapshot, const VmSpec& spec, system::Cancel& cancel);
  // The VM goes back to the snapshot, with its shape, whatever it does now. What can be refused is refused before
  // anything is touched; after a later failure it has its old disks, without their memory, and is in error.
  // Errors   InvalidArgument, CorruptSnapshot.
  VmView restore(std::string_view ref, std::string_view snapshot, system::Cancel& cancel);
  // Its memory is kept in a snapshot of its own, and its VMM ended. A failure leaves it running.
  VmView hibernate(std::string_view ref, system::Cancel& cancel);
  // It goes on. A failure leaves it hibernated.
  VmView wake(std::string_view ref, system::Cancel& cancel);

  [[nodiscard]] system::Path console_path(std::string_view ref) const;
  [[nodiscard]] system::Path console_log_path(std::string_view ref) const;
  [[nodiscard]] system::Path log_path(std::string_view ref) const;

  // The state machine itself. mark_stopped refuses (InvalidState) while the VMM is proven alive.
  void mark_started(Refs refs, system::Cancel& cancel);
  void mark_stopped(Refs refs, system::Cancel& cancel);
  void mark_error(std::string_view ref);

 private:
  [[nodiscard]] std::string resolve(std::string_view ref) const;
  [[nodiscard]] VmView view(lifecycle::VmRecord vm) const;
  // `one` for each reference, in parallel; see Errors above.
  Ids for_each(Refs refs, system::Cancel& cancel, std::string_view verb,
               const std::function<void(const std::string& id)>& one);

  void start_one(const std::string& id, system::Cancel& cancel);
  void start_locked(const std::string& id, system::Cancel& cancel);
  void stop_one(const std::string& id, const StopOptions& options, system::Cancel& cancel);
  void stop_locked(const std::string& id, const StopOptions& options, system::Cancel& cancel);
  void remove_one(const std::string& id, bool force, system::Cancel& cancel);
  bool try_remove(const std::string& id, bool force, std::chrono::steady_clock::time_point give_up,
                  std::vector<system::ProcessIdentity>& killed, system::Cancel& cancel);
  void mark_stopped_one(const std::string& id, system::Cancel& cancel);

  // The record is known to be closed, and no VMM of it is alive.
  void run_vmm(const lifecycle::VmRecord& vm, system::Cancel& cancel);
  void restore_locked(const std::string& id, const snapshot::Use& use, system::Cancel& cancel);
  // All that a paused guest's snapshot holds, as files in `dir`; the description of it is not written yet.
  lifecycle::SavedVm save(const lifecycle::VmRecord& vm, const system::Path& dir, system::Cancel& cancel) const;
  // In a catch block: takes back what a create or clone that failed had made, and throws the error again; NotFound
  // instead if somebody removed the placeholder or the folders that had been made. Nothing of it is in the ledger. What
  // cannot be taken back stays a placeholder, which rm and reconcile remove.
  [[noreturn]] void abandon(const lifecycle::VmRecord& vm, std::string_view verb, OpLock& lock, bool made_dirs) const;
  // The snapshot that kept a hibernated VM's memory, when the VM does not speak of it any more. One that is being read
  // is left to reconcile.
  void drop_kept(const std::string& snapshot_id) const noexcept;

  // launch.cpp.
  // vm.lock, for the VMM that is to be spawned. Errors Inconclusive: somebody keeps it. NotFound: removed meanwhile.
  system::FileLock lock_run_dir(const lifecycle::VmRecord& vm, std::string_view verb, system::Cancel& cancel) const;
  // `saved`: what it will load, null if it is to boot.
  system::ProcessIdentity launch(const lifecycle::VmRecord& vm, const vmm::Saved* saved, std::string_view verb,
                                 system::Cancel& cancel);
  // The guest runs on return; on any error nothing does.
  system::ProcessIdentity launch_saved(const lifecycle::VmRecord& vm, const vmm::Saved& saved, std::string_view verb,
                                       system::Cancel& cancel);
  void wait_for_api(const lifecycle::VmRecord& vm, std::string_view verb, const system::Pidfd& process,
                    system::Cancel& cancel) const;
  [[noreturn]] void report_death(const lifecycle::VmRecord& vm, std::string_view verb, const std::string& when) const;
  // What `error` is about, if it is not what it says: report_death(), or NotFound when the VM is being removed.
  void explain(const lifecycle::VmRecord& vm, std::string_view verb, std::string_view when, const Error& error) const;
  // Ends a VMM that a sequence made and does not keep, and its interval if somebody has opened one for it.
  void discard(const lifecycle::VmRecord& vm, std::string_view verb,
               const system::ProcessIdentity& process) const noexcept;
  // True if the VM was removed meanwhile; then folders that were made again are gone too.
  bool forget_if_removed(const lifecycle::VmRecord& vm, std::string_view verb) const noexcept;
  void shut_down(const lifecycle::VmRecord& vm, const system::Pidfd& process, const StopOptions& options,
                 system::Cancel& cancel);
  // What the VMM leaves behind, and these.
  void remove_runtime_files(const lifecycle::VmRecord& vm, std::initializer_list<const char*> more = {}) const;
  void make_vm_dirs(const lifecycle::VmRecord& vm) const;
  // One request to a VMM that lives, under its op lock.
  using Request = void (vmm::Driver::*)(const lifecycle::VmRecord&, std::chrono::milliseconds, system::Cancel&) const;
  void ask_vmm(std::string_view ref, std::string_view verb, Request request, system::Cancel& cancel);
  [[nodiscard]] lifecycle::VmRecord load_alive(const std::string& id, std::string_view verb,
                                               system::Cancel& cancel) const;

  Node* node_;
  const vmm::Driver* driver_;
  BackendOptions options_;
};

}  // namespace cocoon::engine
