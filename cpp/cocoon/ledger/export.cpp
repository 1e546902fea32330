#include "cocoon/ledger/export.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/ledger/export_rows.h"
#include "cocoon/ledger/once.h"
#include "cocoon/metering/text.h"

namespace cocoon::ledger {
namespace {

using metering::Entry;
using metering::EntryView;

constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::uint64_t kMostBuckets = 10'000'000;  // of one interval: a hostile line may be centuries long
constexpr std::int64_t kMinuteNs = 60'000'000'000;
constexpr std::int64_t kDayNs = 86'400'000'000'000;
constexpr std::string_view kNodeIdCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~:-";

constexpr std::array<std::pair<std::string_view, ExportFormat>, 4> kFormats = {{
    {"jsonl", ExportFormat::kJsonl},
    {"csv", ExportFormat::kCsv},
    {"cloudevents", ExportFormat::kCloudEvents},
    {"focus", ExportFormat::kFocus},
}};

bool names_node(ExportFormat format) {
  switch (format) {
    case ExportFormat::kJsonl:
    case ExportFormat::kCsv:
      return false;
    case ExportFormat::kCloudEvents:
    case ExportFormat::kFocus:
      return true;
  }
  return true;
}

void check_query(const Files& files, const ExportQuery& query) {
  if (query.since_seq == 0) {
    throw InvalidArgument("since_seq: 0 is no seq; allowed is 1 or more");
  }
  if (query.until_seq && *query.until_seq < query.since_seq) {
    throw InvalidArgument(fmt::format("until_seq: {} is before since_seq, {}", *query.until_seq, query.since_seq));
  }
  if (query.every_ns < kMinuteNs || query.every_ns % kMinuteNs != 0 || kDayNs % query.every_ns != 0) {
    throw InvalidArgument(
        fmt::format("every: {} ns; allowed are whole minutes of which a day is a multiple", query.every_ns));
  }
  if (!names_node(query.format)) {
    return;
  }
  if (query.node_id.empty() || query.node_id.find_first_not_of(kNodeIdCharacters) != std::string::npos) {
    throw InvalidArgument(
        fmt::format("node_id: {}; allowed are letters, digits and . _ ~ : -", metering::quote(query.node_id)));
  }
  std::set<std::filesystem::path> folders;
  for (const auto& file : files) {
    folders.insert(file.parent_path());
  }
  if (folders.size() > 1) {
    throw InvalidArgument(
        fmt::format("export: the files lie in {} folders, so they are several nodes'; allowed is one", folders.size()));
  }
}

// Two ledgers of one folder that both have numbers: `<node>/<seq>` would name two things. The Go engine's have none,
// and keep one node's VMs and snapshots apart.
class OneNode {
 public:
  OneNode(const Files& files, const ExportQuery& query) : files_(files), matters_(names_node(query.format)) {}

  void check(const EntryView& entry, std::size_t file) {
    if (!matters_ || !entry.seq || file == file_) {
      return;
    }
    std::string stream = stream_of(files_[file]);
    if (file_ && stream != stream_) {
      throw InvalidArgument(
          fmt::format("export: {} and {} both have numbered entries, so they are several nodes'; "
                      "allowed is one",
                      files_[*file_].string(), files_[file].string()));
    }
    stream_ = std::move(stream);
    file_ = file;
  }

 private:
  const Files& files_;
  bool matters_;
  std::optional<std::size_t> file_;  // of the last numbered entry
  std::string stream_;
};

// Rows on their way to the sink, and how far the reading is.
class Output {
 public:
  Output(const Files& files, const Sink& sink, const ExportProgress& progress) : sink_(sink), progress_(progress) {
    text_.reserve(kBlock + kBlock / 8);
    for (const auto& file : files) {
      std::error_code ignored;
      const auto size = std::filesystem::file_size(file, ignored);
      before_.emplace(file, total_);
      total_ += ignored ? 0 : size;
    }
  }

  std::string& text() { return text_; }

  void row_done() {
    ++rows_;
    if (text_.size() >= kBlock) {
      flush();
    }
  }

  void read_to(const std::filesystem::path& file, std::uint64_t offset) {
    constexpr std::uint64_t kOften = 4096;
    if (progress_ && ++entries_ % kOften == 0) {
      // A compressed file is longer than its size.
      progress_(std::min(before_[file] + offset, total_), total_);
    }
  }

  std::uint64_t finish() {
    flush();
    if (progress_) {
      progress_(total_, total_);
    }
    return rows_;
  }

 private:
  void flush() {
    if (!text_.empty()) {
      sink_(text_);
      text_.clear();
    }
  }

  const Sink& sink_;
  const ExportProgress& progress_;
  std::string text_;
  std::uint64_t rows_ = 0;
  std::uint64_t entries_ = 0;
  std::map<std::filesystem::path, std::uint64_t> before_;  // bytes of the files before it
  std::uint64_t total_ = 0;
};

class Range {
 public:
  explicit Range(const ExportQuery& query) : query_(query) {}

  [[nodiscard]] bool before(const EntryView& entry) const { return entry.seq.value_or(1) < query_.since_seq; }
  [[nodiscard]] bool behind(const EntryView& entry) const {
    return entry.seq && query_.until_seq && *entry.seq > *query_.until_seq;
  }

 private:
  const ExportQuery& query_;
};

class EntryExport {
 public:
  EntryExport(const ExportQuery& query, Output& output) : query_(query), output_(output) {}

  void begin() {
    if (query_.format == ExportFormat::kCsv) {
      output_.text() += kCsvHeading;
    }
  }

  void add(const Entry& entry) {
    std::string& text = output_.text();
    switch (query_.format) {
      case ExportFormat::kJsonl:
        metering::append_json(entry, text);
        text += '\n';
        break;
      case ExportFormat::kCsv:
        append_csv_row(entry, text);
        break;
      case ExportFormat::kCloudEvents:
        unnumbered_ += entry.seq ? 0 : 1;
        append_cloud_event(entry, query_.node_id, unnumbered_, text);
        break;
      case ExportFormat::kFocus:
        return;
    }
    output_.row_done();
  }

 private:
  const ExportQuery& query_;
  Output& output_;
  std::uint64_t unnumbered_ = 0;
};

class FocusExport {
 public:
  FocusExport(const ExportQuery& query, Output& output)
      : query_(query),
        output_(output),
        pairer_(CrashEnd::kEnded, [this](const IntervalView& interval) { take(interval); }) {}

  void begin() { output_.text() += kFocusHeading; }

  void add(const Batch::Item& item, bool before_range) {
    const EntryView& entry = item.entry;
    in_range_ = !before_range;
    latest_ns_ = std::max(latest_ns_.value_or(entry.emitted_at_ns), entry.emitted_at_ns);
    if (before_range) {
      told_ns_ = latest_ns_;
    }
    pairer_.add(entry, item.hash);
  }

  void finish() {
    in_range_ = true;
    pairer_.finish(latest_ns_.value_or(0));
  }

 private:
  void take(const IntervalView& interval) {
    if (!in_range_) {
      return;
    }
    const bool told = told_ns_ && interval.start_seq.value_or(1) < query_.since_seq;
    const FocusInterval row(interval, query_.node_id);
    std::int64_t bucket = bucket_begin(told ? std::min(row.end_ns(), *told_ns_) : row.begin_ns());
    bucket = std::max(bucket, bucket_begin(row.begin_ns()));
    const std::int64_t last = std::max(told ? std::max(row.end_ns(), *told_ns_) : row.end_ns(), bucket + 1);
    if ((static_cast<std::uint64_t>(last) - static_cast<std::uint64_t>(bucket)) /
            static_cast<std::uint64_t>(query_.every_ns) >
        kMostBuckets) {
      throw InvalidArgument(
          fmt::format("every: {} ns makes more than {} rows of one interval; allowed is a longer bucket",
                      query_.every_ns, kMostBuckets));
    }
    for (;;) {
      std::int64_t next = 0;
      if (__builtin_add_overflow(bucket, query_.every_ns, &next)) {
        return;  // a bucket that ends after 2262
      }
      row.append(bucket, next, output_.text());
      output_.row_done();
      if (next >= last) {
        return;
      }
      bucket = next;
    }
  }

  // The begin of the bucket that `at` lies in; the first there is, for times before it.
  [[nodiscard]] std::int64_t bucket_begin(std::int64_t at) const {
    const std::int64_t rest = at % query_.every_ns;
    std::int64_t begin = 0;
    return __builtin_sub_overflow(at, rest < 0 ? rest + query_.every_ns : rest, &begin) ? at - rest : begin;
  }

  const ExportQuery& query_;
  Output& output_;
  Pairer pairer_;
  bool in_range_ = false;
  std::optional<std::int64_t> latest_ns_;  // the latest time of an entry so far
  std::optional<std::int64_t> told_ns_;    // up to here open intervals were counted by the range before
};

}  // namespace

ExportFormat parse_export_format(std::string_view text) {
  for (const auto& [name, format] : kFormats) {
    if (name == text) {
      return format;
    }
  }
  throw InvalidArgument(
      fmt::format("format: {} is not one of csv, parquet, jsonl, focus, cloudevents", metering::quote(text)));
}

std::uint64_t export_ledger(const Files& files, const ExportQuery& query, const Sink& sink,
                            const ExportProgress& progress, const Check& check) {
  check_query(files, query);
  Output output(files, sink, progress);
  const Range range(query);
  OneNode node(files, query);
  if (query.format == ExportFormat::kFocus) {
    FocusExport rows(query, output);
    rows.begin();
    const auto visit = [&](const Batch& batch, std::size_t at) {
      const Batch::Item& item = batch.items[at];
      output.read_to(files[batch.block.file], batch.block.offset + item.offset);
      node.check(item.entry, batch.block.file);
      if (!range.behind(item.entry)) {
        rows.add(item, range.before(item.entry));
      }
    };
    for_each_once(files, visit, check);
    rows.finish();
  } else {
    EntryExport rows(query, output);
    rows.begin();
    const auto visit = [&](const Batch& batch, std::size_t at) {
      const Batch::Item& item = batch.items[at];
      output.read_to(files[batch.block.file], batch.block.offset + item.offset);
      node.check(item.entry, batch.block.file);
      if (!range.behind(item.entry) && !range.before(item.entry)) {
        rows.add(to_entry(item.entry));
      }
    };
    for_each_once(files, visit, check);
  }
  return output.finish();
}

}  // namespace cocoon::ledger
