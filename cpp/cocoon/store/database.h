#pragma once
// The node's database as its users share it: one connection to write, one for the drain, a few to read, and the locks
// around them. A LockFile queues processes and threads alike; the mutex behind it is never contended and is there so
// that the order is one the C++ memory model (and a thread sanitizer) can see.

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "cocoon/store/connection.h"
#include "cocoon/store/lock_file.h"
#include "cocoon/system/fd.h"

namespace cocoon::store {

class Database {
 public:
  // Makes folders and database when absent, migrates an older one.
  // Errors   StoreError, as MetaStore says.
  explicit Database(const std::filesystem::path& root);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] LockFile& ledger_lock() { return ledger_lock_; }
  [[nodiscard]] std::filesystem::path ledger_note() const { return path_.parent_path() / "ledger.note"; }

  // A connection and the right to use it.
  class Lease {
   public:
    Connection& operator*() const { return *connection_; }

   private:
    friend class Database;
    Lease(std::mutex& mutex, Connection& connection) : guard_(mutex), connection_(&connection) {}
    std::unique_lock<std::mutex> guard_;
    Connection* connection_;
  };

  // The store's lock and the write connection. Looks after the WAL when it goes.
  class WriteLease {
   public:
    explicit WriteLease(Database& database)
        : database_(database), lock_(database.store_lock_), lease_(database.writer()) {}
    ~WriteLease() {
      if (lock_.is_ours()) database_.tend_wal(*lease_);
    }
    WriteLease(const WriteLease&) = delete;
    WriteLease& operator=(const WriteLease&) = delete;
    Connection& operator*() const { return *lease_; }

   private:
    Database& database_;
    LockFile::Held lock_;
    Lease lease_;
  };

  class ReadLease {
   public:
    explicit ReadLease(Database& database) : database_(database), connection_(database.take_reader()) {}
    ~ReadLease() { database_.give_reader(std::move(connection_)); }
    ReadLease(const ReadLease&) = delete;
    ReadLease& operator=(const ReadLease&) = delete;
    Connection& operator*() const { return *connection_; }

   private:
    Database& database_;
    std::unique_ptr<Connection> connection_;
  };

  // The drain's connection. Requires the ledger's lock, or nothing to be drained.
  [[nodiscard]] Lease drainer() { return {drain_mutex_, *drain_}; }

  // Durable  on return, every transaction that committed before the call survives a power cut.
  void sync_wal() const;

  [[nodiscard]] std::uint64_t change_counter();

  // In a forked child; see Connection::abandon. False: it must be left alone, whatever that leaks.
  [[nodiscard]] bool abandon();

 private:
  [[nodiscard]] Lease writer() { return {write_mutex_, *write_}; }
  void tend_wal(Connection& writer) noexcept;
  std::unique_ptr<Connection> take_reader();
  void give_reader(std::unique_ptr<Connection> connection) noexcept;

  std::filesystem::path path_;
  LockFile store_lock_;
  LockFile ledger_lock_;

  std::mutex write_mutex_;
  std::unique_ptr<Connection> write_;
  std::mutex drain_mutex_;
  std::unique_ptr<Connection> drain_;
  std::mutex watch_mutex_;
  std::unique_ptr<Connection> watch_;  // never writes, so that its data_version sees every commit

  std::mutex pool_mutex_;
  std::condition_variable reader_returned_;
  std::vector<std::unique_ptr<Connection>> idle_readers_;
  std::size_t readers_ = 0;  // idle or lent

  // The WAL is the same file as long as a connection is open: SQLite deletes it only when the last one closes.
  system::Fd wal_;
  std::uint64_t wal_size_ = 0;  // at least; under the write lease
};

}  // namespace cocoon::store
