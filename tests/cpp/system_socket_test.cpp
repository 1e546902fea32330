// UNIX sockets as a client meets them: live, dead, stuck, far away.

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

#include <gtest/gtest.h>

#include "cocoon/system/socket.h"

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace testing;

// A listening socket; also at paths longer than sun_path, by binding in its folder.
class Listener {
 public:
  explicit Listener(const Path& path, int backlog = 8) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const Fd folder(::open(path.parent_path().c_str(), O_PATH | O_CLOEXEC));
    const std::string name = "/proc/self/fd/" + std::to_string(folder.get()) + "/" + path.filename().string();
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(fd_.get(), backlog) != 0) {
      throw std::runtime_error("bind " + path.string() + ": " + std::strerror(errno));
    }
  }
  Fd accept() const { return Fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }

 private:
  Fd fd_;
};

constexpr milliseconds kShort{60};

void say(const Fd& fd, const std::string& text) {
  ASSERT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

template <typename Thrown, typename Call>
std::string message_of(const Call& call) {
  try {
    call();
    return "none";
  } catch (const Thrown& error) {
    return error.what();
  }
}

// Fills the backlog, so that the next connect has to wait.
std::vector<UnixStream> fill_backlog(const Path& path) {
  std::vector<UnixStream> streams;
  for (;;) {
    try {
      streams.push_back(UnixStream::connect(path, milliseconds(0)));
    } catch (const VmmTimeout&) {
      return streams;
    }
  }
}

TEST(SocketTest, ProbeTellsLiveFromDead) {
  const TempDir dir;
  const Path path = dir / "s";
  EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kDead) << "no file";
  {
    const Listener listener(path);
    EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kLive);
    EXPECT_EQ(probe_socket(path, milliseconds(0)), SocketProbe::kLive);
  }
  EXPECT_TRUE(std::filesystem::is_socket(path));
  EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kDead) << "a stale file";
  put(dir / "file", "");
  EXPECT_EQ(probe_socket(dir / "file", kPatience), SocketProbe::kDead) << "nobody can listen there";
  EXPECT_EQ(probe_socket("", kPatience), SocketProbe::kInconclusive);
  EXPECT_EQ(probe_socket(dir / "file/s", kPatience), SocketProbe::kInconclusive);
}

TEST(SocketTest, FullBacklogIsInconclusiveAfterTheTime) {
  const TempDir dir;
  const Path path = dir / "s";
  const Listener listener(path, 0);
  const auto waiting = fill_backlog(path);
  const auto start = steady_clock::now();
  EXPECT_EQ(probe_socket(path, kShort), SocketProbe::kInconclusive);
  EXPECT_GE(steady_clock::now() - start, kShort - milliseconds(5));  // the kernel counts in ticks
  EXPECT_EQ(message_of<VmmTimeout>([&] { UnixStream::connect(path, milliseconds(20)); }),
            "connect to " + path.string() + ": not accepted within 20 ms");
}

TEST(SocketTest, ConnectWaitsForRoomInTheBacklog) {
  const TempDir dir;
  const Path path = dir / "s";
  const Listener listener(path, 0);
  auto waiting = fill_backlog(path);
  const pid_t client = ::gettid();
  Fd accepted;
  std::thread server([&] {
    EXPECT_TRUE(falls_asleep(client));
    accepted = listener.accept();
  });
  EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kLive);
  server.join();
}

TEST(SocketTest, NotPermittedIsInconclusive) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  const TempDir dir;
  const Path path = dir / "s";
  const Listener listener(path);
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
  std::filesystem::permissions(path, std::filesystem::perms(0600));
  ForkedChild other([&] {
    if (::setresuid(65534, 65534, 65534) != 0) return 2;
    return probe_socket(path, kPatience) == SocketProbe::kInconclusive ? 0 : 1;
  });
  EXPECT_EQ(other.wait(), 0);
}

TEST(SocketTest, PathsLongerThanTheAddressWork) {
  const TempDir dir;
  const Path folder = dir / std::string(120, 'd') / std::string(120, 'e');
  make_private_dirs(folder);
  const Path path = folder / "s";
  EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kDead);
  {
    const Listener listener(path);
    EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kLive);
    UnixStream stream = UnixStream::connect(path, kPatience);
    listener.accept();  // the probe's
    const Fd peer = listener.accept();
    say(peer, "hello\n");
    Cancel never;
    EXPECT_EQ(stream.receive_line(kPatience, never), "hello");
  }
  EXPECT_EQ(probe_socket(path, kPatience), SocketProbe::kDead);
}

TEST(SocketTest, ConnectErrorsNameThePath) {
  const TempDir dir;
  EXPECT_EQ(message_of<VmmError>([&] { UnixStream::connect(dir / "s", kPatience); }),
            "connect to " + (dir / "s").string() + ": No such file or directory");
  {
    const Listener stale(dir / "s");
  }
  EXPECT_EQ(message_of<VmmError>([&] { UnixStream::connect(dir / "s", kPatience); }),
            "connect to " + (dir / "s").string() + ": Connection refused");
}

class StreamTest : public ::testing::Test {
 protected:
  TempDir dir_;
  Listener listener_{dir_ / "s"};
  UnixStream stream_ = UnixStream::connect(dir_ / "s", kPatience);
  Fd peer_ = listener_.accept();
  Cancel never_;
};

TEST_F(StreamTest, LinesComeWholeHoweverTheyAreSent) {
  say(peer_, "one\n\ntw");
  EXPECT_EQ(stream_.receive_line(kPatience, never_), "one");
  EXPECT_EQ(stream_.receive_line(kPatience, never_), "");
  EXPECT_THROW(stream_.receive_line(kShort, never_), VmmTimeout);
  say(peer_, "o\r\nthree\n");
  EXPECT_EQ(stream_.receive_line(kPatience, never_), "two\r") << "what a time-out left is kept";
  EXPECT_EQ(stream_.receive_line(milliseconds(0), never_), "three");
}

TEST_F(StreamTest, LongLinesAreRefused) {
  say(peer_, std::string(100, 'x') + "\n");
  EXPECT_EQ(message_of<VmmError>([&] { stream_.receive_line(kPatience, never_, 99); }),
            "receive from the VMM: a line longer than 99 bytes");
  EXPECT_EQ(stream_.receive_line(kPatience, never_, 100).size(), 100U);
  say(peer_, std::string(101, 'y'));
  EXPECT_THROW(stream_.receive_line(kPatience, never_, 100), VmmError) << "without waiting for its end";
}

TEST_F(StreamTest, PeerClosingIsAnError) {
  say(peer_, "last\nunfini");
  peer_.reset();
  EXPECT_EQ(stream_.receive_line(kPatience, never_), "last");
  EXPECT_EQ(message_of<VmmError>([&] { stream_.receive_line(kPatience, never_); }),
            "receive from the VMM: it closed the connection after 6 bytes of an unfinished line");
  EXPECT_EQ(message_of<VmmError>([&] { stream_.send("x", kPatience, never_); }), "send to the VMM: Broken pipe");
}

TEST_F(StreamTest, SendGoesOnWhenThePeerReads) {
  const std::string large(4 << 20, 'z');
  std::string received;
  std::thread reader([&] {
    std::string piece(1 << 16, '\0');
    while (received.size() < large.size()) {
      const ssize_t n = ::recv(peer_.get(), piece.data(), piece.size(), 0);
      if (n <= 0) break;
      received.append(piece.data(), static_cast<std::size_t>(n));
    }
  });
  stream_.send(large, kPatience, never_);
  reader.join();
  EXPECT_TRUE(received == large);
}

TEST_F(StreamTest, SendTimesOutWhenThePeerDoesNotRead) {
  const auto start = steady_clock::now();
  EXPECT_THROW(stream_.send(std::string(8 << 20, 'z'), kShort, never_), VmmTimeout);
  EXPECT_GE(steady_clock::now() - start, kShort);
}

TEST_F(StreamTest, CancelEndsBothWaits) {
  Cancel cancel([] { throw Cancelled(); });
  const auto start = steady_clock::now();
  EXPECT_THROW(stream_.receive_line(kPatience, cancel), Cancelled);
  Cancel second([] { throw Cancelled(); });
  EXPECT_THROW(stream_.send(std::string(8 << 20, 'z'), kPatience, second), Cancelled);
  EXPECT_LT(steady_clock::now() - start, milliseconds(5000));
}

}  // namespace
}  // namespace cocoon::system
