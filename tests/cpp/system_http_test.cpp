// HTTP as VMMs speak it: what goes over the wire, odd answers, full servers, and time.

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/system/http.h"

#include "system_test_support.h"

namespace cocoon::system {
namespace {

using namespace std::chrono_literals;
using namespace testing;

constexpr std::size_t kMaxBody = 1000;
constexpr std::string_view kFull = "HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n";

// Serves one connection after the other with the scripts given, each on the descriptor it accepted.
class Server {
 public:
  using Script = std::function<void(int fd)>;
  Server(const Path& path, std::vector<Script> scripts) : listener_(listen_on(path)) {
    thread_ = std::thread([this, scripts = std::move(scripts)] {
      for (const Script& script : scripts) {
        const Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!fd) return;
        script(fd.get());
      }
    });
  }
  ~Server() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  Fd listener_;
  std::thread thread_;
};

void say(int fd, std::string_view text) { EXPECT_GE(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), 0); }

// A request up to its empty line, and as much of a body as it announces.
std::string hear(int fd) {
  std::string heard;
  char c = 0;
  std::size_t wanted = std::string::npos;
  while (heard.size() < wanted && ::recv(fd, &c, 1, 0) == 1) {
    heard += c;
    if (wanted != std::string::npos || !heard.ends_with("\r\n\r\n")) continue;
    const auto at = heard.find("Content-Length: ");
    wanted = heard.size() + (at == std::string::npos ? 0 : std::stoul(heard.substr(at + 16)));
  }
  return heard;
}

Server::Script answer(std::string text) {
  return [text = std::move(text)](int fd) {
    hear(fd);
    say(fd, text);
  };
}

class HttpTest : public ::testing::Test {
 protected:
  HttpAnswer get(milliseconds timeout = kPatience) {
    return HttpSession(path_, kMaxBody, timeout, cancel_).request("GET", "/x");
  }
  // What a VMM that answers so makes of a GET; "" if it was accepted.
  std::string refusal(const std::string& text) {
    std::string message;
    {
      const Server server(path_, {answer(text)});
      try {
        get();
      } catch (const VmmError& error) {
        message = error.what();
      }
    }
    std::filesystem::remove(path_);
    return message;
  }

  TempDir dir_;
  Path path_ = dir_ / "api.sock";
  Cancel cancel_;
};

TEST_F(HttpTest, RequestIsPlainAndAConnectionServesSeveral) {
  std::vector<std::string> heard;
  const Server server(path_, {[&](int fd) {
                        heard.push_back(hear(fd));
                        say(fd, "HTTP/1.1 204 \r\nServer: X\r\nConnection: keep-alive\r\n\r\n");
                        heard.push_back(hear(fd));
                        say(fd, "HTTP/1.1 200 \r\ncontent-LENGTH:  7 \r\n\r\n{\"a\":1}");
                        heard.push_back(hear(fd));
                        say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                      }});
  HttpSession session(path_, kMaxBody, kPatience, cancel_);
  EXPECT_EQ(session.request("PUT", "/vm", "{}").status, 204);
  const HttpAnswer second = session.request("GET", "/");
  EXPECT_EQ(second.status, 200);
  EXPECT_EQ(second.body, "{\"a\":1}");
  EXPECT_EQ(session.request("PUT", "/api/v1/vm.boot").body, "");
  EXPECT_EQ(heard[0],
            "PUT /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
            "Content-Length: 2\r\n\r\n{}");
  EXPECT_EQ(heard[1], "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
  EXPECT_EQ(heard[2], "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
}

TEST_F(HttpTest, AnErrorIsAnAnswerAndItsConnectionIsNotUsedAgain) {
  const Server server(path_,
                      {answer("HTTP/1.1 400 \r\nContent-Length: 3\r\n\r\nno\n"), answer("HTTP/1.1 204 \r\n\r\n")});
  HttpSession session(path_, kMaxBody, kPatience, cancel_);
  const HttpAnswer refused = session.request("PUT", "/x", "{");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.body, "no\n");
  EXPECT_EQ(session.request("GET", "/x").status, 204);
}

TEST_F(HttpTest, AFullServerIsAskedAgain) {
  const auto full = [](int fd) {
    say(fd,
        "HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" "
        "}\n");
  };
  // It closes before it reads: whoever speaks too late gets EPIPE, and must find the 503 all the same.
  const Server server(path_, {full, full, full, answer("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}")});
  EXPECT_EQ(get().status, 200);
}

TEST_F(HttpTest, AServerThatStaysFullIsAnAnswerInTheEnd) {
  // The last client may have left before it is told.
  std::vector<Server::Script> scripts(
      200, [](int fd) { static_cast<void>(::send(fd, kFull.data(), kFull.size(), MSG_NOSIGNAL)); });
  const Server server(path_, std::move(scripts));
  try {
    EXPECT_EQ(get(1s).status, 503);
  } catch (const VmmTimeout& late) {  // in the middle of the last attempt
    EXPECT_NE(std::string(late.what()).find("(503)"), std::string::npos) << late.what();
  }
}

TEST_F(HttpTest, AServerThatWasFullAndThenHangsIsATimeoutThatSaysBoth) {
  const auto full = [](int fd) { say(fd, kFull); };
  const auto hang = [](int fd) {
    char c = 0;
    while (::recv(fd, &c, 1, 0) > 0) {
    }
  };
  const Server server(path_, {full, hang});
  try {
    static_cast<void>(get(2s));
    ADD_FAILURE() << "nobody answered";
  } catch (const VmmTimeout& late) {
    EXPECT_NE(std::string(late.what()).find("full at first (503)"), std::string::npos) << late.what();
  }
}

TEST_F(HttpTest, GarbageIsAnErrorThatShowsIt) {
  EXPECT_NE(refusal("SSH-2.0-OpenSSH\r\n\r\n").find("received 'SSH-2.0-OpenSSH'"), std::string::npos);
  EXPECT_NE(refusal("\x01\x02\xff\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 20 \r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 2000 \r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 100 \r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/2 200 \r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \n\n"), "") << "lines end with CR LF";
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nno colon\r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Length: 2x\r\n\r\n{}"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nX: " + std::string(9000, 'a') + "\r\n\r\n"), "");
  std::string many = "HTTP/1.1 200 \r\n";
  for (int i = 0; i < 100; ++i) many += "X: y\r\n";
  EXPECT_NE(refusal(many + "\r\n"), "");
  EXPECT_EQ(refusal("HTTP/1.1 200 \r\nX: y\r\n\r\n"), "") << "and this is how it should be";
}

TEST_F(HttpTest, EndingEarlyIsAnErrorWhereverItHappens) {
  EXPECT_NE(refusal(""), "");
  EXPECT_NE(refusal("HTTP/1.1 2"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Le"), "");
  EXPECT_NE(refusal("HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n{}"), "");
  EXPECT_THROW(get(), VmmError) << "nobody listens";
}

TEST_F(HttpTest, SilenceIsATimeoutThatNamesTheCall) {
  const Server server(path_, {[](int fd) {
                        hear(fd);
                        hear(fd);  // until the client has gone
                      }});
  try {
    get(80ms);
    FAIL() << "answered";
  } catch (const VmmTimeout& error) {
    EXPECT_STREQ(error.what(), "GET /x: no answer within 80 ms");
  }
}

TEST_F(HttpTest, AnAnswerThatTricklesHasTheSameTimeAsAnyOther) {
  const Server server(path_, {[](int fd) {
                        while (::send(fd, "H", 1, MSG_NOSIGNAL) == 1) std::this_thread::sleep_for(5ms);
                      }});
  EXPECT_THROW(get(80ms), VmmTimeout);
}

TEST_F(HttpTest, CancelEndsAWaitWithin100Milliseconds) {
  const Server server(path_, {[](int fd) {
                        hear(fd);
                        hear(fd);
                      }});
  std::thread later([&] {
    std::this_thread::sleep_for(50ms);
    cancel_.request();
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(get(60s), Cancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 50ms + 100ms + 100ms);
  later.join();
}

TEST_F(HttpTest, LongBodiesAndOddTargetsAreRefusedBeforeAnythingIsSent) {
  HttpSession session(path_, kMaxBody, kPatience, cancel_);  // where nobody listens
  EXPECT_THROW(session.request("PUT", "/x", std::string(kMaxBody + 1, 'x')), InvalidArgument);
  EXPECT_THROW(session.request("GET", "/a b"), InvalidArgument);
  EXPECT_THROW(session.request("GET", "/a\r\nX: y"), InvalidArgument);
  EXPECT_THROW(session.request("GET", "/" + std::string(1100, 'a')), InvalidArgument);
  EXPECT_THROW(session.request("PUT", "/x", std::string(kMaxBody, 'x')), VmmError);
}

TEST_F(HttpTest, ASocketToHandOverIsOursAloneAndItsClientsWait) {
  const Path deep = dir_ / std::string(120, 'd');
  std::filesystem::create_directory(deep);
  const Path socket = deep / "api.sock";
  HttpAnswer got;
  std::thread client;
  {
    const Fd listener = listen_on(socket);
    EXPECT_EQ(std::filesystem::status(socket).permissions(), std::filesystem::perms(0600));
    EXPECT_THROW(listen_on(socket), StoreError) << "there is one already";
    client = std::thread([&] { got = HttpSession(socket, kMaxBody, kPatience, cancel_).request("GET", "/"); });
    const Fd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    hear(fd.get());
    say(fd.get(), "HTTP/1.1 204 \r\n\r\n");
    client.join();
  }
  EXPECT_EQ(got.status, 204);
  EXPECT_THROW(listen_on(dir_ / "none" / "api.sock"), StoreError);
}

}  // namespace
}  // namespace cocoon::system
