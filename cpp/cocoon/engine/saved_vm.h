#pragma once
// A snapshot's folder as a saved VM: written by snapshot and hibernate; read, checked and fitted to a VM by clone,
// restore and wake.

#include <string>
#include <vector>

#include "cocoon/engine/spec.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/snapshot/local_file.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"

namespace cocoon::engine {

// For each disk of the VM the name of its copy in a snapshot; "" for those that are used where they lie: read-only ones
// outside of its run dir.
// Errors   InvalidArgument: a disk that cannot be copied, or whose copy could not be used.
std::vector<std::string> plan_disk_files(const lifecycle::VmRecord& vm);

// Copies the disks into `dir`; not synced. Requires the guest stands still, and its VMM has written what it cached.
void save_disks(const lifecycle::VmConfig& config, const std::vector<std::string>& disk_files, const system::Path& dir,
                system::Cancel& cancel);

// The description beside them; not synced.
void write_saved_vm(const system::Path& dir, const lifecycle::SavedVm& saved);

// Errors   InvalidArgument: it is no VM's, or another hypervisor's. CorruptSnapshot: the description is not well
//          formed, contradicts the record, or names files that are not there, or not as long as it says.
vmm::Saved read_saved_vm(const snapshot::Use& use, std::string_view hypervisor);

// The configuration of a clone in `run_dir`: the snapshot's, with what `spec` says. An imported snapshot's paths are
// whatever its maker wrote, so that files outside of it are used only if `spec` names them.
// Errors   InvalidArgument.
lifecycle::VmConfig clone_config(const VmSpec& spec, const vmm::Saved& saved, bool imported,
                                 const system::Path& run_dir);

// The configuration of a VM that goes back to the snapshot: its shape is the snapshot's, its paths stay its own.
// Errors   InvalidArgument: their disks differ.
lifecycle::VmConfig restored_config(const lifecycle::VmRecord& vm, const vmm::Saved& saved);

// Copies the snapshot's disks to where `config` has them, in folders where they are not yet.
// Durable  their bytes; their names once the folder was synced.
void load_disks(const vmm::Saved& saved, const lifecycle::VmConfig& config, system::Cancel& cancel);

}  // namespace cocoon::engine
