#pragma once
// One root folder: store, ledger, VMs of every hypervisor. Cheap to open; many processes may open the same root.
// Threads  every method may be called concurrently.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/engine/gc.h"
#include "cocoon/engine/liveness.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/snapshot/local_file.h"
#include "cocoon/store/meta_store.h"
#include "cocoon/system/cancel.h"
#include "cocoon/system/clock.h"
#include "cocoon/system/file.h"
#include "cocoon/vmm/driver.h"

namespace cocoon::engine {

struct NodeOptions {
  system::Path root;
  system::Path run_dir;                          // "": <root>/run
  system::Path log_dir;                          // "": <root>/log
  std::shared_ptr<metering::Recorder> recorder;  // null: FileRecorder at <root>/metering/ledger.jsonl
  std::map<std::string, system::Path> binaries;  // by hypervisor
  std::vector<std::string> ledger_labels;        // the node's allow list; empty: as it was
  std::uint64_t rotate_bytes = 0;                // rotate a ledger that is as long; 0: never
  system::Path shim;                             // cocoon-shim
  const system::Clock* clock = nullptr;          // null: the system's
};

// A value: what the store said at that moment, and what is alive now.
struct VmView {
  lifecycle::VmRecord record;
  Liveness liveness;
};

struct ReconcileRow {
  std::string id;
  std::string name;
  std::string hypervisor;
  std::string status;        // docs/ledger.md, "Reconcile"
  std::string record_state;  // "" without a record
  std::string ledger_state;  // open, closed, unknown: what the ledger says of its compute interval, or of a snapshot
  std::int64_t pid = 0;      // 0: no process
  std::string action;        // what was done, "" for nothing
  std::string kind = "vm";   // or snapshot; or ledger, when it could not be read
};

struct ReconcileReport {
  std::vector<ReconcileRow> rows;
  bool ok = true;  // every row is ok, or was put right
};

class Node {
 public:
  explicit Node(NodeOptions options);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  [[nodiscard]] const std::string& id() const { return store_->node_id(); }
  [[nodiscard]] const system::Path& root() const { return root_; }
  [[nodiscard]] const system::Path& run_dir() const { return run_dir_; }
  [[nodiscard]] const system::Path& log_dir() const { return log_dir_; }
  [[nodiscard]] const system::Path& shim() const { return shim_; }
  [[nodiscard]] const system::Clock& clock() const { return *clock_; }
  [[nodiscard]] store::MetaStore& store() const { return *store_; }
  [[nodiscard]] snapshot::LocalFile& snapshots() const { return *snapshots_; }
  [[nodiscard]] const std::shared_ptr<metering::Recorder>& recorder() const { return store_->recorder(); }
  // Errors   InvalidArgument naming the known hypervisors.
  [[nodiscard]] const vmm::Driver& driver(std::string_view hypervisor) const;
  // `configured`, else the node's configuration, else the program's name in PATH. Errors VmmError: it is not there.
  [[nodiscard]] system::Path find_binary(std::string_view hypervisor, const system::Path& configured = {}) const;

  // The record with what is alive now, and only those of its snapshots that are still there.
  [[nodiscard]] VmView view(lifecycle::VmRecord vm) const;
  // By creation.
  [[nodiscard]] std::vector<VmView> vms() const;
  // Errors   NotFound. AmbiguousRef: also when two hypervisors have one of that name.
  [[nodiscard]] VmView find(std::string_view ref) const;

  // Compares ledger, records and processes; `fix` closes, adopts or kills through ordinary transitions. A VM that a
  // sequence is working on is left alone and reported as busy.
  ReconcileReport reconcile(bool fix, system::Cancel& cancel);

  // Removes what dead processes left, and the snapshots that `options` gives up. Errors InvalidArgument.
  GcReport gc(const GcOptions& options, system::Cancel& cancel);

  [[nodiscard]] std::uint64_t pending() const { return store_->pending(); }
  // The ledger holds everything up to this seq for good.
  [[nodiscard]] std::uint64_t settled() const { return store_->settled(); }
  void flush() { store_->flush(); }
  // As MetaStore::rotate.
  std::filesystem::path rotate_ledger() { return store_->rotate(); }
  void close() { store_->close(); }

  // Run and log dirs may lie where another node has its own: what no record of ours speaks for may be the other's
  // there, and is neither killed nor removed. A folder outside of the root is ours if only this node has made VMs below
  // it; `claim` says so before it makes one. Errors StoreError.
  [[nodiscard]] bool owns(const system::Path& folder) const;
  void claim(const system::Path& folder) const;

  // The op lock of one VM: sequences on it queue here.
  [[nodiscard]] system::Path op_lock_path(std::string_view vm_id) const;

 private:
  [[nodiscard]] bool is_below_root(const system::Path& folder) const;

  system::Path root_;
  system::Path run_dir_;
  system::Path log_dir_;
  system::Path shim_;
  const system::Clock* clock_;
  std::map<std::string, system::Path> binaries_;
  std::map<std::string, std::unique_ptr<vmm::Driver>, std::less<>> drivers_;
  std::unique_ptr<store::MetaStore> store_;
  std::unique_ptr<snapshot::LocalFile> snapshots_;
};

}  // namespace cocoon::engine
