#pragma once
// Inside the module: what libarchive does not tell of a tar header, the records of the Go engine for files with holes.

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/system/archive.h"

namespace cocoon::system {

// What is wrong with them; the reader says where.
class SparseProblem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct SparseFile {
  std::int64_t size = 0;
  std::vector<Extent> extents;  // the body is their data, back to back
};

// `headers` are the 512-byte blocks of one member up to its data, which libarchive has found well-formed; nullopt if
// they have no such records. Errors SparseProblem.
std::optional<SparseFile> find_sparse_records(std::string_view headers);

// "" if the extents are in order, apart, and within the file; else what is wrong.
std::string problem_of(const SparseFile& file);

}  // namespace cocoon::system
