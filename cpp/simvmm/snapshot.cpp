#include "simvmm/snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "cocoon/system/fd.h"

#include "simvmm/console.h"

namespace cocoon::simvmm {
namespace {

// Where the test guest of the real VMMs is loaded, so that the file has a hole before it as theirs have.
constexpr std::uint64_t kPageAt = 0x100000;
constexpr std::array<char, 16> kMagic{'c', 'o', 'c', 'o', 'o', 'n', '-', 's', 'i', 'm', 'v', 'm', 'm', '-', 'g', '1'};

struct Page {
  std::array<char, 16> magic;
  std::uint64_t ticks;
  std::uint64_t ignores_requests;
};

system::Fd open_file(const std::string& path, int flags, unsigned mode = 0) {
  system::Fd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, static_cast<mode_t>(mode)));
  if (!fd) throw SystemError{errno};
  return fd;
}

void write_all(int fd, std::string_view bytes, std::uint64_t at) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw SystemError{errno};
    bytes.remove_prefix(static_cast<std::size_t>(count));
    at += static_cast<std::uint64_t>(count);
  }
}

struct stat stat_of(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw SystemError{errno};
  return status;
}

}  // namespace

void write_memory(const std::string& path, std::uint64_t bytes, unsigned mode, bool keeps, bool exclusive,
                  const Guest::Memory& memory) {
  const system::Fd fd = open_file(path, O_RDWR | O_CREAT | (exclusive ? O_EXCL : 0), mode);
  const auto size = static_cast<std::uint64_t>(stat_of(fd.get()).st_size);
  if ((!keeps || size != bytes) && ::ftruncate(fd.get(), 0) != 0) throw SystemError{errno};
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) throw SystemError{errno};
  const Page page{.magic = kMagic, .ticks = memory.ticks, .ignores_requests = memory.ignores_requests ? 1U : 0U};
  const std::string_view content(reinterpret_cast<const char*>(&page), sizeof page);
  if (kPageAt + content.size() <= bytes) write_all(fd.get(), content, kPageAt);
}

Guest::Memory read_memory(const std::string& path) {
  const system::Fd fd = open_file(path, O_RDONLY);
  Page page{};
  const ssize_t count = ::pread(fd.get(), &page, sizeof page, static_cast<off_t>(kPageAt));
  if (count < 0) throw SystemError{errno};
  if (count != sizeof page || page.magic != kMagic) return {};
  return {.ticks = page.ticks, .ignores_requests = page.ignores_requests != 0};
}

std::uint64_t file_bytes(const std::string& path) {
  return static_cast<std::uint64_t>(stat_of(open_file(path, O_RDONLY).get()).st_size);
}

std::string read_file(const std::string& path) {
  const system::Fd fd = open_file(path, O_RDONLY);
  std::string text;
  std::array<char, 4096> buffer{};
  while (true) {
    const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw SystemError{errno};
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(count));
  }
}

void write_file(const std::string& path, std::string_view text, unsigned mode, bool exclusive) {
  const system::Fd fd = open_file(path, O_WRONLY | O_CREAT | (exclusive ? O_EXCL : O_TRUNC), mode);
  write_all(fd.get(), text, 0);
}

void check_readable(const std::string& path, bool writable) { open_file(path, writable ? O_RDWR : O_RDONLY); }

std::uint64_t crc64(std::string_view bytes) {
  constexpr std::uint64_t kPolynomial = 0x95ac9329ac4bc9b5;  // Jones, reflected
  std::uint64_t crc = 0;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
  }
  return crc;
}

}  // namespace cocoon::simvmm
