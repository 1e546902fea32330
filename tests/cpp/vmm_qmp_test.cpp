// The QMP client against a server that misbehaves in every way a peer can.

#include <chrono>
#include <future>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/vmm/qmp.h"

#include "vmm_test_support.h"

namespace cocoon::vmm {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

class QmpTest : public ::testing::Test {
 protected:
  [[nodiscard]] system::Path socket() const { return dir_.path() / "qmp.sock"; }

  // What execute("query-status") throws when the server says `answer` to it.
  template <typename Failure>
  Failure failure_of_answer(const std::string& answer) {
    FakeQmp server(socket(), [&](FakeClient& client) {
      client.greet();
      client.hear();
      client.say(answer);
      client.hear();
    });
    Qmp qmp = Qmp::connect(socket(), 20s, cancel_);
    try {
      qmp.execute("query-status");
    } catch (const Failure& error) {
      return error;
    }
    throw std::runtime_error("nothing was thrown for " + answer.substr(0, 100));
  }

  template <typename Failure>
  Failure failure_of_greeting(const std::string& greeting, std::chrono::milliseconds timeout = 20s) {
    FakeQmp server(socket(), [&](FakeClient& client) {
      client.say(greeting);
      if (!greeting.empty() && greeting.back() == '\n') client.hear();
    });
    try {
      Qmp::connect(socket(), timeout, cancel_);
    } catch (const Failure& error) {
      return error;
    }
    throw std::runtime_error("nothing was thrown for greeting " + greeting.substr(0, 100));
  }

  TempDir dir_;
  system::Cancel cancel_;
};

TEST_F(QmpTest, SendsCommandsWithIdsAndReturnsWhatTheyReturn) {
  std::vector<std::string> heard;
  {
    FakeQmp server(socket(), [&](FakeClient& client) {
      client.say("{\"QMP\": {}}\r\n");
      heard.push_back(client.hear());
      client.say("{\"return\": {}, \"id\": 1}\r\n");
      heard.push_back(client.hear());
      client.say("{\"return\": {\"status\": \"running\"}, \"id\": 2}\n");
      heard.push_back(client.hear());
      client.say("{\"id\": 3, \"return\": []}\n");
    });
    Qmp qmp = Qmp::connect(socket(), 20s, cancel_);
    EXPECT_EQ(qmp.execute("query-status"), json({{"status", "running"}}));
    EXPECT_EQ(qmp.execute("getfd", {{"fdname", "a \"b\""}}), json::array());
  }
  ASSERT_EQ(heard.size(), 3U);
  EXPECT_EQ(json::parse(heard[0]), json({{"execute", "qmp_capabilities"}, {"id", 1}}));
  EXPECT_EQ(json::parse(heard[1]), json({{"execute", "query-status"}, {"id", 2}}));
  EXPECT_EQ(json::parse(heard[2]), json({{"execute", "getfd"}, {"arguments", {{"fdname", "a \"b\""}}}, {"id", 3}}));
}

TEST_F(QmpTest, SkipsEventsBeforeTheAnswerAlsoWhenBytesComeOneByOne) {
  FakeQmp server(socket(), [&](FakeClient& client) {
    client.greet();
    client.hear();
    const std::string answer =
        "{\"timestamp\": {\"seconds\": 1}, \"event\": \"STOP\"}\r\n{\"event\": \"RESUME\", \"data\": {\"id\": 2}}\r\n"
        "{\"return\": 7, \"id\": 2}\r\n";
    for (const char c : answer) client.say(std::string(1, c));
  });
  Qmp qmp = Qmp::connect(socket(), 20s, cancel_);
  EXPECT_EQ(qmp.execute("stop"), 7);
}

TEST_F(QmpTest, RefusalCarriesClassAndDescription) {
  const auto error = failure_of_answer<VmmError>(
      R"({"error": {"class": "GenericError", "desc": "Failed to get \"write\" lock"}, "id": 2})"
      "\n");
  EXPECT_EQ(error.body, "GenericError: Failed to get \"write\" lock");
  EXPECT_STREQ(error.what(), "QMP: 'query-status' was refused: GenericError: Failed to get \"write\" lock");
}

TEST_F(QmpTest, RefusalWithoutIdIsOurs) {
  const auto error =
      failure_of_answer<VmmError>("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n");
  EXPECT_EQ(error.body, "GenericError: JSON parse error");
}

TEST_F(QmpTest, NonsenseIsAnErrorThatShowsIt) {
  for (const std::string line :
       {"garbage", "[]", "{}", R"({"return": {}})", R"({"return": {}, "id": 3})", R"({"return": {}, "id": "2"})",
        R"({"id": 2})", R"({"return": {}, "id": 2)", "\xff\xfe", "{\"return\": \"\xff\", \"id\": 2}", "", "null"}) {
    SCOPED_TRACE(line);
    const auto error = failure_of_answer<VmmError>(line + "\n");
    EXPECT_NE(std::string(error.what()).find("expected the answer to 'query-status'"), std::string::npos)
        << error.what();
    std::filesystem::remove(socket());
  }
}

TEST_F(QmpTest, MalformedErrorsAreErrorsToo) {
  for (const std::string body : {"1", "{}", "[1]", "null", R"({"class": 1, "desc": []})"}) {
    SCOPED_TRACE(body);
    EXPECT_EQ(failure_of_answer<VmmError>("{\"id\": 2, \"error\": " + body + "}\n").body, "?: ?");
    std::filesystem::remove(socket());
  }
}

TEST_F(QmpTest, ControlCharactersAndLongTextsDoNotGetIntoMessages) {
  const auto error = failure_of_answer<VmmError>("\x1b[2J" + std::string(5000, 'x') + "\n");
  EXPECT_EQ(std::string(error.what()).find('\x1b'), std::string::npos);
  EXPECT_LT(std::string(error.what()).size(), 400U);
}

TEST_F(QmpTest, EndlessLineIsCut) {
  const auto error = failure_of_answer<VmmError>(std::string((1 << 20) + 10, 'x'));
  EXPECT_NE(std::string(error.what()).find("a line longer than"), std::string::npos) << error.what();
}

TEST_F(QmpTest, DeeplyNestedAnswerIsAnError) { failure_of_answer<VmmError>(std::string(100'000, '[') + "\n"); }

TEST_F(QmpTest, CloseInsteadOfAnAnswerIsAnError) {
  FakeQmp server(socket(), [&](FakeClient& client) {
    client.greet();
    client.hear();
    client.say("{\"return\"");
  });
  Qmp qmp = Qmp::connect(socket(), 20s, cancel_);
  EXPECT_THROW(qmp.execute("query-status"), VmmError);
}

TEST_F(QmpTest, CloseInsteadOfAGreetingIsAnError) {
  EXPECT_NE(std::string(failure_of_greeting<VmmError>("").what()).find("closed"), std::string::npos);
}

TEST_F(QmpTest, OtherProtocolsAreRefusedWithWhatTheySaid) {
  EXPECT_EQ(failure_of_greeting<VmmError>("HTTP/1.1 400 \r\n").body, "HTTP/1.1 400 \r");
  std::filesystem::remove(socket());
  EXPECT_EQ(failure_of_greeting<VmmError>("{\"event\": \"STOP\"}\n").body, R"({"event":"STOP"})");
}

TEST_F(QmpTest, NobodyListeningIsAnErrorNotATimeout) {
  try {
    Qmp::connect(socket(), 20s, cancel_);
    FAIL() << "connected to nothing";
  } catch (const VmmTimeout& error) {
    FAIL() << error.what();
  } catch (const VmmError& error) {
    EXPECT_NE(std::string(error.what()).find(socket().string()), std::string::npos);
  }
}

TEST_F(QmpTest, SilenceIsATimeoutThatSaysWhatItMayMean) {
  std::promise<void> over;
  FakeQmp server(socket(), [&](FakeClient&) { over.get_future().wait(); });
  const auto before = std::chrono::steady_clock::now();
  try {
    Qmp::connect(socket(), 150ms, cancel_);
    ADD_FAILURE() << "no timeout";
  } catch (const VmmTimeout& error) {
    EXPECT_NE(std::string(error.what()).find("serves another client"), std::string::npos) << error.what();
  }
  EXPECT_GE(std::chrono::steady_clock::now() - before, 150ms);
  over.set_value();
}

TEST_F(QmpTest, SilenceAfterACommandIsATimeout) {
  FakeQmp server(socket(), [&](FakeClient& client) {
    client.greet();
    client.hear();
    client.hear();  // returns when the client has gone
  });
  Qmp qmp = Qmp::connect(socket(), 300ms, cancel_);
  EXPECT_THROW(qmp.execute("stop"), VmmTimeout);
}

TEST_F(QmpTest, EventsWithoutEndDoNotPutOffTheTimeout) {
  FakeQmp server(socket(), [&](FakeClient& client) {
    client.greet();
    client.hear();
    while (client.say("{\"event\": \"RTC_CHANGE\"}\n")) {
    }
  });
  {
    Qmp qmp = Qmp::connect(socket(), 300ms, cancel_);
    EXPECT_THROW(qmp.execute("stop"), VmmTimeout);
  }
}

TEST_F(QmpTest, SecondClientWaitsUntilTheFirstLeaves) {
  std::promise<void> first_is_in;
  FakeQmp server(
      socket(),
      [&, told = false](FakeClient& client) mutable {
        client.greet();
        if (!std::exchange(told, true)) first_is_in.set_value();
        client.hear();
      },
      2);
  auto first = std::make_unique<Qmp>(Qmp::connect(socket(), 20s, cancel_));
  first_is_in.get_future().wait();
  auto second = std::async(std::launch::async, [&] {
    system::Cancel mine;
    Qmp::connect(socket(), 20s, mine);
  });
  EXPECT_EQ(second.wait_for(50ms), std::future_status::timeout);
  first.reset();
  EXPECT_NO_THROW(second.get());
}

TEST_F(QmpTest, FullQueueIsATimeoutNotADeadQemu) {
  std::promise<void> over;
  FakeQmp server(socket(), [&](FakeClient&) { over.get_future().wait(); });
  // The one that is served, and as many as the queue takes.
  std::vector<system::UnixStream> waiting;
  for (int i = 0; i < 10; ++i) {
    try {
      waiting.push_back(system::UnixStream::connect(socket(), 20ms));
    } catch (const VmmTimeout&) {
      break;
    }
  }
  ASSERT_LT(waiting.size(), 10U);
  EXPECT_THROW(Qmp::connect(socket(), 150ms, cancel_), VmmTimeout);
  over.set_value();
}

TEST_F(QmpTest, CancelEndsAWaitAtOnce) {
  std::promise<void> over;
  FakeQmp server(socket(), [&](FakeClient&) { over.get_future().wait(); });
  std::thread canceller([&] { cancel_.request(); });
  const auto before = std::chrono::steady_clock::now();
  EXPECT_THROW(Qmp::connect(socket(), 60s, cancel_), Cancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 30s);
  canceller.join();
  over.set_value();
}

TEST_F(QmpTest, LastCommandMayCloseInsteadOfAnsweringButNotRefuse) {
  FakeQmp server(
      socket(),
      [&, n = 0](FakeClient& client) mutable {
        client.greet();
        client.hear();
        if (n++ == 1) client.say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n");
      },
      2);
  EXPECT_NO_THROW(Qmp::connect(socket(), 20s, cancel_).execute_last("quit"));
  EXPECT_THROW(Qmp::connect(socket(), 20s, cancel_).execute_last("quit"), VmmError);
}

}  // namespace
}  // namespace cocoon::vmm
