#pragma once
// What both VMMs' snapshots share: a memory file of the guest's full size with one page of content, and files that are
// opened and checked as the VMMs do.

#include <cstdint>
#include <string>
#include <string_view>

#include "simvmm/guest.h"

namespace cocoon::simvmm {

// Guest memory as a sparse file of this size; what else the file holds stays if `keeps`, as a Diff does. Errors
// SystemError
void write_memory(const std::string& path, std::uint64_t bytes, unsigned mode, bool keeps, bool exclusive,
                  const Guest::Memory& memory);
// A page that is not there, or not ours, reads as a guest that never ran. Errors SystemError
Guest::Memory read_memory(const std::string& path);

std::uint64_t file_bytes(const std::string& path);                                               // Errors SystemError
std::string read_file(const std::string& path);                                                  // Errors SystemError
void write_file(const std::string& path, std::string_view text, unsigned mode, bool exclusive);  // Errors SystemError
void check_readable(const std::string& path, bool writable);                                     // Errors SystemError

// As Firecracker's vmstate ends with.
std::uint64_t crc64(std::string_view bytes);

}  // namespace cocoon::simvmm
