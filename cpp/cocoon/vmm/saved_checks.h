#pragma once
// Inside the module: what the drivers have in common in loading saved VMs.

#include <string>
#include <string_view>

#include "cocoon/vmm/driver.h"

namespace cocoon::vmm {

// "7.2" of "7.2.22", "1.17" of "1.17.0-dev".
std::string series_of(const std::string& version);

// The processor's name. A guest whose processor is the host's goes on only on such a one.
std::string host_cpu();

// A fact of a saved VM. Errors CorruptSnapshot: it is not there.
const std::string& fact(const Saved& saved, const char* name);

[[noreturn]] void refuse_saved(const Saved& saved, const std::string& what, std::string_view allowed);
[[noreturn]] void refuse_corrupt(const Saved& saved, const std::string& member, const std::string& what);

// The logical size of one of its state files. Errors CorruptSnapshot: it is not among them.
std::int64_t state_file_size(const Saved& saved, const char* name);

// In the run dir of a VM that was loaded: the memory it has mapped, by a link of its own, since the snapshot may go.
inline constexpr const char* kBaseMemory = "memory.base";

// Makes that link, in place of the one before. False: the file system does not allow it, and there is none now.
// Errors   StoreError.
bool link_base_memory(const lifecycle::VmRecord& vm, const system::Path& memory);

}  // namespace cocoon::vmm
