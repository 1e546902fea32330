#pragma once
// What the tests of the drivers share: a temp dir, a QMP server that does as it is told, a guest of 50 instructions.

#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"

namespace cocoon::vmm {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "cocoon-vmm-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const system::Path& path() const { return path_; }
  [[nodiscard]] system::Path file(std::string_view name, std::string_view content = {}) const {
    const system::Path made = path_ / name;
    std::ofstream(made, std::ios::binary) << content;
    return made;
  }

 private:
  system::Path path_;
};

// Polls until `done`; false after the time limit, which is for a busy machine.
inline bool eventually(const std::function<bool()>& done, std::chrono::seconds limit = std::chrono::seconds(60)) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// One accepted client of a FakeQmp.
class FakeClient {
 public:
  explicit FakeClient(system::Fd fd) : fd_(std::move(fd)) {}

  // False when the client has gone, as some tests want.
  bool say(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t n = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // The next line, without its end; "" when the client has gone.
  std::string hear() {
    for (;;) {
      if (const auto end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        return line;
      }
      std::array<char, 4096> piece;
      const ssize_t n = ::recv(fd_.get(), piece.data(), piece.size(), 0);
      if (n <= 0) return "";
      buffer_.append(piece.data(), static_cast<std::size_t>(n));
    }
  }
  // Greeting and negotiation, as QEMU does them.
  void greet() {
    say(R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})"
        "\r\n");
    hear();
    say(R"({"return": {}, "id": 1})"
        "\r\n");
  }

 private:
  system::Fd fd_;
  std::string buffer_;
};

// Listens on a UNIX socket and serves `clients` clients, one after the other, each with the given script.
class FakeQmp {
 public:
  FakeQmp(system::Path path, std::function<void(FakeClient&)> script, int clients = 1) : path_(std::move(path)) {
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener_.get(), 1) != 0) {
      throw std::runtime_error("FakeQmp: cannot listen on " + path_.string());
    }
    thread_ = std::thread([this, script = std::move(script), clients] {
      for (int i = 0; i < clients; ++i) {
        system::Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!fd) return;
        FakeClient client(std::move(fd));
        script(client);
      }
    });
  }
  ~FakeQmp() {
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends a wait in accept
    thread_.join();
  }
  FakeQmp(const FakeQmp&) = delete;
  FakeQmp& operator=(const FakeQmp&) = delete;

  [[nodiscard]] const system::Path& path() const { return path_; }

 private:
  system::Path path_;
  system::Fd listener_;
  std::thread thread_;
};

// A kernel for `-kernel`: an ELF file with a PVH note. It prints "UP\n" on the serial port, echoes what it reads
// there, and resets the machine by a triple fault when it reads an 'r'.
inline std::string tiny_kernel() {
  constexpr std::uint32_t kLoad = 0x100000;
  const std::string code(
      "\x66\xba\xf8\x03"              //  0 mov dx, 0x3f8
      "\xb0U\xee\xb0P\xee\xb0\n\xee"  //  4 mov al, 'U'; out dx, al; …
      "\x66\xba\xfd\x03"              // 13 again: mov dx, 0x3fd (line status)
      "\xec\xa8\x01"                  // 17 in al, dx; test al, 1 (data ready)
      "\x74\xf7"                      // 20 jz again
      "\x66\xba\xf8\x03\xec"          // 22 mov dx, 0x3f8; in al, dx
      "\x3cr\x74\x03"                 // 27 cmp al, 'r'; je reset
      "\xee\xeb\xeb"                  // 31 out dx, al; jmp again
      "\x0f\x01\x1d\x2a\x00\x10\x00"  // 34 reset: lidt [0x10002a], which is all zero
      "\xcc"                          // 41 int3: no handler, none for that, reset
      "\0\0\0\0\0\0",                 // 42
      48);
  const auto number = [](auto value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); };
  const std::string note = number(std::uint32_t{4}) + number(std::uint32_t{4}) + number(std::uint32_t{18}) +
                           std::string("Xen\0", 4) + number(kLoad);
  const std::uint64_t headers = 64 + 2 * 56;
  const auto segment = [&](std::uint32_t type, std::uint64_t offset, std::uint64_t address, std::uint64_t size) {
    return number(type) + number(std::uint32_t{7}) + number(offset) + number(address) + number(address) + number(size) +
           number(size) + number(std::uint64_t{4});
  };
  std::string file(
      "\x7f"
      "ELF\x02\x01\x01",
      7);
  file.resize(16);
  file += number(std::uint16_t{2}) + number(std::uint16_t{62}) + number(std::uint32_t{1}) +
          number(std::uint64_t{kLoad}) + number(std::uint64_t{64}) + number(std::uint64_t{0}) +
          number(std::uint32_t{0}) + number(std::uint16_t{64}) + number(std::uint16_t{56}) + number(std::uint16_t{2}) +
          number(std::uint16_t{64}) + number(std::uint16_t{0}) + number(std::uint16_t{0});
  file += segment(1, headers, kLoad, code.size());
  file += segment(4, headers + code.size(), kLoad + code.size(), note.size());
  return file + code + note;
}

}  // namespace cocoon::vmm
