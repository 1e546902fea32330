#include "cocoon/ledger/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/bytes.h"
#include "cocoon/ledger/id_table.h"
#include "cocoon/ledger/once.h"

namespace cocoon::ledger {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "cocoon usage checkpoint 3\n";
constexpr std::uint64_t kCompared = 4096;  // bytes at the beginning, and before where the reading ended

struct FileState {
  std::string path;
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t changed_ns = 0;
  std::uint64_t consumed = 0;     // whole lines up to here, decompressed
  std::uint64_t fingerprint = 0;  // of what kCompared says; 0 for a packed one
};

bool is_packed(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::array<char, 4> first{};
  in.read(first.data(), first.size());
  const std::string_view magic(first.data(), static_cast<std::size_t>(in.gcount()));
  return magic == "\x28\xB5\x2F\xFD" || magic.starts_with("\x1F\x8B");
}

std::uint64_t fingerprint(const fs::path& path, std::uint64_t consumed) {
  std::ifstream in(path, std::ios::binary);
  const std::uint64_t size = std::min(kCompared, consumed);
  std::string text(static_cast<std::size_t>(size * 2), '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  in.seekg(static_cast<std::streamoff>(consumed - size));
  in.read(text.data() + size, static_cast<std::streamsize>(size));
  return in ? hash_of(text) : 0;
}

// "" if it cannot be read.
std::string whole(const fs::path& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = in.tellg();
  if (!in || size <= 0) return {};
  std::string text(static_cast<std::size_t>(size), '\0');
  in.seekg(0);
  in.read(text.data(), size);
  return in ? text : std::string();
}

std::optional<FileState> look_at(const fs::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return FileState{.path = path.string(),
                   .device = status.st_dev,
                   .inode = status.st_ino,
                   .size = static_cast<std::uint64_t>(status.st_size),
                   .changed_ns = status.st_mtim.tv_sec * std::int64_t{1'000'000'000} + status.st_mtim.tv_nsec};
}

std::string question(const UsageQuery& query) {
  std::string out;
  put(out, static_cast<std::uint64_t>(query.by.size()));
  for (const std::string& part : query.by) put(out, std::string_view(part));
  put(out, query.since_ns);
  put(out, query.until_ns);
  put(out, query.every_ns);
  put(out, query.crash);
  return out;
}

// A pass that can be interrupted between two lines and go on from there.
class Reading {
 public:
  Reading(const UsageQuery& query, std::int64_t now_ns)
      : query_(query),
        usage_(query, now_ns),
        pairer_(query.crash, [this](const IntervalView& interval) { usage_.add(interval); }) {}
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  // False: it says nothing of this question and these files. Then this reading is not to be used.
  bool resume(const fs::path& checkpoint, const Files& files);
  void read(const Files& files, const Check& check);
  void leave(const fs::path& checkpoint) const;
  std::vector<UsageRow> finish() {
    pairer_.finish(usage_.until_ns());
    return usage_.rows();
  }

 private:
  [[nodiscard]] bool stands(const FileState& before, const fs::path& path, bool last);

  const UsageQuery& query_;
  Usage usage_;
  Once once_;
  Pairer pairer_;
  std::vector<FileState> done_;  // how far each file was read
  bool fresh_ = true;            // there is something new since the checkpoint
};

// The file is as it was, or, if it was the last one, longer.
bool Reading::stands(const FileState& before, const fs::path& path, bool last) {
  const auto now = look_at(path);
  if (!now || now->path != before.path || now->device != before.device || now->inode != before.inode) return false;
  if (now->size == before.size) return now->changed_ns == before.changed_ns;
  if (!last || before.fingerprint == 0 || now->size < before.consumed) return false;
  return fingerprint(path, before.consumed) == before.fingerprint;
}

bool Reading::resume(const fs::path& checkpoint, const Files& files) {
  const std::string text = whole(checkpoint);
  if (text.size() < sizeof(std::uint64_t)) return false;
  std::string_view in = text;
  std::string_view sum = in.substr(in.size() - sizeof(std::uint64_t));
  in.remove_suffix(sizeof(std::uint64_t));
  try {
    if (take<std::uint64_t>(sum) != hash_of(in) || take_bytes(in, kMagic.size()) != kMagic) return false;
    if (take_text(in) != question(query_)) return false;
    const auto count = take<std::uint64_t>(in);
    if (count > files.size()) return false;
    for (std::uint64_t i = 0; i < count; ++i) {
      FileState state;
      state.path = take_text(in);
      state.device = take<std::uint64_t>(in);
      state.inode = take<std::uint64_t>(in);
      state.size = take<std::uint64_t>(in);
      state.changed_ns = take<std::int64_t>(in);
      state.consumed = take<std::uint64_t>(in);
      state.fingerprint = take<std::uint64_t>(in);
      if (!stands(state, files[i], i + 1 == count)) return false;
      done_.push_back(std::move(state));
    }
    once_.load(in);
    pairer_.load(in);
    usage_.load(in);
  } catch (const LedgerError&) {
    return false;
  }
  return in.empty();
}

void Reading::read(const Files& files, const Check& check) {
  // The states before the bytes: what is appended meanwhile is read again, not passed over.
  std::vector<FileState> now;
  for (const fs::path& path : files) now.push_back(look_at(path).value_or(FileState{.path = path.string()}));
  std::size_t first = done_.empty() ? 0 : done_.size() - 1;
  std::uint64_t skip = done_.empty() ? 0 : done_.back().consumed;
  if (!done_.empty() && now[first].size == done_.back().size) {
    ++first;
    skip = 0;
    if (first == files.size()) {
      fresh_ = false;
      return;
    }
  }
  for (std::size_t i = first; i < now.size(); ++i) now[i].consumed = i == first ? skip : 0;
  for (std::size_t i = 0; i < first; ++i) now[i] = done_[i];
  const auto rest = std::make_shared<const Files>(files.begin() + static_cast<std::ptrdiff_t>(first), files.end());
  PassedOver passed;
  once_.set_files(*rest);
  const auto take = [&](const Batch& batch) {
    for (std::size_t i = 0; i < batch.items.size(); ++i) {
      const Batch::Item& item = batch.items[i];
      pairer_.prefetch(batch, i);
      if (once_.is_new(item.entry.seq, batch.block.file)) pairer_.add(item.entry, item.hash);
    }
    for (const Batch::Bad& bad : batch.bad) passed.add(bad_line(*rest, batch, bad));
    if (!batch.block.torn) now[first + batch.block.file].consumed = batch.block.end;
  };
  scan(rest, take, check, skip);
  passed.say();
  once_.say();
  for (std::size_t i = first; i < now.size(); ++i) {
    now[i].fingerprint = is_packed(files[i]) ? 0 : fingerprint(files[i], now[i].consumed);
    // Read beyond what was there when it was looked at: its state then is not what was read.
    if (now[i].fingerprint != 0 && now[i].consumed > now[i].size) now[i].size = 0;
  }
  done_ = std::move(now);
}

void Reading::leave(const fs::path& checkpoint) const {
  if (!fresh_) return;
  std::string out(kMagic);
  put(out, std::string_view(question(query_)));
  put(out, static_cast<std::uint64_t>(done_.size()));
  for (const FileState& state : done_) {
    put(out, std::string_view(state.path));
    put(out, state.device);
    put(out, state.inode);
    put(out, state.size);
    put(out, state.changed_ns);
    put(out, state.consumed);
    put(out, state.fingerprint);
  }
  once_.save(out);
  pairer_.save(out);
  usage_.save(out);
  put(out, hash_of(out));
  const fs::path unfinished = checkpoint.string() + fmt::format(".{}", ::getpid());
  const auto fail = [&](const char* tried) {
    const int code = errno;
    static_cast<void>(std::remove(unfinished.c_str()));
    throw LedgerError(system_message(fmt::format("{} checkpoint {}", tried, checkpoint.string()), code),
                      checkpoint.string(), code);
  };
  const int fd = ::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) fail("make");
  std::string_view rest = out;
  while (!rest.empty()) {
    const ssize_t written = ::write(fd, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int code = errno;
      ::close(fd);
      errno = code;
      fail("write");
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  ::close(fd);
  // Where a file is replaced, ext4 writes the new one's bytes to the disk first, for whoever did not ask for that. This
  // one may be lost: without it the ledger is read as a whole.
  static_cast<void>(std::remove(checkpoint.c_str()));
  if (::rename(unfinished.c_str(), checkpoint.c_str()) != 0) fail("rename");
}

}  // namespace

std::vector<UsageRow> read_usage_from(const fs::path& checkpoint, const Files& files, const UsageQuery& query,
                                      std::int64_t now_ns, const Check& check) {
  auto reading = std::make_unique<Reading>(query, now_ns);
  if (!reading->resume(checkpoint, files)) reading = std::make_unique<Reading>(query, now_ns);
  reading->read(files, check);
  reading->leave(checkpoint);
  return reading->finish();
}

}  // namespace cocoon::ledger
