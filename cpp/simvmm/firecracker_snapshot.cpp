// Firecracker's snapshots: a state file that ends in a checksum of the rest, and the guest's memory beside it. Here the
// state is JSON behind the real one's magic number, and the memory is always sparse.

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "simvmm/firecracker.h"
#include "simvmm/firecracker_schema.h"
#include "simvmm/snapshot.h"
#include "simvmm/text.h"

namespace cocoon::simvmm::firecracker {
namespace {

constexpr std::uint64_t kMagic = 0x1019'8486'6400'0000;
constexpr std::string_view kCannotRestore = "Load snapshot error: Failed to restore from snapshot: ";
constexpr std::string_view kCannotGetState = "Failed to get snapshot state from file: ";

std::string_view bytes_of(const std::uint64_t& number) {
  return {reinterpret_cast<const char*>(&number), sizeof number};
}

Fault load_fault(std::string_view reason) {
  return {.message = fmt::format("{}{}", kCannotRestore, reason), .ends_process = true};
}

Fault state_fault(std::string_view reason) { return load_fault(fmt::format("{}{}", kCannotGetState, reason)); }

Json read_state(const std::string& path) {
  std::string text;
  try {
    text = read_file(path);
  } catch (const SystemError& error) {
    throw state_fault(fmt::format("Failed to open snapshot file: {}", os_error(error.code)));
  }
  constexpr std::string_view kCannotLoad = "Failed to load snapshot state from file: ";
  std::uint64_t crc = 0;
  if (text.size() < sizeof crc)
    throw state_fault(fmt::format("{}IO Error: File too short to contain CRC", kCannotLoad));
  std::memcpy(&crc, text.data() + text.size() - sizeof crc, sizeof crc);
  text.resize(text.size() - sizeof crc);
  // Decoded first, as far as that fails on what was cut or is something else; then the checksum.
  if (!text.starts_with(bytes_of(kMagic)) || !text.ends_with('}')) {
    throw state_fault(fmt::format("{}An error occurred during bitcode serialization: bitcode error", kCannotLoad));
  }
  if (crc64(text) != crc) throw state_fault(fmt::format("{}CRC64 validation failed", kCannotLoad));
  return parse_json(std::string_view(text).substr(sizeof kMagic));
}

}  // namespace

void Firecracker::create_snapshot(const std::string& body) {
  const Json wanted = parse_object(body, kSnapshotCreate);
  require_started();
  if (state_ == State::kRunning) {
    throw Fault{
        "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while "
        "running"};
  }
  std::string state(bytes_of(kMagic));
  state += dump(full_config());
  const std::uint64_t crc = crc64(state);
  state += bytes_of(crc);
  // The state is written before the memory is opened: of a create that fails there, it stays.
  try {
    write_file(string_of(wanted, "snapshot_path"), state, 0644, false);
  } catch (const SystemError& error) {
    throw Fault{fmt::format("Create snapshot error: Cannot perform open on the snapshot backing file: {}",
                            os_error(error.code))};
  }
  try {
    const bool diff = string_of(wanted, "snapshot_type", "Full") == "Diff";
    write_memory(string_of(wanted, "mem_file_path"), number_of(machine_config_, "mem_size_mib", 0) << 20U, 0644, diff,
                 false, guest_.memory());
  } catch (const SystemError& error) {
    throw Fault{
        fmt::format("Create snapshot error: Cannot perform open on the memory backing file: {}", os_error(error.code))};
  }
}

void Firecracker::load_snapshot(const std::string& body) {
  const Json wanted = parse_object(body, kSnapshotLoad);
  const bool has_backend = !member_of(wanted, "mem_backend").is_null();
  const bool has_path = !member_of(wanted, "mem_file_path").is_null();
  if (has_backend && has_path) {
    throw JsonError{"too many fields: either `mem_backend` or `mem_file_path` exclusively is required"};
  }
  if (!has_backend && !has_path) throw JsonError{"missing field: either `mem_backend` or `mem_file_path` is required"};
  require_not_started();
  if (configured_) {
    throw Fault{
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."};
  }
  // From here on it is restored, or the process ends.
  restore(wanted);
}

void Firecracker::restore(const Json& request) {
  Json state = read_state(string_of(request, "snapshot_path"));
  for (const Json& override : member_of(request, "network_overrides")) {
    Json& interfaces = state["network-interfaces"];
    const auto interface = std::find_if(interfaces.begin(), interfaces.end(), [&](const Json& known) {
      return string_of(known, "iface_id") == string_of(override, "iface_id");
    });
    if (interface == interfaces.end()) throw state_fault("Unknown Network Device.");
    (*interface)["host_dev_name"] = string_of(override, "host_dev_name");
  }
  if (const Json& override = member_of(request, "vsock_override"); !override.is_null()) {
    if (member_of(state, "vsock").is_null()) throw state_fault("Unknown Vsock Device.");
    state["vsock"]["uds_path"] = string_of(override, "uds_path");
  }

  const Json& backend = member_of(request, "mem_backend");
  const std::string memory_path =
      backend.is_null() ? string_of(request, "mem_file_path") : string_of(backend, "backend_path");
  const bool uffd = string_of(backend, "backend_type") == "Uffd";
  const std::string huge_pages = string_of(request, "huge_pages", "Snapshot");
  constexpr std::string_view kCannotLoad = "Failed to load guest memory: ";
  if (uffd) {
    constexpr std::string_view kFromUffd = "Error creating guest memory from uffd: ";
    try {
      check_listens(memory_path);
    } catch (const SystemError& error) {
      throw load_fault(
          fmt::format("{}{}Failed to connect to UDS Unix stream: {}", kCannotLoad, kFromUffd, os_error(error.code)));
    }
    // There is no memory here whose page faults another process could handle.
    throw load_fault(fmt::format("{}{}the simulator cannot", kCannotLoad, kFromUffd));
  }
  if (huge_pages == "2M") {
    throw load_fault(fmt::format(
        "{}Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.", kCannotLoad));
  }
  Guest::Memory memory;
  try {
    if (file_bytes(memory_path) < number_of(member_of(state, "machine-config"), "mem_size_mib", 0) << 20U) {
      throw load_fault(fmt::format(
          "{}Error creating guest memory from file: Failed to restore guest memory: Total sum of memory regions "
          "exceeds largest possible file offset",
          kCannotLoad));
    }
    memory = read_memory(memory_path);
  } catch (const SystemError& error) {
    throw load_fault(fmt::format("{}Error creating guest memory from file: Failed to load guest memory: {}",
                                 kCannotLoad, os_error(error.code)));
  }

  constexpr std::string_view kCannotBuild =
      "Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: ";
  for (const Json& drive : member_of(state, "drives")) {
    const std::string path = string_of(drive, "path_on_host");
    try {
      check_readable(path, !bool_of(drive, "is_read_only", false));
    } catch (const SystemError& error) {
      throw load_fault(fmt::format("{}Block: Virtio backend error: Error manipulating the backing file: {} {}",
                                   kCannotBuild, os_error(error.code), path));
    }
  }
  if (const Json& vsock = member_of(state, "vsock"); !vsock.is_null()) {
    try {
      vsock_listener_ = listen_at(string_of(vsock, "uds_path"));
    } catch (const SystemError& error) {
      throw load_fault(fmt::format("{}VsockUnixBackend: Error binding to the host-side Unix socket: {}", kCannotBuild,
                                   os_error(error.code)));
    }
  }

  machine_config_ = member_of(state, "machine-config");
  machine_config_["track_dirty_pages"] =
      bool_of(request, "track_dirty_pages", false) || bool_of(request, "enable_diff_snapshots", false);
  boot_source_ = member_of(state, "boot-source");
  drives_ = member_of(state, "drives");
  interfaces_ = member_of(state, "network-interfaces");
  pmem_ = member_of(state, "pmem");
  balloon_ = member_of(state, "balloon");
  entropy_ = member_of(state, "entropy");
  vsock_ = member_of(state, "vsock");
  mmds_config_ = member_of(state, "mmds-config");
  memory_hotplug_ = member_of(state, "memory-hotplug");
  guest_.restore(memory);
  const bool resume = bool_of(request, "resume_vm", false);
  if (resume) guest_.run();
  state_ = resume ? State::kRunning : State::kPaused;
}

}  // namespace cocoon::simvmm::firecracker
