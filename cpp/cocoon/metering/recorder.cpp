#include "cocoon/metering/recorder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <utility>

#include "cocoon/error.h"
#include "cocoon/metering/log.h"
#include "cocoon/metering/owned_fd.h"

namespace cocoon::metering {
namespace {

constexpr std::int64_t kCheckEveryNs = 1'000'000'000;

// A few nanoseconds, and exact to a few milliseconds: it only says when to look at the path again.
std::int64_t coarse_now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// Whether the file's last line lacks its '\n'. What cannot be read is taken for whole: the append will say what is
// wrong.
bool has_torn_end(const std::filesystem::path& path) {
  const OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  for (off_t seen = 0;;) {
    struct stat status{};
    char last = '\n';
    if (::fstat(fd.value, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0 ||
        ::pread(fd.value, &last, 1, status.st_size - 1) != 1 || last == '\n') {
      return false;
    }
    if (status.st_size == seen) {
      return true;
    }
    seen = status.st_size;
    // Somebody may be writing it at this moment, and a write over a page's end is seen in pieces. This question waits
    // until that write is done; then the file is longer.
    ::lseek(fd.value, 0, SEEK_HOLE);
  }
}

}  // namespace

Recorder::~Recorder() = default;

FileRecorder::FileRecorder(std::filesystem::path path) : node_file_(path), file_(std::move(path)) {}

FileRecorder::~FileRecorder() {
  try {
    close();
  } catch (const std::exception& error) {
    logger()->error("{} ledger entries are lost with their recorder: {}", kept_lines_, error.what());
  }
}

// Opens the file, and once a second looks whether it is still the one that the path names.
void FileRecorder::open_locked() {
  const std::int64_t now = coarse_now_ns();
  if (opened_ && now - checked_ns_ < kCheckEveryNs) {
    return;
  }
  opened_ = false;
  const bool changed = file_.refresh();
  if (changed && !file_.grew() && has_torn_end(file_.path())) {
    // Ended, not cut: without the ledger's lock nobody knows whether its writer still lives. A reader reports the line.
    file_.append("\n", 0);
  }
  opened_ = true;
  checked_ns_ = now;
}

void FileRecorder::write_locked(std::string_view line, std::uint64_t seq) {
  open_locked();
  opened_ = false;  // after an error the file is closed, or nothing is known of its end
  file_.append(line, seq);
  opened_ = true;
}

void FileRecorder::write_kept_locked() {
  if (kept_.empty()) {
    return;
  }
  write_locked(kept_, 0);
  logger()->info("{} ledger entries that were kept are in {} now", kept_lines_, file_.path().string());
  kept_.clear();
  kept_.shrink_to_fit();
  kept_lines_ = 0;
  warned_ = false;
}

void FileRecorder::emit(const Entry& entry) {
  thread_local std::string line;
  line.clear();
  append_json(entry, line);
  line += '\n';
  const std::lock_guard lock(mutex_);
  try {
    write_kept_locked();
    write_locked(line, entry.seq.value_or(0));
  } catch (const LedgerError& error) {
    kept_ += line;
    ++kept_lines_;
    if (!std::exchange(warned_, true)) {
      logger()->warn("ledger entries are kept in memory until they can be written: {}", error.what());
    }
  }
}

void FileRecorder::flush() {
  const std::lock_guard lock(mutex_);
  write_kept_locked();
  open_locked();
  opened_ = false;
  file_.sync();
  opened_ = true;
}

void FileRecorder::close() {
  const std::lock_guard lock(mutex_);
  write_kept_locked();
  file_.close();
  opened_ = false;
}

void CaptureRecorder::emit(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  entries_.push_back(entry);
}

std::vector<Entry> CaptureRecorder::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

void CaptureRecorder::reset() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

void NopRecorder::emit(const Entry& /*entry*/) {}

}  // namespace cocoon::metering
