// Saving and loading under Firecracker: its snapshots, sparse in every case where that is complete.
//
// A booted guest: Diff, which without dirty tracking writes the pages that are resident. Of memory that is anonymous
// and never swapped these are all that were ever touched, so it is a whole snapshot, in milliseconds. A loaded guest:
// its memory is the snapshot's file, mapped privately, and what is resident says nothing. So it is loaded with dirty
// tracking, and saved as a copy of that file with the dirty pages written over it. The file is kept in the run dir by a
// link of its own: the snapshot may be removed. Anything else: Full, which writes every byte.

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/vmm/about.h"
#include "cocoon/vmm/firecracker.h"
#include "cocoon/vmm/firecracker_api.h"
#include "cocoon/vmm/program_version.h"
#include "cocoon/vmm/saved_checks.h"

namespace cocoon::vmm {
namespace {

using lifecycle::VmRecord;
using nlohmann::json;
using std::chrono::milliseconds;
using system::Cancel;
using system::Path;

constexpr const char* kStateFile = "vmstate";
constexpr const char* kMemoryFile = "memory";
constexpr const char* kHostCpu = "host_cpu";  // a fact: the guest's processor is the host's
constexpr std::int64_t kMaxStateBytes = 16 << 20;
constexpr int kClockMajor = 1;
constexpr int kClockMinor = 17;

bool may_swap() {
  std::ifstream swaps("/proc/swaps");
  std::string line;
  std::getline(swaps, line);  // the heading
  // Unreadable: who knows.
  return !swaps || static_cast<bool>(std::getline(swaps, line));
}

// The kind of snapshot that is complete and as small as can be. Afterwards `memory` is there if it has to be.
const char* prepare_memory(const VmRecord& vm, const Path& memory, bool tracked, Cancel& cancel) {
  if (!tracked) return may_swap() ? "Full" : "Diff";
  const Path base = Path(vm.run_dir) / kBaseMemory;
  std::error_code none;
  if (!std::filesystem::exists(base, none)) return "Full";
  system::copy_file(base, memory, cancel);
  // From here on Firecracker's dirty pages may be relative to a file that nobody keeps.
  system::remove_file(base);
  return "Diff";
}

std::int64_t size_of(const Path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    throw StoreError(system_message("stat " + path.string(), errno), path.string(), errno);
  }
  return status.st_size;
}

}  // namespace

std::string Firecracker::version(const Path& binary) const { return program_version(binary, "Firecracker v"); }

SavedState Firecracker::save(const VmRecord& vm, const Path& dir, milliseconds timeout, Cancel& cancel) const {
  const Path memory = dir / kMemoryFile;
  SavedState state;
  about("save", vm, [&] {
    Rest api = connect_firecracker(api_socket(vm), timeout, cancel);
    const json info = api.get("/");
    if (firecracker_state(info) != GuestState::kPaused) {
      throw VmmError(fmt::format("the guest is not paused (Firecracker says '{}')", text_member(info, "state")));
    }
    state.vmm_version = text_member(info, "vmm_version");
    const json machine = api.get("/machine-config");
    const bool tracked = machine.value("track_dirty_pages", json(false)) == json(true);
    const char* type = prepare_memory(vm, memory, tracked, cancel);
    api.put(
        "/snapshot/create",
        {{"snapshot_type", type}, {"snapshot_path", (dir / kStateFile).string()}, {"mem_file_path", memory.string()}});
    // What is written from now on is relative to this. Without it the next one is a full one.
    if (tracked) link_base_memory(vm, memory);
  });
  // Whatever it wrote must be what load() asks for; it would say so only then.
  if (const std::int64_t bytes = size_of(memory); bytes != vm.config.mem_bytes) {
    throw VmmError(fmt::format("save {}: Firecracker wrote {} bytes of memory, the guest has {}", vm.config.name, bytes,
                               vm.config.mem_bytes));
  }
  state.files = {{.name = kStateFile, .size_bytes = size_of(dir / kStateFile)},
                 {.name = kMemoryFile, .size_bytes = vm.config.mem_bytes}};
  state.facts = {{kHostCpu, host_cpu()}};
  return state;
}

void Firecracker::check_saved(const Saved& saved, const Path& binary) const {
  const std::string here = version(binary);
  if (series_of(here) != series_of(saved.vm.vmm_version)) {
    refuse_saved(saved, fmt::format("it was taken by Firecracker {}", saved.vm.vmm_version), series_of(here) + ".*");
  }
  if (const std::string& cpu = fact(saved, kHostCpu); cpu != host_cpu()) {
    refuse_saved(saved, fmt::format("its guest ran on the processor '{}'", cpu), "'" + host_cpu() + "'");
  }
  if (const auto bytes = state_file_size(saved, kMemoryFile); bytes != saved.vm.config.mem_bytes) {
    refuse_corrupt(saved, kMemoryFile, fmt::format("{} bytes, its guest has {}", bytes, saved.vm.config.mem_bytes));
  }
  if (const auto bytes = state_file_size(saved, kStateFile); bytes <= 0 || bytes > kMaxStateBytes) {
    refuse_corrupt(saved, kStateFile, fmt::format("{} bytes, allowed: 1 to {}", bytes, kMaxStateBytes));
  }
  if (saved.vm.state_files.size() != 2) {
    refuse_corrupt(saved, lifecycle::kSavedVmFile,
                   fmt::format("its state is not two files, '{}' and '{}'", kStateFile, kMemoryFile));
  }
}

Command Firecracker::load_command(const VmRecord& vm, const Path& binary, const Saved& saved) const {
  link_base_memory(vm, saved.dir / kMemoryFile);
  return command(vm, binary);
}

void Firecracker::load(const VmRecord& vm, const Saved& saved, milliseconds timeout, Cancel& cancel) const {
  about("load", vm, [&] {
    Rest api = connect_firecracker(api_socket(vm), timeout, cancel);
    const std::string version = check_new_firecracker(api, vm, api_socket(vm));
    // Every other path in it is a name in the run dir.
    json request{{"snapshot_path", (saved.dir / kStateFile).string()},
                 {"mem_backend", {{"backend_type", "File"}, {"backend_path", (saved.dir / kMemoryFile).string()}}},
                 {"track_dirty_pages", true},
                 {"resume_vm", true}};
    // The guest's clock goes on at the host's time, not where it stood. Older ones refuse fields that they do not know.
    if (is_version_at_least(version, kClockMajor, kClockMinor)) request["clock_realtime"] = true;
    // After an error here it ends by itself.
    api.put("/snapshot/load", request);
  });
}

}  // namespace cocoon::vmm
