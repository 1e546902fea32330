#pragma once
// Is this VM's VMM alive, which process is it, and when did it die?
//
// Three witnesses, in this order: the recorded identity (pid, start time, boot id) checked again by argv; the flock on
// vm.lock, which the VMM inherits and holds for all its life, whatever its pid; the /proc scan, when those two do not
// agree: argv, working directory and the inherited vm.lock among its descriptors must all be this VM's. A process that
// is not proven to be this VM's is never signalled. While a VM is started or removed, the engine's process holds the
// lock: for these moments nobody else can tell.
//
// A child that a VMM has forked looks like it in all of that, and holds the lock when the VMM is dead. The shim tells
// them apart: its exit file says that the last VMM of the run dir is dead, and then who looks like it is a remnant.
// Without that file nobody can know.

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "cocoon/lifecycle/record.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/process.h"
#include "cocoon/vmm/driver.h"

namespace cocoon::engine {

enum class Life { kDead, kAlive, kUnknown };

struct Liveness {
  Life life = Life::kDead;
  std::optional<system::ProcessIdentity> process;  // when alive
  std::optional<system::ProcessIdentity> remnant;  // when dead: what the VMM had forked, and is still there
  std::string why;                                 // when unknown
};

// How long a VMM may take from its last word to its end.
inline constexpr std::chrono::milliseconds kDying{200};

inline constexpr const char* kLockFile = "vm.lock";
inline constexpr const char* kExitFile = "exit";
// There while a sequence keeps the guest paused for a snapshot: with the op lock free, it died and left it so.
inline constexpr const char* kSavingFile = "saving";
// There from before a hibernated guest is let run until that is committed: its disks may be ahead of its memory.
inline constexpr const char* kWakingFile = "waking";

Liveness probe(const vmm::Driver& driver, const lifecycle::VmRecord& vm);

// The same for those who must decide: what is undecidable only for moments (a starter that has locked but not yet
// executed the VMM) is waited for, some seconds at most. Errors Inconclusive naming `verb`; Cancelled.
Liveness settle(const vmm::Driver& driver, const lifecycle::VmRecord& vm, std::string_view verb,
                system::Cancel& cancel);

// The guest's state of the living VMM `process`; nullopt if it died meanwhile. Its API may not answer yet: its starter
// may have died right after the spawn. Errors VmmError, VmmTimeout, Cancelled.
std::optional<vmm::GuestState> find_guest_state(const vmm::Driver& driver, const lifecycle::VmRecord& vm,
                                                const system::ProcessIdentity& process,
                                                std::chrono::milliseconds timeout, system::Cancel& cancel);

// What the VMM's parent wrote down of the death of the recorded process. Waits a moment for it when the process is
// dead but not yet reaped: its parent is writing. A stale or forged file says nothing.
std::optional<lifecycle::Death> find_death(const lifecycle::VmRecord& vm);

// True for a living VMM that was spawned for this VM: looking like one is not enough, it holds the run dir's lock.
bool is_vmm_of(const vmm::Driver& driver, const system::ProcessInfo& process, const std::string& vm_id,
               const system::Path& run_dir);

// Processes of this VM that the record may not know of. Errors Inconclusive.
std::vector<system::ProcessInfo> find_processes(const vmm::Driver& driver, const lifecycle::VmRecord& vm);

// Kills that very process, and waits until its parent has stamped its death. False if it was dead already.
bool kill_process(const system::ProcessIdentity& process);

// The same for this VM's VMM, and for what it had forked.
// Requires that nobody can be starting another one: the op lock is held.
bool kill_vmm(const vmm::Driver& driver, const lifecycle::VmRecord& vm, const system::ProcessIdentity& process);

// Kills what a VMM that is dead had forked: with vm.lock held, none of this VM could be started. Costs one look at the
// lock where there is nothing. Requires the same. Errors Inconclusive.
void kill_remnants(const vmm::Driver& driver, const lifecycle::VmRecord& vm);

lifecycle::ProcessIdentity to_record(const system::ProcessIdentity& process);
system::ProcessIdentity from_record(const lifecycle::ProcessIdentity& process);

}  // namespace cocoon::engine
