// Delivery to a recorder that takes entries one by one: Capture, a subclass of the user's. At least once across a
// crash, in seq order, from one thread at a time, outside every transaction and with no mutex held; the ledger's flock
// keeps other processes away meanwhile.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/metering/entry.h"
#include "cocoon/metering/log.h"
#include "cocoon/store/outbox.h"
#include "cocoon/store/outlet.h"

namespace cocoon::store {
namespace {

class CallDelivery final : public Outlet {
 public:
  CallDelivery(Database& database, metering::Recorder& recorder)
      : database_(database), recorder_(recorder), owner_(process_generation()) {}

  void deliver(std::uint64_t through) override;
  void flush() override;
  std::uint64_t pending() override;

 private:
  void become_deliverer(std::unique_lock<std::mutex>& lock);
  std::exception_ptr deliver_all(std::unique_lock<std::mutex>& lock);
  void deliver_once();
  void sync_through(std::uint64_t seq);
  void set_delivered(std::uint64_t seq);

  Database& database_;
  metering::Recorder& recorder_;
  std::uint64_t owner_;
  std::atomic<std::uint64_t> synced_{0};  // rows up to here are durable in the database

  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread::id deliverer_;    // nobody: the default
  bool again_ = false;           // rows were committed since the deliverer last looked
  std::uint64_t delivered_ = 0;  // up to here the recorder has them
  std::uint64_t turns_ = 0;      // deliverers that have finished
  bool warned_ = false;
};

std::string message_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "it threw something that is no std::exception";
  }
}

void CallDelivery::deliver(std::uint64_t through) {
  // Durable before anybody hears of it, and by ourselves: another thread may be delivering for long.
  database_.sync_wal();
  sync_through(through);

  std::unique_lock lock(mutex_);
  if (deliverer_ != std::thread::id()) {
    again_ = true;  // it goes on until nothing is left, ours included
    // From inside emit, waiting would be for ourselves; and a recorder of the user's may itself wait for this thread.
    if (deliverer_ == std::this_thread::get_id() || recorder_.calls_out()) return;
    const auto turn = turns_;
    changed_.wait(lock, [&] { return turns_ != turn || (through != 0 && delivered_ >= through); });
    return;
  }
  become_deliverer(lock);
  const auto failure = deliver_all(lock);
  if (process_generation() != owner_) std::rethrow_exception(failure);
  if (!failure) {
    warned_ = false;
  } else if (!warned_) {
    warned_ = true;
    lock.unlock();
    metering::logger()->warn("{}; entries wait in the node's database and are offered again", message_of(failure));
  }
}

void CallDelivery::become_deliverer(std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return deliverer_ == std::thread::id(); });
  deliverer_ = std::this_thread::get_id();
}

// Requires to be the deliverer; is none afterwards.
std::exception_ptr CallDelivery::deliver_all(std::unique_lock<std::mutex>& lock) {
  std::exception_ptr failure;
  do {
    again_ = false;
    lock.unlock();
    try {
      deliver_once();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
  } while (again_ && !failure);
  deliverer_ = {};
  ++turns_;
  changed_.notify_all();
  return failure;
}

// Until the outbox is empty.
void CallDelivery::deliver_once() {
  const LockFile::Held lock(database_.ledger_lock());
  for (;;) {
    std::uint64_t given = 0;
    std::vector<OutboxRow> rows;
    {
      const auto lease = database_.drainer();
      given = last_given(*lease);
      rows = rows_after(*lease, 0);
    }
    // Another process may have delivered some of ours.
    set_delivered(rows.empty() ? given : rows.front().seq - 1);
    if (rows.empty()) return;
    if (rows.back().seq > synced_) {
      database_.sync_wal();
      sync_through(rows.back().seq);
    }

    std::uint64_t taken = 0;
    std::exception_ptr failure;
    for (const auto& row : rows) {
      try {
        recorder_.emit(metering::from_json(row.line));
      } catch (...) {
        failure = std::current_exception();
        break;
      }
      // The parent's call goes on; in this process the database is not to be touched.
      if (process_generation() != owner_)
        throw StoreError("deliver ledger entries: the process forked inside the recorder's emit",
                         database_.path().string());
      taken = row.seq;
    }
    // Die before this: the recorder is called for them once more, with the same seq.
    if (taken != 0) {
      const Database::WriteLease write(database_);
      prune_rows(*write, taken);
    }
    if (taken != 0) set_delivered(taken);
    if (failure) std::rethrow_exception(failure);
  }
}

void CallDelivery::sync_through(std::uint64_t seq) {
  auto seen = synced_.load();
  while (seen < seq && !synced_.compare_exchange_weak(seen, seq)) {
  }
}

void CallDelivery::set_delivered(std::uint64_t seq) {
  const std::lock_guard lock(mutex_);
  delivered_ = std::max(delivered_, seq);
  changed_.notify_all();
}

void CallDelivery::flush() {
  database_.sync_wal();
  std::unique_lock lock(mutex_);
  if (deliverer_ == std::this_thread::get_id()) throw Error("flush of a node from inside its recorder's emit");
  become_deliverer(lock);
  const auto failure = deliver_all(lock);
  warned_ = false;
  if (failure) throw Error(fmt::format("the recorder refused an entry: {}", message_of(failure)));
}

std::uint64_t CallDelivery::pending() {
  const Database::ReadLease reader(database_);
  return count_after(*reader, 0);
}

// Metering is off: entries consume their seq and never reach the outbox. Rows that others left there stay for them.
class NoDelivery final : public Outlet {
 public:
  explicit NoDelivery(Database& database) : database_(database) {}
  void deliver(std::uint64_t) override { database_.sync_wal(); }
  void flush() override { database_.sync_wal(); }
  std::uint64_t pending() override { return 0; }

 private:
  Database& database_;
};

}  // namespace

std::unique_ptr<Outlet> make_call_delivery(Database& database, metering::Recorder& recorder) {
  return std::make_unique<CallDelivery>(database, recorder);
}

std::unique_ptr<Outlet> make_no_delivery(Database& database) { return std::make_unique<NoDelivery>(database); }

}  // namespace cocoon::store
