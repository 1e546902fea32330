#include "cocoon/metering/ledger_parts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <system_error>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/owned_fd.h"

namespace cocoon::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPlain = ".jsonl";
constexpr std::string_view kPacked = ".jsonl.zst";
constexpr std::string_view kGzipped = ".jsonl.gz";
constexpr std::string_view kUnfinished = ".jsonl.zst.part";  // no reader takes it for a ledger

fs::path folder_of(const fs::path& path) {
  const auto parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

void sync_folder_of(const fs::path& path) {
  const fs::path folder = folder_of(path);
  const OwnedFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.value < 0) fail_on("open folder", folder, errno);
  if (::fsync(fd.value) != 0) fail_on("sync folder", folder, errno);
}

void write_all(int fd, const fs::path& path, const char* from, std::size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(fd, from, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_on("write", path, errno);
    from += written;
    size -= static_cast<std::size_t>(written);
  }
}

// One frame, with a checksum of what went in. Returns how much that was.
std::uint64_t compress(int from, const fs::path& source, int to, const fs::path& target) {
  struct Context {
    ZSTD_CCtx* value = ZSTD_createCCtx();
    ~Context() { ZSTD_freeCCtx(value); }
  } const context;
  if (context.value == nullptr) fail_on("pack", source, ENOMEM);
  constexpr int kLevel = 3;
  static_cast<void>(ZSTD_CCtx_setParameter(context.value, ZSTD_c_compressionLevel, kLevel));
  static_cast<void>(ZSTD_CCtx_setParameter(context.value, ZSTD_c_checksumFlag, 1));
  std::vector<char> in(ZSTD_CStreamInSize());
  std::vector<char> out(ZSTD_CStreamOutSize());
  std::uint64_t read = 0;
  for (bool end = false; !end;) {
    const ssize_t got = ::read(from, in.data(), in.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_on("read", source, errno);
    end = got == 0;
    read += static_cast<std::uint64_t>(got);
    ZSTD_inBuffer taken{in.data(), static_cast<std::size_t>(got), 0};
    for (bool more = true; more;) {
      ZSTD_outBuffer made{out.data(), out.size(), 0};
      const std::size_t left = ZSTD_compressStream2(context.value, &made, &taken, end ? ZSTD_e_end : ZSTD_e_continue);
      if (ZSTD_isError(left) != 0) {
        throw LedgerError(fmt::format("pack {}: {}", source.string(), ZSTD_getErrorName(left)), source.string());
      }
      write_all(to, target, out.data(), made.pos);
      more = end ? left != 0 : taken.pos < taken.size;
    }
  }
  return read;
}

// False: somebody else is at it, or has done it; or it still grows.
bool pack(const Part& part) {
  const OwnedFd from(::open(part.path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (from.value < 0 && errno == ENOENT) return false;
  if (from.value < 0) fail_on("open", part.path, errno);
  // Held while it is packed: the lock goes with its holder, however that ends.
  if (::flock(from.value, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    fail_on("lock", part.path, errno);
  }
  struct stat status{};
  if (::fstat(from.value, &status) != 0) fail_on("stat", part.path, errno);
  if (status.st_nlink == 0) return false;
  const std::string base = part.path.string().substr(0, part.path.string().size() - kPlain.size());
  const fs::path unfinished = base + std::string(kUnfinished);
  const fs::path packed = base + std::string(kPacked);
  {
    // What a process left that died in here is overwritten.
    const OwnedFd to(::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (to.value < 0) fail_on("make", unfinished, errno);
    const std::uint64_t read = compress(from.value, part.path, to.value, unfinished);
    if (::fsync(to.value) != 0) fail_on("sync", unfinished, errno);
    // Whoever appends without the ledger's lock may not have noticed yet that it has moved on: let it wait.
    if (::fstat(from.value, &status) != 0) fail_on("stat", part.path, errno);
    if (std::cmp_not_equal(read, status.st_size)) return false;
  }
  if (::rename(unfinished.c_str(), packed.c_str()) != 0) fail_on("rename", unfinished, errno);
  sync_folder_of(packed);
  if (::unlink(part.path.c_str()) != 0) fail_on("remove", part.path, errno);
  return true;
}

}  // namespace

std::string_view ledger_stem(std::string_view name) {
  for (const std::string_view extension : {kPlain, kPacked, kGzipped}) {
    if (name.ends_with(extension)) return name.substr(0, name.size() - extension.size());
  }
  return {};
}

std::optional<PartName> parse_part_name(std::string_view name) {
  const std::string_view stem = ledger_stem(name);
  const std::size_t dot = stem.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const char* const end = stem.data() + stem.size();
  PartName part{.stem = std::string(stem.substr(0, dot)), .packed = !name.ends_with(kPlain)};
  const auto [dash, error] = std::from_chars(stem.data() + dot + 1, end, part.first);
  if (error != std::errc{} || dash == end || *dash != '-') return std::nullopt;
  const auto [behind, last_error] = std::from_chars(dash + 1, end, part.last);
  if (last_error != std::errc{} || behind != end) return std::nullopt;
  return part;
}

std::vector<Part> find_parts(const fs::path& path) {
  std::vector<Part> parts;
  const std::string own_name = path.filename().string();
  const std::string_view stem = ledger_stem(own_name);
  const fs::path folder = folder_of(path);
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    auto name = parse_part_name(entry->path().filename().native());
    if (name && name->stem == stem) parts.push_back({path.parent_path() / entry->path().filename(), std::move(*name)});
  }
  if (error && error.value() != ENOENT) fail_on("read folder", folder, error.value());
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::tuple(a.name.first, !a.name.packed) < std::tuple(b.name.first, !b.name.packed);
  });
  return parts;
}

std::uint64_t rotated_through(const fs::path& path) {
  std::uint64_t last = 0;
  for (const Part& part : find_parts(path)) last = std::max(last, part.name.last);
  return last;
}

fs::path rename_to_part(const fs::path& path, std::uint64_t first, std::uint64_t last) {
  const std::string own_name = path.filename().string();
  const std::string_view stem = ledger_stem(own_name);
  if (stem.empty() || path.extension() != kPlain) {
    throw LedgerError(fmt::format("rotate ledger {}: allowed is a name that ends in .jsonl", path.string()),
                      path.string());
  }
  const fs::path part = path.parent_path() / fmt::format("{}.{}-{}.jsonl", stem, first, last);
  if (::renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, part.c_str(), RENAME_NOREPLACE) != 0) {
    const int code = errno;
    throw LedgerError(system_message(fmt::format("rotate ledger {} to {}", path.string(), part.string()), code),
                      path.string(), code);
  }
  sync_folder_of(path);
  return part;
}

std::size_t pack_parts(const fs::path& path) {
  std::size_t packed = 0;
  for (const Part& part : find_parts(path)) {
    if (!part.name.packed && pack(part)) ++packed;
  }
  return packed;
}

}  // namespace cocoon::metering
