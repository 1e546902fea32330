#pragma once
// What the drivers share in reading a VM's configuration: the checks that differ in numbers only, and names of files.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/system/file.h"

namespace cocoon::vmm {

inline constexpr std::size_t kMaxCmdlineBytes = 2047;  // x86 Linux cuts longer ones silently (COMMAND_LINE_SIZE)

struct ConfigLimits {
  std::string_view hypervisor;
  std::int64_t max_cpus = 0;
  std::size_t max_disks = 0;
  std::span<const std::string_view> disk_formats;
  std::size_t max_cmdline_bytes = 0;
};

// CPUs, memory, kernel and disks; files are looked at. A VM without a kernel passes: it can be kept in the books by
// somebody who starts it in another way.
// Errors   InvalidArgument naming argument, value and what is allowed.
void check_config(const lifecycle::VmConfig& config, const ConfigLimits& limits);

template <typename Allowed>
void require_one_of(std::string_view what, std::string_view value, std::string_view hypervisor,
                    const Allowed& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
    throw InvalidArgument(
        fmt::format("{}: '{}', allowed for {}: {}", what, value, hypervisor, fmt::join(allowed, ", ")));
  }
}

// VMMs are known again by the name of their program. Errors InvalidArgument: it does not begin with `prefix`.
void require_program_name(const system::Path& binary, std::string_view prefix);
bool has_program_name(const system::Path& binary, std::string_view prefix);

// The VM's own files by names that stay true in a clone, whose run dir is another one.
std::string path_for_vmm(const std::string& path, const system::Path& run_dir);

// True if a kernel's command line sets `name`, with a value or without.
bool has_parameter(std::string_view cmdline, std::string_view name);

}  // namespace cocoon::vmm
