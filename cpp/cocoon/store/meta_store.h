#pragma once
// The node's database and its commit protocol (docs/ledger.md, "Commit"): records and the ledger entries of their
// changes become durable in one transaction; the entries then go, in seq order and exactly once, to the recorder.
//
//   <root>/db/meta.db      SQLite, WAL. Nobody but SQLite opens it.
//   <root>/db/store.lock   flock: one writer at a time, queued by the kernel
//   <root>/db/ledger.lock  flock: one drain at a time
//   <root>/db/ledger.note  how far the last drain came; only saves time
//
// Lock order: ledger.lock, then store.lock. A transaction never waits for the ledger's lock.
// Durable  transact() returns once the change and its entries survive a power cut, unless it was told otherwise.
// Threads  every method may be called concurrently, by any number of processes on one root.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/metering/entry.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/system/clock.h"

namespace cocoon::store {

enum class Table : std::uint8_t { kVm, kSnapshot };

// One record: the columns that queries need beside the document that says everything.
struct Row {
  std::string id;
  std::string hypervisor;
  std::string name;  // "" only for snapshots
  std::string state;
  std::int64_t generation = 0;
  std::string document;
};

// The time of a transition, taken inside its transaction: seq order is time order on one boot.
struct Moment {
  std::int64_t wall_ns = 0;
  std::int64_t uptime_ns = 0;
  std::string boot_id;
};

enum class Durable { kNow, kWithNext };

// A write transaction. Lives inside MetaStore::transact; leaving by an exception rolls everything back.
class Transaction {
 public:
  virtual ~Transaction() = default;
  [[nodiscard]] virtual const Moment& moment() const = 0;
  [[nodiscard]] virtual std::uint64_t next_seq() const = 0;
  virtual std::optional<Row> find(Table table, std::string_view id) = 0;
  virtual std::optional<Row> find_by_name(Table table, std::string_view hypervisor, std::string_view name) = 0;
  // Inserts or replaces by id. Errors AlreadyExists: another record has this name (VMs: of this hypervisor).
  virtual void put(Table table, const Row& row) = 0;
  virtual void erase(Table table, std::string_view id) = 0;
  // Requires consecutive seq from next_seq(), which it raises.
  virtual void append(const std::vector<metering::Entry>& entries) = 0;
};

struct Options {
  std::filesystem::path root;
  std::shared_ptr<metering::Recorder> recorder;  // null: Nop
  const system::Clock* clock = nullptr;          // null: the system's; must outlive the store
  std::vector<std::string> metered_labels;       // replaces the node's allow list unless empty
  std::uint64_t rotate_bytes = 0;                // a ledger file that is as long is rotated; 0: never
  std::size_t prune_every = 512;                 // delivered rows that wait for one fdatasync of the ledger
};

class MetaStore {
 public:
  // Makes the root (0700) and the database when absent, else migrates an older schema; then recovers and drains what
  // a crashed process left.
  // Errors   StoreError: the root is a file or cannot be written, the database is foreign, damaged or newer than this
  //          engine. InvalidArgument: metered labels out of bounds.
  explicit MetaStore(Options options);
  ~MetaStore();  // prunes if it can, never throws
  MetaStore(const MetaStore&) = delete;
  MetaStore& operator=(const MetaStore&) = delete;

  [[nodiscard]] const std::string& node_id() const;  // 26 characters of lower-case base32
  [[nodiscard]] const std::string& ledger_id() const;
  [[nodiscard]] const std::vector<std::string>& metered_labels() const;  // sorted
  [[nodiscard]] const std::shared_ptr<metering::Recorder>& recorder() const;

  // Runs `body` in one transaction, then makes it durable and drains. `body` does no I/O of its own. Without entries it
  // may be left to the next transaction's sync: a power cut takes both or neither.
  // Errors   what `body` throws (rolled back); StoreError. A recorder that fails is no error: entries wait.
  void transact(const std::function<void(Transaction&)>& body, Durable durable = Durable::kNow);

  [[nodiscard]] std::optional<Row> find(Table table, std::string_view id) const;
  // Exact id, else exact name, else unique id prefix of at least 3 characters. `hypervisor` "": over all of them.
  // Errors   NotFound. AmbiguousRef.
  [[nodiscard]] Row resolve(Table table, std::string_view ref, std::string_view hypervisor = {}) const;
  // By creation. Empty filters mean all.
  [[nodiscard]] std::vector<Row> list(Table table, std::string_view hypervisor = {}, std::string_view state = {}) const;

  // Entries committed but not yet taken by the recorder.
  [[nodiscard]] std::uint64_t pending() const;
  // Everything committed is with the recorder and, if that is a file, on the disk.
  // Errors   LedgerError: the ledger cannot be written. Error: the recorder raised.
  void flush();
  // What the recorder has for good: every entry up to this seq, which left the outbox.
  [[nodiscard]] std::uint64_t settled() const;
  // What is in the ledger file becomes a part of its own beside it, packed; the next entry begins a new file. Returns
  // the part, "" if the file holds no entry. Die at any point: nothing is lost and nothing is there twice
  // (metering/ledger_parts.h). A part that cannot be packed stays as it is, with a warning.
  // Errors   LedgerError: it cannot, or the recorder is not a file.
  std::filesystem::path rotate();
  // flush() as far as it can, then closes; later calls throw StoreError "closed".
  void close();

  // Rises whenever any process commits. Cheap: no query of the records.
  [[nodiscard]] std::uint64_t change_counter() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// 26 random characters of lower-case base32 (a-z, 2-7): ids of nodes, VMs and snapshots.
std::string make_id();

}  // namespace cocoon::store
