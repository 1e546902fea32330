#include "cocoon/ledger/scan.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "cocoon/ledger/id_table.h"
#include "cocoon/ledger/log.h"

namespace cocoon::ledger {

using metering::BadEntry;

void parse(Batch& batch) {
  batch.items.clear();
  batch.bad.clear();
  batch.kept_.clear();
  batch.lines = 0;
  const Block& block = batch.block;
  if (block.torn || block.overlong) {
    batch.bad.push_back({.before = 0, .line = 0, .offset = 0, .size = static_cast<std::uint32_t>(block.size)});
    batch.lines = 1;
    return;
  }
  const std::string_view text = block.text();
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  std::uint32_t line = 0;
  for (const char* at = begin; at != end; ++line) {
    Batch::Item& item = batch.items.emplace_back();
    item.line = line;
    item.offset = static_cast<std::uint32_t>(at - begin);
    if (const char* const behind = metering::parse_own_layout(at, end, item.entry)) {
      item.hash = hash_of(item.entry.id);
      at = behind;
      continue;
    }
    const auto* const newline = static_cast<const char*>(std::memchr(at, '\n', static_cast<std::size_t>(end - at)));
    const std::string_view one(at, static_cast<std::size_t>(newline - at));
    try {
      auto& kept = batch.kept_.emplace_back();
      kept.entry = metering::from_json(one);
      item.entry = metering::view_of(kept.entry, kept.labels);
      item.hash = hash_of(item.entry.id);
    } catch (const BadEntry& error) {
      Batch::Bad bad{.before = batch.items.size() - 1,
                     .line = line,
                     .offset = item.offset,
                     .size = static_cast<std::uint32_t>(one.size())};
      bad.error = error;
      batch.items.pop_back();
      batch.kept_.pop_back();
      batch.bad.push_back(std::move(bad));
    }
    at = newline + 1;
  }
  batch.lines = line;
}

namespace {

// Work is taken by whoever is free: hand out the next batch if it is ready, which one at a time may do, else read and
// parse another.
class Pass {
 public:
  Pass(const std::shared_ptr<const Files>& files, const std::function<void(const Batch& batch)>& take,
       const Check& check, std::size_t threads, std::uint64_t skip)
      : source_(files), take_(take), check_(check), ring_(threads * 2 + 2) {
    source_.skip_to(skip);
    for (Slot& slot : ring_) slot.batch = std::make_unique<Batch>();
  }

  void run(std::size_t helpers) {
    std::vector<std::jthread> threads;
    // The first blocks alone: a short ledger is read before a thread has begun.
    work(true, kAlone);
    if (!done_) {
      threads.reserve(helpers);
      try {
        for (std::size_t i = 0; i < helpers; ++i) {
          threads.emplace_back([this] { work(false, 0); });
        }
      } catch (const std::system_error&) {
        if (threads.empty()) logger()->debug("reading a ledger: there are no more threads; this one does it alone");
      }
      work(true, 0);
    }
    threads.clear();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  static constexpr std::uint64_t kAlone = 4;

  struct Slot {
    std::unique_ptr<Batch> batch;
    bool ready = false;
  };

  // `most`: returns when so many blocks were handed out; 0: at the end.
  void work(bool asks, std::uint64_t most) {
    std::unique_lock lock(mutex_);
    try {
      while (!done_ && (most == 0 || taken_ < most)) {
        if (asks && check_) {
          lock.unlock();
          check_();
          lock.lock();
        }
        if (!step(lock) && !done_) wait(lock, asks);
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      if (!failure_) failure_ = std::current_exception();
      done_ = true;
      changed_.notify_all();
    }
  }

  // False: there is nothing to do now.
  bool step(std::unique_lock<std::mutex>& lock) {
    if (!taking_ && taken_ < read_ && slot(taken_).ready) {
      taking_ = true;
      Batch& batch = *slot(taken_).batch;
      if (batch.block.file != file_) line_ = 1;
      file_ = batch.block.file;
      batch.first_line = line_;
      line_ += batch.lines;
      lock.unlock();
      take_(batch);
      lock.lock();
      slot(taken_).ready = false;
      taking_ = false;
      ++taken_;
      if (at_end_ && taken_ == read_) done_ = true;
      changed_.notify_all();
      return true;
    }
    if (!reading_ && !at_end_ && read_ - taken_ < ring_.size()) {
      reading_ = true;
      Slot& mine = slot(read_);
      lock.unlock();
      const bool got = source_.next(mine.batch->block);
      lock.lock();
      reading_ = false;
      if (!got) {
        at_end_ = true;
        if (taken_ == read_) done_ = true;
        changed_.notify_all();
        return true;
      }
      ++read_;
      changed_.notify_all();
      lock.unlock();
      parse(*mine.batch);
      lock.lock();
      mine.ready = true;
      changed_.notify_all();
      return true;
    }
    return false;
  }

  void wait(std::unique_lock<std::mutex>& lock, bool asks) {
    if (!asks || !check_) {
      changed_.wait(lock);
      return;
    }
    constexpr auto kAskAgain = std::chrono::milliseconds(20);
    changed_.wait_for(lock, kAskAgain);
  }

  Slot& slot(std::uint64_t number) { return ring_[number % ring_.size()]; }

  Source source_;  // of whoever has set reading_
  const std::function<void(const Batch& batch)>& take_;
  const Check& check_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> ring_;
  std::uint64_t read_ = 0;   // batches, so far
  std::uint64_t taken_ = 0;  // of these, handed out
  std::size_t file_ = 0;     // of the batch handed out last
  std::uint64_t line_ = 1;   // that follows it
  bool reading_ = false;
  bool taking_ = false;
  bool at_end_ = false;
  bool done_ = false;
  std::exception_ptr failure_;
};

}  // namespace

void scan(const std::shared_ptr<const Files>& files, const std::function<void(const Batch& batch)>& take,
          const Check& check, std::uint64_t skip) {
  constexpr std::size_t kMost = 16;  // more only wait for whoever hands out
  const std::size_t threads = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, kMost);
  Pass(files, take, check, threads, skip).run(threads - 1);
}

}  // namespace cocoon::ledger
