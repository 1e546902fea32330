#pragma once
// What the benchmarks share: a folder of their own, clocks, medians, and rows that compare a figure with its baseline.

#include <stdlib.h>
#include <sys/vfs.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fmt/format.h>

namespace cocoon::bench {

using Clock = std::chrono::steady_clock;

inline double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// The value below which `share` of the samples lie.
inline double quantile(std::vector<double> samples, double share) {
  if (samples.empty()) return 0;
  const auto at = std::min(samples.size() - 1, static_cast<std::size_t>(share * static_cast<double>(samples.size())));
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(at), samples.end());
  return samples[at];
}

inline double median(const std::vector<double>& samples) { return quantile(samples, 0.5); }

enum class Limit : std::uint8_t { kAtMost, kAtLeast };

struct Row {
  std::string what;
  std::string unit;
  double value = 0;
  double baseline = 0;
  std::string against;  // what the baseline is
  double limit = 0;     // of value / baseline; 0: none
  Limit sense = Limit::kAtMost;

  [[nodiscard]] double ratio() const { return value / baseline; }
  [[nodiscard]] bool holds() const {
    return limit == 0 || (sense == Limit::kAtMost ? ratio() <= limit : ratio() >= limit);
  }
};

// JSON lines on stdout, as bench/run reads them; a table on stderr.
inline void report(const std::vector<Row>& rows) {
  fmt::print(stderr, "\n{:<40} {:>12} {:>34} {:>7}  {}\n", "", "measured", "against", "ratio", "limit");
  for (const auto& row : rows) {
    const bool at_least = row.sense == Limit::kAtLeast;
    const auto value = fmt::format("{:.1f} {}", row.value, row.unit);
    const auto baseline = fmt::format("{:.1f} {} {}", row.baseline, row.unit, row.against);
    const auto limit = row.limit == 0 ? "" : fmt::format("{} {:g}", at_least ? ">=" : "<=", row.limit);
    fmt::print(stderr, "{:<40} {:>12} {:>34} {:>7.2f}  {}{}\n", row.what, value, baseline, row.ratio(), limit,
               row.holds() ? "" : "  MISSED");
    fmt::print(R"({{"what":"{}","value":"{}","baseline":"{}","ratio":{:.4f},"limit":{},"at_least":{}}})"
               "\n",
               row.what, value, baseline, row.ratio(), row.limit == 0 ? "null" : fmt::format("{:g}", row.limit),
               at_least);
  }
}

// A folder that goes with its owner.
class Folder {
 public:
  enum Where { kDisk, kAny };
  explicit Folder(const std::filesystem::path& base, Where where = kDisk) {
    std::string pattern = (base / "cocoon-bench-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a folder in " + base.string());
    path_ = pattern;
    constexpr decltype(statfs::f_type) kTmpfs = 0x01021994;
    struct statfs status{};
    if (where == kDisk && ::statfs(path_.c_str(), &status) == 0 && status.f_type == kTmpfs)
      fmt::print(stderr, "note: {} is in memory, where syncing costs nothing: choose a disk with --dir\n",
                 base.string());
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The value of `--name VALUE`.
inline std::string argument(int count, char** values, std::string_view name, std::string fallback) {
  for (int i = 1; i + 1 < count; ++i) {
    if (values[i] == name) return values[i + 1];
  }
  return fallback;
}

}  // namespace cocoon::bench
