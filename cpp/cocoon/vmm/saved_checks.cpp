#include "cocoon/vmm/saved_checks.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::vmm {

std::string series_of(const std::string& version) {
  const auto first = version.find('.');
  return version.substr(0, first == std::string::npos ? first : version.find('.', first + 1));
}

std::string host_cpu() {
  std::ifstream file("/proc/cpuinfo");
  constexpr std::string_view kKey = "model name";
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with(kKey) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

const std::string& fact(const Saved& saved, const char* name) {
  const auto found = saved.vm.facts.find(name);
  if (found == saved.vm.facts.end()) {
    refuse_corrupt(saved, lifecycle::kSavedVmFile, fmt::format("it says nothing of its {}", name));
  }
  return found->second;
}

void refuse_saved(const Saved& saved, const std::string& what, std::string_view allowed) {
  throw InvalidArgument(fmt::format("snapshot {}: {}, allowed here: {}", saved.dir.filename().string(), what, allowed));
}

void refuse_corrupt(const Saved& saved, const std::string& member, const std::string& what) {
  throw CorruptSnapshot(fmt::format("snapshot {}: {}: {}", saved.dir.filename().string(), member, what),
                        saved.dir.string(), member);
}

std::int64_t state_file_size(const Saved& saved, const char* name) {
  const auto& files = saved.vm.state_files;
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.name == name; });
  if (found == files.end()) refuse_corrupt(saved, lifecycle::kSavedVmFile, fmt::format("it has no file '{}'", name));
  return found->size_bytes;
}

bool link_base_memory(const lifecycle::VmRecord& vm, const system::Path& memory) {
  const system::Path base = system::Path(vm.run_dir) / kBaseMemory;
  system::remove_file(base);
  if (::link(memory.c_str(), base.c_str()) == 0) return true;
  if (errno == EXDEV || errno == EPERM || errno == EMLINK) return false;
  throw StoreError(system_message("link " + base.string(), errno), base.string(), errno);
}

}  // namespace cocoon::vmm
