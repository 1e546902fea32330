#pragma once
// Files and folders: whole small files, atomic replacement, private folders, sparse copies, file locks.
// Errors   StoreError naming the path and the system's own words, unless said otherwise. All opens are O_CLOEXEC.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/system/cancel.h"
#include "cocoon/system/fd.h"

namespace cocoon::system {

using Path = std::filesystem::path;

// The file's text, nullopt if there is no such file. Longer than `max_bytes`: StoreError.
std::optional<std::string> find_text(const Path& path, std::size_t max_bytes);

// The last `max_bytes` of a log as whole lines, at most `max_lines`, the last one without its '\n'; "" if it does not
// exist. The last line may be unfinished, and a line longer than all of `max_bytes` is given by its end.
std::string tail_text(const Path& path, std::size_t max_lines, std::size_t max_bytes = 16384);

// Durable  the file holds the old or the new text, whole, whatever happens: temp file, fdatasync, rename, folder
// synced.
void write_text_atomic(const Path& path, std::string_view text, unsigned mode = 0600);

// fsync of a folder, so that a name made or removed in it stays.
void sync_dir(const Path& path);

// fsync of a file, in pieces of what is not on the disk yet. Blocks; asks `cancel` between pieces.
void sync_file(const Path& path, Cancel& cancel);
void sync_file(int fd, const Path& shown, Cancel& cancel);

// Has the kernel begin to write a file to the disk while more of it is made: whoever syncs it later waits less.
class Writeback {
 public:
  explicit Writeback(int fd) : fd_(fd) {}
  // These were written just now.
  void wrote(std::int64_t offset, std::int64_t length);

 private:
  int fd_;
  std::int64_t begin_ = 0;  // what the kernel was not told of yet
  std::int64_t end_ = 0;
};

// mkdir -p; folders it makes are 0700. An existing last component must be a folder.
void make_private_dirs(const Path& path);

// Names in a folder, sorted.
std::vector<std::string> list_dir(const Path& path);

// rm -rf without following links; absent is fine.
void remove_tree(const Path& path);

// Unlinks a file or socket; absent is fine.
void remove_file(const Path& path);
// Unlinks those of the names that are in the folder. Costs one look at it, however many names there could be; a folder
// that is not there is fine.
void remove_files(const Path& folder, const std::vector<std::string>& names);

// A new file (0600) of `size` bytes that holds nothing; an existing file is an error.
// Durable  the file is on the disk; the name is once its folder was synced.
void make_sparse_file(const Path& path, std::int64_t size_bytes);

enum class Sync { kNow, kLater };  // kLater: by who asked, with sync_file()

// A new file (0600) with the bytes of another: reflink where the file system can, else its data, holes kept.
// Durable  the bytes are on the disk, unless `sync` says otherwise; the name is once its folder was synced.
// Blocks   for the whole copy; asks `cancel` between pieces. On any error the new file is gone; an existing one stays.
void copy_file(const Path& from, const Path& to, Cancel& cancel, Sync sync = Sync::kNow);

// Holds an exclusive flock on a file until destroyed. The kernel queues waiters of all threads and processes alike,
// since every lock has its own open file. Destroying closes our descriptor and does not unlock: a child that inherited
// it goes on holding the lock. (So does, for the fraction of a millisecond from fork to exec, any child another thread
// is spawning at that moment.) A lock file that is replaced while we wait is opened anew: the lock got is the path's.
// Between threads it orders memory as a mutex does.
class FileLock {
 public:
  // Makes the file (0600) if absent. Blocks until it has the lock.
  static FileLock acquire(const Path& path);
  // The same in slices, for locks that are held for long.
  static FileLock acquire(const Path& path, Cancel& cancel);
  // nullopt if somebody else holds it. is_held() of others does not count: it is waited out, up to a second.
  static std::optional<FileLock> try_acquire(const Path& path);
  // The same for a file that somebody else makes: nullopt also if there is none.
  static std::optional<FileLock> try_acquire_existing(const Path& path);
  // Shared with others who share it, while acquire() and exclude() of others wait and fail. In slices.
  static FileLock share(const Path& path, Cancel& cancel);
  // nullopt if somebody holds it exclusively.
  static std::optional<FileLock> try_share(const Path& path);
  // try_acquire() for locks that are shared: nullopt at once whoever holds it in whatever way.
  static std::optional<FileLock> try_exclude(const Path& path);
  enum class State { kAbsent, kFree, kHeld };
  // Whether somebody holds it now; an absent file is not made. Asks with a shared lock, held for microseconds:
  // acquire() waits that long for us, try_acquire() too.
  static State look(const Path& path);
  static bool is_held(const Path& path) { return look(path) == State::kHeld; }

  ~FileLock() { release(); }
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&& other) noexcept {
    if (this != &other) {
      release();
      fd_ = std::move(other.fd_);
    }
    return *this;
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Lets it go for everybody who shares our open file: children forked meanwhile cannot prolong it.
  void unlock();

 private:
  explicit FileLock(Fd fd);
  static FileLock wait_for(const Path& path, int operation, Cancel& cancel);
  static std::optional<FileLock> try_now(const Path& path, int operation);
  static std::optional<FileLock> try_patiently(const Path& path, int create_flag);
  void release();
  Fd fd_;
};

}  // namespace cocoon::system
