#pragma once
// The node's snapshot store: each snapshot is a folder of plain files and a record, metered from the transaction that
// completes it to the one that removes it.
//
//   <root>/snapshots/<id>/           data, never changed once it is complete
//   <root>/snapshots/.staging/<id>/  data that is being made, or being removed; same file system, so that rename moves
//   it <root>/snapshots/.locks/<id>     lock.h: exclusive while it is made or removed, shared while it is read
//
// What a dead process leaves is known by a free lock: a pending record, a folder in .staging, a folder without a
// record, a lock file without either. gc removes it; nobody else minds.
//
// Threads  every method may be called concurrently, by any number of processes on one root.
// Errors   NotFound, AmbiguousRef, StoreError, Cancelled, unless said otherwise. An id belongs to one snapshot for
// ever.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/lifecycle/record.h"
#include "cocoon/snapshot/lock.h"
#include "cocoon/store/meta_store.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/file.h"

namespace cocoon::snapshot {

using lifecycle::SnapshotRecord;

// What is known of a snapshot before its data is there.
struct Spec {
  std::string name;  // "": none
  std::string description;
  std::string hypervisor;
  std::string vm_id;  // "": imported
  std::int64_t cpu = 0;
  std::int64_t mem_bytes = 0;
  std::int64_t storage_bytes = 0;
  bool kept = false;  // a hibernated VM's memory: only waking or removing the VM may remove it
};

// Which files outside of it a snapshot from outside may name: strictly below an allowed folder, and not in a denied
// one.
struct Trust {
  std::vector<system::Path> allowed;
  std::vector<system::Path> denied;
};

class LocalFile;

// A snapshot that is being made: an empty folder to be filled with plain files, locked until it is published.
// Destroying it abandons folder and record; nothing of it is in the ledger.
class Staging {
 public:
  ~Staging() { abandon(); }
  Staging(Staging&& other) noexcept;
  Staging& operator=(Staging&&) = delete;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  [[nodiscard]] const std::string& id() const { return id_; }
  // 0700. Paths in it stay valid until it is published; files that were opened in it, after that as well.
  [[nodiscard]] const system::Path& dir() const { return dir_; }

 private:
  friend class LocalFile;
  Staging(const LocalFile& owner, std::string id, Lock lock);
  void abandon() noexcept;

  const LocalFile* owner_;  // null: published, or moved from
  std::string id_;
  system::Path dir_;
  std::optional<Lock> lock_;
  bool reserved_ = false;
};

// A complete snapshot that is being read: not removed while this lives.
class Use {
 public:
  [[nodiscard]] const SnapshotRecord& record() const { return record_; }
  [[nodiscard]] const system::Path& dir() const { return dir_; }

 private:
  friend class LocalFile;
  Use(SnapshotRecord record, system::Path dir, Lock lock)
      : record_(std::move(record)), dir_(std::move(dir)), lock_(std::move(lock)) {}
  SnapshotRecord record_;
  system::Path dir_;
  Lock lock_;
};

// What a caller commits in the same transaction as the snapshot's own event, ahead of it. If it throws, nothing of
// either happens.
using Also = std::function<void(store::Transaction&)>;

class LocalFile {
 public:
  // `store` must outlive it. Makes the folders when absent.
  LocalFile(store::MetaStore& store, const system::Path& root, Trust trust = {});

  // Takes the name and makes the folder. A name that a dead process had taken is freed.
  // Errors   InvalidArgument: name, description or sizes. AlreadyExists: the name.
  [[nodiscard]] Staging begin(const Spec& spec);
  // The two halves of it, for who learns the name from the data.
  [[nodiscard]] Staging stage();
  void reserve(Staging& staging, const Spec& spec);

  // Completes it: on the disk, under its final name, and metered by the logical bytes of its files.
  // Durable  on return. Errors InvalidArgument: there is something else than plain files in it; what `also` throws.
  //          On any error it is abandoned.
  SnapshotRecord publish(Staging staging, system::Cancel& cancel, const Also& also = {});

  // Errors   InvalidState: it is being made, or half removed.
  [[nodiscard]] Use use(std::string_view ref, system::Cancel& cancel) const;

  // Removes data and record. Another process that removes it meanwhile is waited for; the loser gets NotFound.
  // Errors   InvalidState: it is in use, being made, or holds a hibernated VM's memory. What `also` throws: then the
  //          data is gone, and removing it again finishes.
  void remove(std::string_view ref, system::Cancel& cancel, const Also& also = {});
  // Ids in order of the references, each once. An unknown one: nothing is removed. Else all are tried; BulkError if
  // any failed (one reference: its own error).
  std::vector<std::string> remove(std::span<const std::string> refs, system::Cancel& cancel);

  // Complete ones, newest first.
  [[nodiscard]] std::vector<SnapshotRecord> list() const;
  [[nodiscard]] SnapshotRecord inspect(std::string_view ref) const;
  // Errors   InvalidState: it is half removed.
  [[nodiscard]] system::Path data_dir(std::string_view ref) const;

  // Of a snapshot that nobody makes any more: its folders and its pending record go, nothing enters the ledger.
  enum class Stale {
    kOwned,    // somebody holds its lock, or it is complete
    kNothing,  // there was none, or somebody else did it
    kDiscarded,
  };
  Stale discard_stale(const std::string& id) const;
  // For gc: whether discard_stale() would do something, whether somebody holds the lock, and when use() was called
  // last, or else it was made.
  [[nodiscard]] bool is_stale(const std::string& id) const;
  [[nodiscard]] bool is_in_use(const std::string& id) const;
  [[nodiscard]] std::int64_t last_used_ns(const SnapshotRecord& record) const;

  [[nodiscard]] const Trust& trust() const { return trust_; }
  [[nodiscard]] store::MetaStore& store() const { return *store_; }
  [[nodiscard]] const system::Path& folder() const { return folder_; }
  [[nodiscard]] system::Path staging_folder() const { return folder_ / ".staging"; }
  [[nodiscard]] system::Path locks_folder() const { return folder_ / ".locks"; }

 private:
  friend class Staging;
  [[nodiscard]] system::Path final_dir(std::string_view id) const { return folder_ / id; }
  [[nodiscard]] system::Path staging_dir(std::string_view id) const { return staging_folder() / id; }
  [[nodiscard]] system::Path lock_path(std::string_view id) const { return locks_folder() / id; }
  [[nodiscard]] SnapshotRecord resolve(std::string_view ref) const;
  [[nodiscard]] SnapshotRecord resolve_ready(std::string_view ref) const;
  void remove_one(const std::string& id, system::Cancel& cancel, const Also& also);
  [[nodiscard]] Lock lock_for_removal(const SnapshotRecord& record, system::Cancel& cancel) const;
  void check_not_asleep(const SnapshotRecord& record) const;
  void forget(const std::string& id, const Lock& lock) const;

  store::MetaStore* store_;
  system::Path folder_;
  Trust trust_;
};

}  // namespace cocoon::snapshot
