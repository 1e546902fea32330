#pragma once
// Where ledger entries go. A node commits entries to its outbox first and delivers them from there, so a recorder that
// fails loses nothing: the entry is tried again at the next drain.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/metering/entry.h"
#include "cocoon/metering/ledger_file.h"

namespace cocoon::metering {

class Recorder {
 public:
  Recorder() = default;
  virtual ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Takes one entry. An exception means "not taken": a node keeps the entry and offers it again, in order.
  // Threads  may be called concurrently when used alone; a node calls it from one thread at a time, in seq order.
  virtual void emit(const Entry& entry) = 0;

  // The file this recorder appends to, if it is one: a node then appends whole batches of lines itself.
  virtual LedgerFile* file() { return nullptr; }

  // True if emit runs code of the user's: no thread waits for a delivery that another one is making.
  [[nodiscard]] virtual bool calls_out() const { return false; }
};

// Appends lines to a file.
// Durable  emit() returns once the line is in the kernel; flush() once it is on the disk.
// Threads  any. Other processes may append to the same file: every line is one write at its end.
// Errors   emit() alone never throws for I/O: it logs one warning, keeps the line in memory and writes it before the
//          next one, or at flush() or close(), which throw LedgerError if they cannot. InvalidArgument: no valid entry.
class FileRecorder final : public Recorder {
 public:
  explicit FileRecorder(std::filesystem::path path);
  ~FileRecorder() override;

  void emit(const Entry& entry) override;
  // Another open of the same path than emit()'s, so that a node, which holds the ledger's lock around it, and a caller
  // of emit() or flush() share nothing in memory.
  LedgerFile* file() override { return &node_file_; }
  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  void flush();
  void close();

 private:
  void open_locked();
  void write_locked(std::string_view line, std::uint64_t seq);
  void write_kept_locked();

  LedgerFile node_file_;
  std::mutex mutex_;
  // Below: under mutex_.
  LedgerFile file_;
  std::string kept_;  // lines not written yet
  std::uint64_t kept_lines_ = 0;
  bool opened_ = false;  // file_ is open, and stood behind a '\n' when it was opened
  bool warned_ = false;
  std::int64_t checked_ns_ = 0;  // when file_ was last compared with what the path names
};

// Keeps entries in memory, for tests.
class CaptureRecorder final : public Recorder {
 public:
  void emit(const Entry& entry) override;
  [[nodiscard]] std::vector<Entry> entries() const;  // a copy
  void reset();

 private:
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Metering is off.
class NopRecorder final : public Recorder {
 public:
  void emit(const Entry& entry) override;
};

}  // namespace cocoon::metering
