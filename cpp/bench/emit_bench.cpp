// FileRecorder::emit against write(2) of the same bytes: what rendering and the recorder's care cost.

#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "cocoon/metering/entry.h"
#include "cocoon/metering/recorder.h"

#include "bench_support.h"

namespace {

using namespace cocoon;
using bench::Clock;

metering::Entry sample_entry() {
  metering::Entry entry;
  entry.kind = metering::Kind::kVmComputeStart;
  entry.vm_id = "k3v7q2m4x6a5b7c2d3e4f5g6hi";
  entry.reason = metering::Reason::kBoot;
  entry.hypervisor = "cloud-hypervisor";
  entry.shape = {.cpu = 4, .mem_bytes = std::int64_t{8} << 30, .storage_bytes = 0};
  entry.emitted_at_ns = 1'790'000'000'123'456'789;
  entry.seq = 1'000'000;
  entry.interval = 1'000'000;
  entry.boot_id = "0badcafe";
  entry.uptime_ns = 123'456'789'012'345;
  return entry;
}

}  // namespace

int main(int count, char** values) {
  const bench::Folder folder(bench::argument(count, values, "--dir", std::filesystem::temp_directory_path()));
  constexpr int kRounds = 41;
  constexpr int kEach = 5000;

  auto entry = sample_entry();
  const auto line = metering::to_json(entry) + "\n";
  metering::FileRecorder recorder(folder / "emitted.jsonl");
  const int fd = ::open((folder / "written.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return 1;

  std::vector<double> written;
  std::vector<double> emitted;
  for (int round = 0; round < kRounds; ++round) {
    auto start = Clock::now();
    for (int i = 0; i < kEach; ++i) {
      if (::write(fd, line.data(), line.size()) < 0) return 1;
    }
    written.push_back(bench::microseconds_since(start) * 1000 / kEach);

    start = Clock::now();
    for (int i = 0; i < kEach; ++i) {
      ++*entry.seq;
      entry.emitted_at_ns += 1'000'003;
      recorder.emit(entry);
    }
    emitted.push_back(bench::microseconds_since(start) * 1000 / kEach);
  }
  ::close(fd);
  recorder.close();
  bench::report({{.what = fmt::format("FileRecorder.emit, {} bytes", line.size()),
                  .unit = "ns",
                  .value = bench::median(emitted),
                  .baseline = bench::median(written),
                  .against = "write(2)",
                  .limit = 2.0}});
  return 0;
}
