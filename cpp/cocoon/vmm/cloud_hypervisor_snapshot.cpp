// Saving and loading under Cloud Hypervisor: its snapshots, of which two files are JSON that we edit for who the guest
// becomes. The memory is loaded in one of three ways:
//
//   mapped     the file is the guest's memory, privately: nothing is read beforehand. Cloud Hypervisor has no such mode
//              but makes a guest's memory of a file if its configuration says so, and then needs not be told what was
//              in it. That is an edit of state.json, which is no stable format: only for the version it is known of.
//   OnDemand   read behind the running guest, by userfaultfd, which may not be allowed
//   Copy       read first

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/vmm/about.h"
#include "cocoon/vmm/cloud_hypervisor.h"
#include "cocoon/vmm/cloud_hypervisor_api.h"
#include "cocoon/vmm/program_version.h"
#include "cocoon/vmm/saved_checks.h"
#include "cocoon/vmm/vm_config.h"

namespace cocoon::vmm {
namespace {

using lifecycle::VmRecord;
using nlohmann::json;
using std::chrono::milliseconds;
using system::Cancel;
using system::Path;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kStateFile = "state.json";
constexpr const char* kMemoryFile = "memory-ranges";
constexpr std::array<const char*, 3> kFiles{kConfigFile, kStateFile, kMemoryFile};
constexpr const char* kHostCpu = "host_cpu";  // a fact: the guest's processor is the host's
constexpr const char* kEdited = "load";       // in the run dir: what vm.restore reads
constexpr std::size_t kMaxJsonBytes = 16 << 20;
constexpr int kMappedMajor = 54;  // whose state.json is known

std::string major_of(const std::string& version) { return version.substr(0, version.find('.')); }

json read_json(const Saved& saved, const char* name) {
  const auto text = system::find_text(saved.dir / name, kMaxJsonBytes);
  json value = text ? json::parse(*text, nullptr, /*allow_exceptions=*/false) : json(nullptr);
  if (!value.is_object()) refuse_corrupt(saved, name, "it is not a JSON object");
  return value;
}

void write_json(const Path& path, const json& value) { system::write_text_atomic(path, to_json_text(value)); }

// Who the guest becomes: the same devices, with files and sockets of its own. Errors CorruptSnapshot.
json edited_config(const VmRecord& vm, const Saved& saved) {
  json config = read_json(saved, kConfigFile);
  auto disks = config.find("disks");
  const std::size_t count = disks == config.end() || disks->is_null() ? 0 : disks->size();
  if (count != vm.config.disks.size() || (count > 0 && !disks->is_array())) {
    refuse_corrupt(saved, kConfigFile, fmt::format("{} disks, its VM has {}", count, vm.config.disks.size()));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (!(*disks)[i].is_object()) refuse_corrupt(saved, kConfigFile, fmt::format("disk {} is no object", i));
    (*disks)[i]["path"] = path_for_vmm(vm.config.disks[i].path, vm.run_dir);
  }
  config["serial"] = {{"mode", "Socket"}, {"socket", kCloudHypervisorConsole}};
  config["console"] = {{"mode", "Off"}};
  if (const auto vsock = config.find("vsock"); vsock != config.end() && vsock->is_object()) {
    (*vsock)["socket"] = kCloudHypervisorVsock;
  }
  return config;
}

// The memory is that file. False: the state does not look as we know it.
bool map_memory(json& config, json& state, const std::string& file, std::int64_t bytes) {
  const json::json_pointer pointer("/snapshots/memory-manager/snapshot_data/state");
  if (!state.contains(pointer) || !state[pointer].is_string()) return false;
  json manager = json::parse(state[pointer].get<std::string>(), nullptr, /*allow_exceptions=*/false);
  const json::json_pointer ranges("/memory_ranges/data");
  if (!manager.is_object() || !manager.contains(ranges) || !manager.contains("guest_ram_mappings")) return false;
  json& mappings = manager["guest_ram_mappings"];
  if (!mappings.is_array()) return false;
  for (const json& mapping : mappings) {
    if (!mapping.is_object() || !mapping.contains("gpa") || !mapping["gpa"].is_number_unsigned() ||
        !mapping.contains("size") || !mapping["size"].is_number_unsigned()) {
      return false;
    }
  }
  // The file holds the regions in the order of their addresses. Without these offsets a guest of more than 3 GiB would
  // have its first region twice, silently.
  std::vector<json*> ordered;
  for (json& mapping : mappings) ordered.push_back(&mapping);
  std::sort(ordered.begin(), ordered.end(),
            [](const json* a, const json* b) { return (*a)["gpa"].get<std::uint64_t>() < (*b)["gpa"]; });
  std::uint64_t offset = 0;
  for (json* mapping : ordered) {
    (*mapping)["file_offset"] = offset;
    (*mapping)["zone_id"] = "mem0";
    offset += (*mapping)["size"].get<std::uint64_t>();
  }
  if (!std::cmp_equal(offset, bytes)) return false;
  manager[ranges] = json::array();
  state[pointer] = to_json_text(manager);
  config["memory"]["size"] = 0;
  config["memory"]["zones"] = {{{"id", "mem0"}, {"size", bytes}, {"file", file}, {"shared", false}}};
  return true;
}

}  // namespace

std::string CloudHypervisor::version(const Path& binary) const { return program_version(binary, "cloud-hypervisor v"); }

SavedState CloudHypervisor::save(const VmRecord& vm, const Path& dir, milliseconds timeout, Cancel& cancel) const {
  SavedState state;
  about("save", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    const auto said = ask_cloud_hypervisor(api);
    if (cloud_hypervisor_state(said) != GuestState::kPaused) {
      throw VmmError(fmt::format("the guest is not paused (Cloud Hypervisor says '{}')", said.value_or("no VM")));
    }
    // What it was built from, which is what --version says, not the number of its release.
    state.vmm_version = version_after(text_member(api.get("/api/v1/vmm.ping"), "build_version"), "");
    api.put("/api/v1/vm.snapshot", {{"destination_url", "file://" + dir.string()}});
  });
  for (const char* name : kFiles) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(dir / name, error);
    if (error) throw VmmError(fmt::format("save {}: Cloud Hypervisor wrote no {}", vm.config.name, name));
    state.files.push_back({.name = name, .size_bytes = static_cast<std::int64_t>(bytes)});
  }
  // A hole at the end would be read as zeros that nobody asked for: what it wrote must be all of it.
  if (state.files.back().size_bytes != vm.config.mem_bytes) {
    throw VmmError(fmt::format("save {}: Cloud Hypervisor wrote {} bytes of memory, the guest has {}", vm.config.name,
                               state.files.back().size_bytes, vm.config.mem_bytes));
  }
  state.facts = {{kHostCpu, host_cpu()}};
  return state;
}

void CloudHypervisor::check_saved(const Saved& saved, const Path& binary) const {
  const std::string here = version(binary);
  if (major_of(here) != major_of(saved.vm.vmm_version)) {
    refuse_saved(saved, fmt::format("it was taken by Cloud Hypervisor {}", saved.vm.vmm_version),
                 major_of(here) + ".*");
  }
  if (const std::string& cpu = fact(saved, kHostCpu); cpu != host_cpu()) {
    refuse_saved(saved, fmt::format("its guest ran on the processor '{}'", cpu), "'" + host_cpu() + "'");
  }
  // It would accept a shorter one, and give the guest zeros.
  if (const auto bytes = state_file_size(saved, kMemoryFile); bytes != saved.vm.config.mem_bytes) {
    refuse_corrupt(saved, kMemoryFile, fmt::format("{} bytes, its guest has {}", bytes, saved.vm.config.mem_bytes));
  }
  if (saved.vm.state_files.size() != kFiles.size()) {
    refuse_corrupt(saved, lifecycle::kSavedVmFile, fmt::format("its state is not {} files", kFiles.size()));
  }
  state_file_size(saved, kConfigFile);
  state_file_size(saved, kStateFile);
  VmRecord vm;
  vm.config = saved.vm.config;
  static_cast<void>(edited_config(vm, saved));
  static_cast<void>(read_json(saved, kStateFile));
}

Command CloudHypervisor::load_command(const VmRecord& vm, const Path& binary, const Saved&) const {
  return command(vm, binary);
}

void CloudHypervisor::load(const VmRecord& vm, const Saved& saved, milliseconds timeout, Cancel& cancel) const {
  const Path edited = Path(vm.run_dir) / kEdited;
  system::remove_tree(edited);
  system::make_private_dirs(edited);
  about("load", vm, [&] {
    Rest api = connect_cloud_hypervisor(api_socket(vm), timeout, cancel);
    const std::string version = check_new(api, vm);
    json request{{"source_url", "file://" + edited.string()}, {"resume", true}};

    const auto restore = [&](const json& config, const json& state) {
      write_json(edited / kConfigFile, config);
      write_json(edited / kStateFile, state);
      api.put("/api/v1/vm.restore", request);
    };
    const auto try_to = [&](auto&& way) {
      try {
        way();
        return true;
      } catch (const VmmTimeout&) {
        throw;
      } catch (const VmmError& error) {
        // A refusal leaves it as it was, without a VM: the next way is as good. What is wrong with all of them is said
        // by the last one.
        if (error.status == 0) throw;
        return false;
      }
    };
    const auto load_memory = [&] {
      json config = edited_config(vm, saved);
      json state = read_json(saved, kStateFile);
      if (is_version_at_least(version, kMappedMajor, 0) && !is_version_at_least(version, kMappedMajor + 1, 0)) {
        json mapped_config = config;
        json mapped_state = state;
        // By a link of its own: a guest that restarts is made of it again.
        const Path memory = saved.dir / kMemoryFile;
        const std::string file = link_base_memory(vm, memory) ? std::string(kBaseMemory) : memory.string();
        if (map_memory(mapped_config, mapped_state, file, vm.config.mem_bytes) &&
            try_to([&] { restore(mapped_config, mapped_state); })) {
          return;
        }
      }
      // A VM that was itself loaded by mapping has a zone of its own for its memory; here it gets memory of no file.
      config["memory"]["size"] = vm.config.mem_bytes;
      config["memory"].erase("zones");
      config["memory"]["shared"] = true;
      std::error_code error;
      std::filesystem::create_symlink(saved.dir / kMemoryFile, edited / kMemoryFile, error);
      if (error) throw StoreError("link " + (edited / kMemoryFile).string() + ": " + error.message(), edited.string());
      request["memory_restore_mode"] = "OnDemand";
      if (try_to([&] { restore(config, state); })) return;
      request["memory_restore_mode"] = "Copy";
      restore(config, state);
    };
    load_memory();
    // Versions that do not know "resume" have ignored it.
    if (cloud_hypervisor_state(ask_cloud_hypervisor(api)) == GuestState::kPaused) api.put("/api/v1/vm.resume");
  });
  system::remove_tree(edited);
}

}  // namespace cocoon::vmm
