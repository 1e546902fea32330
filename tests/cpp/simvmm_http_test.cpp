// The simulator's HTTP parser: what it makes of good bytes however they are cut, and that no bytes break it.

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "simvmm/cloud_hypervisor_config.h"
#include "simvmm/faults.h"
#include "simvmm/firecracker_schema.h"
#include "simvmm/http.h"
#include "simvmm/json.h"

namespace cocoon::simvmm {
namespace {

constexpr std::size_t kMostBody = 51200;

std::string shown(const std::vector<Event>& events) {
  std::string text;
  for (const Event& event : events) {
    if (const auto* request = std::get_if<Request>(&event)) {
      text += fmt::format("[{} {} {}]", name_of(request->method), request->path, request->body);
    } else if (const auto* refusal = std::get_if<Refusal>(&event)) {
      text += fmt::format("[refused {}]", refusal->text.substr(9, 3));
    } else {
      text += "[continue]";
    }
  }
  return text;
}

TEST(SimvmmHttp, RequestsSurviveEveryCutIntoTwoReads) {
  const std::string bytes =
      "PUT /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.0\r\nX: y\r\n\r\n"
      "PATCH http://localhost/c HTTP/1.1\r\ncontent-length:  2\r\nExpect: 100-continue\r\n\r\n{}";
  const std::string whole = shown(HttpParser(kMostBody).feed(bytes));
  EXPECT_EQ(whole, "[PUT /a hello][GET /b ][continue][PATCH /c {}]");
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    HttpParser parser(kMostBody);
    std::vector<Event> events = parser.feed(std::string_view(bytes).substr(0, cut));
    for (Event& event : parser.feed(std::string_view(bytes).substr(cut))) events.push_back(std::move(event));
    EXPECT_EQ(shown(events), whole) << "cut at " << cut;
  }
}

TEST(SimvmmHttp, ABadHeaderLeavesTheConnectionAmongHeaders) {
  HttpParser parser(kMostBody);
  EXPECT_EQ(shown(parser.feed("GET / HTTP/1.1\r\nbad\r\n\r\n")), "[refused 400]");
  EXPECT_EQ(shown(parser.feed("GET / HTTP/1.1\r\n\r\n")), "[refused 400]");
}

TEST(SimvmmHttp, ABadRequestLineLeavesItUsable) {
  HttpParser parser(kMostBody);
  EXPECT_EQ(shown(parser.feed("POST / HTTP/1.1\r\n\r\n")), "[refused 400]");
  EXPECT_EQ(shown(parser.feed("GET / HTTP/1.1\r\n\r\n")), "[GET / ]");
}

TEST(SimvmmHttp, AnErrorDropsTheRequestsBeforeItInTheSameRead) {
  EXPECT_EQ(shown(HttpParser(kMostBody).feed("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n")), "[refused 400]");
}

TEST(SimvmmHttp, ABodyOverTheLimitIsRefusedBeforeItIsSent) {
  EXPECT_EQ(shown(HttpParser(10).feed("PUT / HTTP/1.1\r\nContent-Length: 11\r\n\r\n")), "[refused 400]");
  EXPECT_EQ(shown(HttpParser(10).feed("PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789")), "[PUT / 0123456789]");
}

// Pieces of requests, whole and mangled, in random order and cuts. What comes out is bounded by what went in.
TEST(SimvmmHttp, NoBytesBreakIt) {
  constexpr std::string_view kPieces[] = {"GET ",
                                          "PUT ",
                                          "/",
                                          "/version",
                                          " HTTP/1.1",
                                          " HTTP/1.0",
                                          "\r\n",
                                          "\r\n\r\n",
                                          "\r",
                                          "\n",
                                          ":",
                                          ",",
                                          "Expect: 100-continue\r\n",
                                          "Content-Length: 3\r\n",
                                          "Content-Length: 4294967295\r\n",
                                          "{}",
                                          "\xff",
                                          "\xe2\x82",
                                          "Accept-Encoding: *;q=0\r\n",
                                          "http://",
                                          " ",
                                          "Content-Length: 0\r\n"};
  const std::uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    HttpParser parser(kMostBody);
    std::size_t fed = 0;
    std::size_t events = 0;
    for (int chunk = 0; chunk < 8; ++chunk) {
      std::string bytes;
      for (int i = static_cast<int>(random() % 24); i > 0; --i) {
        if (random() % 8 == 0) {
          bytes += static_cast<char>(random());
        } else if (random() % 64 == 0) {
          bytes.append(random() % 2048, 'a');
        } else {
          bytes += kPieces[random() % std::size(kPieces)];
        }
      }
      fed += bytes.size();
      for (const Event& event : parser.feed(bytes)) {
        ++events;
        if (const auto* request = std::get_if<Request>(&event)) {
          ASSERT_LE(request->body.size(), kMostBody);
        }
      }
    }
    ASSERT_LE(events, fed);
  }
}

TEST(SimvmmJson, NoTextBreaksIt) {
  constexpr std::string_view kPieces[] = {"{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "\"",
                                          "\\",
                                          "null",
                                          "true",
                                          "1",
                                          "-1",
                                          "1e999",
                                          "18446744073709551616",
                                          R"("cpus":)",
                                          R"("memory":{"size":)",
                                          R"("disks":[{)",
                                          R"("path":"a")",
                                          "\xff",
                                          " ",
                                          R"("vcpu_count":)"};
  const std::uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  int taken = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = round % 2 == 0 ? "{" : "";
    for (int i = static_cast<int>(random() % 12); i > 0; --i) text += kPieces[random() % std::size(kPieces)];
    for (const Schema* schema : {&cloud_hypervisor::kVmConfig, &firecracker::kMachineConfig}) {
      try {
        const Json value = parse_object(text, *schema);
        ++taken;
        if (schema == &cloud_hypervisor::kVmConfig) cloud_hypervisor::validate(cloud_hypervisor::complete(value));
      } catch (const JsonError&) {
      } catch (const cloud_hypervisor::Failure&) {
      }
    }
  }
  EXPECT_GT(taken, 0);
}

TEST(SimvmmJson, DepthIsLimited) {
  EXPECT_THROW(parse_json(std::string(200, '[')), JsonError);
  EXPECT_THROW(parse_json(std::string(100000, '[') + std::string(100000, ']')), JsonError);
  EXPECT_NO_THROW(parse_json(std::string(100, '[') + std::string(100, ']')));
}

TEST(SimvmmPlan, MistakesAreNamed) {
  struct BadPlan {
    std::string_view text;
    std::string_view why;
  };
  for (const auto& [text, why] : std::initializer_list<BadPlan>{
           {"", "expected value"},
           {"[]", "expected struct plan"},
           {R"({"fault": []})", "unknown field `fault`"},
           {R"({"faults": {}})", "faults: a list"},
           {R"({"faults": [1]})", "faults[0]: a fault is an object"},
           {R"({"faults": [{"do": "dye"}]})", "do: \"dye\": there are die, hang"},
           {R"({"faults": [{"do": "die", "o": "PUT /x"}]})", "unknown field `o`"},
           {R"({"faults": [{"do": "die", "on": "/x"}]})", "\"METHOD PATH\""},
           {R"({"faults": [{"do": "die", "on": "POST /x"}]})", "\"METHOD PATH\""},
           {R"({"faults": [{"do": "die", "on": "PUT /x", "after_ms": 1}]})", "exclude each other"},
           {R"({"faults": [{"do": "die", "call": 2}]})", "need on"},
           {R"({"faults": [{"do": "die", "on": "*", "call": 0}]})", "the first is 1"},
           {R"({"faults": [{"do": "die", "exit": 1, "signal": "KILL"}]})", "exclude each other"},
           {R"({"faults": [{"do": "die", "exit": 256}]})", "expected u8"},
           {R"({"faults": [{"do": "die", "signal": "FOO"}]})", "unknown variant `FOO`"},
           {R"({"faults": [{"do": "answer"}]})", "missing field `on`"},
           {R"({"faults": [{"do": "answer", "on": "*", "status": 99}]})", "200 to 599"},
           {R"({"faults": [{"do": "close", "on": "*", "bytes": 3}]})", "\"effect\": true"},
           {R"({"faults": [{"do": "slow", "on": "*"}]})", "missing field `time_ms`"},
           {R"({"faults": [{"do": "power-off"}]})", "missing field `after_ms`"},
           {R"({"faults": [{"do": "no-socket", "on": "*"}]})", "unknown field `on`"},
           {R"({"guest": {"tick_ms": 0}})", "at least 1"},
           {R"({"guest": {"ticks": 1}})", "unknown field `ticks`"}}) {
    SCOPED_TRACE(text);
    try {
      parse_plan(text);
      ADD_FAILURE() << "taken";
    } catch (const PlanError& error) {
      EXPECT_NE(error.message.find(why), std::string::npos) << error.message;
    }
  }
}

TEST(SimvmmFaults, TheNthCallIsHitAndThenTheNext) {
  Faults faults(parse_plan(R"({"faults": [{"do": "hang", "on": "PUT vm.boot", "call": 2},
                                          {"do": "answer", "on": "*", "call": 3, "repeat": true}]})"));
  const Request boot{.method = Method::kPut, .path = "/api/v1/vm.boot", .body = {}};
  const Request ping{.method = Method::kGet, .path = "/api/v1/vmm.ping", .body = {}};
  EXPECT_EQ(faults.on_request(boot), nullptr);
  EXPECT_EQ(faults.on_request(boot)->name, "hang");
  EXPECT_EQ(faults.on_request(ping)->name, "answer");
  EXPECT_EQ(faults.on_request(boot)->name, "answer");
}

}  // namespace
}  // namespace cocoon::simvmm
