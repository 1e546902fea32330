// reconcile: ledger, records and processes, three ways. What can be put right is, through ordinary transitions; the
// ledger is never edited.

#include "cocoon/engine/reconcile.h"

#include <algorithm>
#include <cerrno>
#include <set>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/engine/commit.h"
#include "cocoon/engine/disk_exchange.h"
#include "cocoon/engine/node.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/paused_guest.h"
#include "cocoon/error.h"
#include "cocoon/ledger/intervals.h"
#include "cocoon/snapshot/commit.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;
using lifecycle::VmState;

constexpr auto kApiTimeout = 5s;

// What the ledger says is open, by VM. Without a file of ours to read it says nothing.
struct LedgerSide {
  bool known = false;
  std::string why;  // there is one that could not be read
  std::set<std::string, std::less<>> open_compute;
  std::set<std::string, std::less<>> open_storage;
  std::set<std::string, std::less<>> open_snapshots;

  [[nodiscard]] std::string_view compute_state(std::string_view id) const {
    if (!known) return "unknown";
    return open_compute.contains(id) ? "open" : "closed";
  }

  // The status of a record that says something else, empty for one that does not.
  [[nodiscard]] std::string_view differs(const VmRecord& vm) const {
    const bool compute = open_compute.contains(vm.id);
    const bool storage = open_storage.contains(vm.id);
    if ((vm.compute_open() && !compute) || (vm.storage_open() && !storage)) return "record-open-ledger-closed";
    if (compute != vm.compute_open() || storage != vm.storage_open()) return "record-closed-ledger-open";
    return {};
  }
  [[nodiscard]] std::string_view differs(const snapshot::SnapshotRecord& record) const {
    const bool open = open_snapshots.contains(record.id);
    if (open == !record.pending) return {};
    return open ? "record-closed-ledger-open" : "record-open-ledger-closed";
  }
};

LedgerSide read_ledger(const Node& node) {
  LedgerSide side;
  const auto* file = node.recorder()->file();
  if (file == nullptr) return side;
  std::vector<ledger::Interval> intervals;
  try {
    const ledger::Selection own{.patterns = {file->path().string()}, .with_parts = true};
    intervals = ledger::read_intervals(ledger::find_files(own), ledger::CrashEnd::kEnded, 0);
  } catch (const LedgerError& error) {
    if (error.code == ENOENT) return side;
    // Records and processes are put right all the same.
    side.why = error.what();
    return side;
  }
  for (const auto& interval : intervals) {
    if (!interval.open) continue;
    if (interval.dimension == ledger::Dimension::kVmCompute) side.open_compute.insert(interval.id);
    if (interval.dimension == ledger::Dimension::kVmStorage) side.open_storage.insert(interval.id);
    if (interval.dimension == ledger::Dimension::kSnapStorage) side.open_snapshots.insert(interval.id);
  }
  side.known = true;
  return side;
}

class Reconciler {
 public:
  Reconciler(Node& node, bool fix, bool only_garbage, system::Cancel& cancel)
      : node_(node), fix_(fix), only_garbage_(only_garbage), cancel_(cancel) {}

  ReconcileReport run() {
    // Processes before records: a VMM without a record now had none when it was seen, or is being undone.
    const auto strays = scan();
    if (!only_garbage_ && node_.pending() > 0) {
      try {
        node_.flush();
      } catch (const Error& error) {
        // Entries that wait are no disagreement; the ledger is read as far as it goes.
        spdlog::info("reconcile: {}", error.what());
      }
    }
    const auto side = only_garbage_ ? LedgerSide() : read_ledger(node_);
    if (!side.why.empty())
      add({.id = {},
           .name = {},
           .hypervisor = {},
           .status = "inconclusive: " + side.why,
           .record_state = {},
           .ledger_state = "unknown",
           .kind = "ledger"},
          false);
    std::set<std::string, std::less<>> known;
    for (const auto& row : node_.store().list(store::Table::kVm)) {
      cancel_.check();
      known.insert(row.id);
      isolated(row.id, [&] { one(row.id, side); });
    }
    for (const auto& [hypervisor, process] : strays)
      isolated(process.cwd.filename().string(), [&] { stray(hypervisor, process, known); });
    compare_rest(side, known);
    compare_snapshots(side);
    compare_kept();
    return std::move(report_);
  }

 private:
  struct Stray {
    std::string hypervisor;
    system::ProcessInfo process;
  };

  // VMMs of this node: their working directory is a run dir of it, whether the folder still exists or not.
  // In a run dir that others have too they may be the others'.
  std::vector<Stray> scan() const {
    std::vector<Stray> found;
    if (!node_.owns(node_.run_dir())) return found;
    for (const auto hypervisor : vmm::hypervisors()) {
      const auto& driver = node_.driver(hypervisor);
      const auto parent = node_.run_dir() / hypervisor;
      auto processes = system::scan_processes([&](const system::ProcessInfo& process) {
        return process.cwd.parent_path() == parent &&
               is_vmm_of(driver, process, process.cwd.filename().string(), process.cwd);
      });
      for (auto& process : processes) found.push_back({std::string(hypervisor), std::move(process)});
    }
    return found;
  }

  // What goes wrong with one VM is its row's business, and no reason to leave the others as they are.
  template <typename Work>
  void isolated(const std::string& id, Work&& work) {
    try {
      work();
    } catch (const Cancelled&) {
      throw;
    } catch (const NotFound& error) {
      spdlog::debug("reconcile: {}", error.what());  // removed meanwhile: there is nothing left to compare
    } catch (const Error& error) {
      add({.id = id,
           .name = {},
           .hypervisor = {},
           .status = fmt::format("failed: {}", error.what()),
           .record_state = {},
           .ledger_state = {}},
          false);
    }
  }

  // What the ledger has open without a record. It was read before the records: a VM that was removed in between is
  // closed in it by now.
  void compare_rest(const LedgerSide& before, const std::set<std::string, std::less<>>& known) {
    const auto unknown = [&](const LedgerSide& side) {
      std::set<std::string, std::less<>> ids;
      for (const auto* open : {&side.open_compute, &side.open_storage})
        for (const auto& id : *open)
          if (!known.contains(id) && !find_vm(node_.store(), id)) ids.insert(id);
      return ids;
    };
    const auto candidates = unknown(before);
    if (candidates.empty() || node_.pending() > 0) return;
    for (const auto& id : unknown(read_ledger(node_))) {
      if (!candidates.contains(id)) continue;  // came and went meanwhile
      add_without_record(id, "vm");
    }
  }

  // Snapshots have no processes, and a row only where record and ledger differ. The ledger was read before the records,
  // and is read again after them; a record that went between is no disagreement.
  void compare_snapshots(const LedgerSide& before) {
    if (!before.known) return;
    const auto& store = node_.store();
    std::vector<std::string> differing;
    auto without_record = before.open_snapshots;
    for (const auto& row : store.list(store::Table::kSnapshot)) {
      without_record.erase(row.id);
      if (!before.differs(snapshot::record_from_row(row)).empty()) differing.push_back(row.id);
    }
    if ((differing.empty() && without_record.empty()) || node_.pending() > 0) return;
    const auto now = read_ledger(node_);
    if (!now.known) return;
    for (const auto& id : differing) {
      const auto record = snapshot::find_record(store, id);
      if (!record) continue;
      if (const auto status = now.differs(*record); !status.empty())
        add({.id = id,
             .name = record->name,
             .hypervisor = record->hypervisor,
             .status = std::string(status),
             .record_state = record->pending ? "pending" : "ready",
             .ledger_state = record->pending ? "open" : "closed",
             .kind = "snapshot"},
            false);
    }
    for (const auto& id : without_record)
      if (now.open_snapshots.contains(id)) add_without_record(id, "snapshot");
  }

  void add_without_record(const std::string& id, const char* kind) {
    add({.id = id,
         .name = {},
         .hypervisor = {},
         .status = "ledger-open-no-record",
         .record_state = {},
         .ledger_state = "open",
         .kind = kind},
        false);
  }

  void add(ReconcileRow row, bool ok) {
    if (!ok && row.action.empty()) report_.ok = false;
    report_.rows.push_back(std::move(row));
  }

  // In what the ledger differs from this record, empty if in nothing. The ledger was read before the record: when the
  // two differ it is read again, now that no sequence can change the record.
  std::string_view disagreement(const VmRecord& vm, const LedgerSide& side, ReconcileRow& row) const {
    if (!side.known || side.differs(vm).empty()) return {};
    if (node_.pending() > 0) return {};  // what the ledger lacks is known, and on its way
    const auto now = read_ledger(node_);
    row.ledger_state = std::string(now.compute_state(vm.id));
    return now.known ? now.differs(vm) : std::string_view();
  }

  // Record and process agree; so does the ledger, or it does not.
  void compared(const VmRecord& vm, const LedgerSide& side, ReconcileRow row) {
    const auto differs = disagreement(vm, side, row);
    if (!differs.empty()) row.status = std::string(differs);
    add(std::move(row), differs.empty());
  }

  void one(const std::string& id, const LedgerSide& side) {
    auto lock = OpLock::try_acquire(node_, id);
    const auto found = find_vm(node_.store(), id);
    if (!found) {
      if (lock) lock->retire();
      return;
    }
    const VmRecord& vm = *found;
    const auto& driver = node_.driver(vm.hypervisor);
    ReconcileRow row{.id = id,
                     .name = vm.config.name,
                     .hypervisor = vm.hypervisor,
                     .status = "ok",
                     .record_state = std::string(to_string(vm.state)),
                     .ledger_state = std::string(side.compute_state(id))};
    if (!lock) {
      row.status = "busy";
      return add(std::move(row), true);
    }
    if (vm.state == VmState::kCreating) {
      // Its lock is free, so its creator is dead; a clone's may have left a VMM.
      row.status = "stale-placeholder";
      if (fix_) {
        for (const auto& process : find_processes(driver, vm)) kill_process(process.identity);
        system::remove_tree(vm.run_dir);
        system::remove_tree(vm.log_dir);
        if (commit_if(node_.store(), vm, lifecycle::RollbackCreate{}).race == Race::kWon) {
          lock->retire();
          row.action = "removed";
        }
      }
      return add(std::move(row), false);
    }
    try {
      const auto alive = settle(driver, vm, "reconcile", cancel_);
      if (vm.dirty) return dirty(vm, driver, alive, std::move(row));
      if (fix_) DiskExchange::clean_up(vm.config);
      if (fix_ && alive.life != Life::kAlive) PausedGuest::forget(vm);
      if (alive.life != Life::kAlive) return dead(vm, driver, alive.remnant, side, std::move(row));
      row.pid = alive.process->pid;
      living(vm, driver, *alive.process, side, std::move(row));
    } catch (const Inconclusive& error) {
      row.status = fmt::format("inconclusive: {}", error.what());
      add(std::move(row), false);
    }
  }

  void living(const VmRecord& vm, const vmm::Driver& driver, const system::ProcessIdentity& process,
              const LedgerSide& side, ReconcileRow row) {
    const auto identity = to_record(process);
    if (vm.compute_open() && vm.state == VmState::kRunning && vm.process == identity) {
      if (left_paused(vm, driver, row)) return add(std::move(row), false);
      return compared(vm, side, std::move(row));
    }
    bool runs = false;
    try {
      const auto guest = find_guest_state(driver, vm, process, kApiTimeout, cancel_);
      if (!guest) {  // it died while it was asked
        row.pid = 0;
        return dead(vm, driver, {}, side, std::move(row));
      }
      runs = guest == vmm::GuestState::kRunning || guest == vmm::GuestState::kPaused;
    } catch (const VmmError& error) {
      row.status = fmt::format("inconclusive: {}", error.what());
      return add(std::move(row), false);
    }
    if (!runs || (vm.state == VmState::kHibernated && !vm.compute_open())) {
      // A hibernated VM's memory is in its snapshot, and so are its disks: what runs was left by a hibernate or a wake.
      row.status = "orphan-process";
      if (fix_) {
        kill_vmm(driver, vm, process);
        PausedGuest::forget(vm);
        if (vm.compute_open()) commit_if(node_.store(), vm, lifecycle::FoundDead{.death = find_death(vm)});
        row.action = runs ? "killed, the VM is hibernated" : "killed, no guest ran in it";
      }
      return add(std::move(row), false);
    }
    if (vm.compute_open() && vm.process && vm.process != identity) {
      // The interval is another VMM's, and that one is dead; this one has none.
      row.status = "open-but-process-dead";
      if (fix_) {
        const auto closed = commit_if(node_.store(), vm, lifecycle::FoundDead{.death = find_death(vm)});
        if (closed.race == Race::kWon &&
            commit_if(node_.store(), *closed.record, lifecycle::FoundAlive{.process = identity}).race == Race::kWon)
          row.action = "closed, and the living one adopted";
      }
      return add(std::move(row), false);
    }
    row.status = vm.compute_open() ? "ok" : "process-without-interval";
    const bool state_differs = vm.state != VmState::kRunning || !vm.compute_open() || vm.process != identity;
    if (fix_ && !only_garbage_ && state_differs && vm.state != VmState::kHibernated &&
        commit_if(node_.store(), vm, lifecycle::FoundAlive{.process = identity}).race == Race::kWon)
      row.action = "adopted";
    const bool ok = row.status == "ok";
    add(std::move(row), ok);
  }

  // A snapshot whose maker died while the guest stood still.
  bool left_paused(const VmRecord& vm, const vmm::Driver& driver, ReconcileRow& row) {
    std::error_code ignored;
    if (!std::filesystem::exists(system::Path(vm.run_dir) / kSavingFile, ignored)) return false;
    row.status = "left-paused";
    if (fix_ && !only_garbage_) {
      try {
        if (PausedGuest::rescue(driver, vm, cancel_)) row.action = "resumed";
      } catch (const VmmError& error) {
        row.status = fmt::format("left-paused: {}", error.what());
      }
    }
    return true;
  }

  // A restore whose maker died between the old disks and the new ones, or behind: the old ones come back.
  void dirty(const VmRecord& vm, const vmm::Driver& driver, const Liveness& alive, ReconcileRow row) {
    row.status = "half-restored";
    if (alive.process) row.pid = alive.process->pid;
    if (fix_ && !only_garbage_) {
      if (alive.process) kill_vmm(driver, vm, *alive.process);
      DiskExchange::put_back(vm.config);
      if (commit_if(node_.store(), vm, lifecycle::RestoreFailed{.dirty = false}).race == Race::kWon)
        row.action = alive.process ? "killed, and its old disks put back" : "old disks put back";
    }
    add(std::move(row), false);
  }

  // What kept a hibernated VM's memory, when the VM is awake or gone: whoever ended that died before removing it.
  void compare_kept() {
    for (const auto& row : node_.store().list(store::Table::kSnapshot, {}, "ready")) {
      const auto kept = snapshot::record_from_row(row);
      if (!kept.kept) continue;
      const auto vm = find_vm(node_.store(), kept.vm_id);
      if (vm && vm->kept_snapshot_id == kept.id) continue;
      if (vm) {
        const auto lock = OpLock::try_acquire(node_, vm->id);
        if (!lock) continue;  // its waker is about to
      }
      isolated(kept.id, [&] {
        ReconcileRow found{.id = kept.id,
                           .name = kept.name,
                           .hypervisor = kept.hypervisor,
                           .status = "kept-without-vm",
                           .record_state = {},
                           .ledger_state = {},
                           .kind = "snapshot"};
        if (fix_) {
          node_.snapshots().remove(kept.id, cancel_);
          found.action = "removed";
        }
        add(std::move(found), false);
      });
    }
  }

  void dead(const VmRecord& vm, const vmm::Driver& driver, const std::optional<system::ProcessIdentity>& remnant,
            const LedgerSide& side, ReconcileRow row) {
    if (remnant && fix_) kill_remnants(driver, vm);
    if (vm.compute_open()) {
      row.status = "open-but-process-dead";
      if (fix_ && commit_if(node_.store(), vm, lifecycle::FoundDead{.death = find_death(vm)}).race == Race::kWon)
        row.action = "closed";
      return add(std::move(row), false);
    }
    if (remnant) {
      row.status = "orphan-process";
      row.pid = remnant->pid;
      if (fix_) row.action = "killed, its VMM is dead";
      return add(std::move(row), false);
    }
    compared(vm, side, std::move(row));
  }

  // A VMM in a run dir of this node that no record speaks for.
  void stray(const std::string& hypervisor, const system::ProcessInfo& process,
             const std::set<std::string, std::less<>>& known) {
    const auto id = process.cwd.filename().string();
    if (known.contains(id) || find_vm(node_.store(), id)) return;
    auto lock = OpLock::try_acquire(node_, id);
    if (!lock) return;  // its starter is alive, has lost its race, and kills it
    const auto now = system::find_process(process.identity.pid);
    if (!now || !(now->identity == process.identity) || now->zombie()) {
      lock->retire();
      return;
    }
    ReconcileRow row{.id = id,
                     .name = {},
                     .hypervisor = hypervisor,
                     .status = "orphan-process",
                     .record_state = {},
                     .ledger_state = {},
                     .pid = process.identity.pid};
    if (fix_) {
      kill_process(process.identity);
      system::remove_tree(node_.run_dir() / hypervisor / id);
      if (node_.owns(node_.log_dir())) system::remove_tree(node_.log_dir() / hypervisor / id);
      row.action = "killed";
    }
    lock->retire();
    add(std::move(row), false);
  }

  Node& node_;
  bool fix_;
  bool only_garbage_;
  system::Cancel& cancel_;
  ReconcileReport report_;
};

}  // namespace

ReconcileReport Node::reconcile(bool fix, system::Cancel& cancel) {
  return Reconciler(*this, fix, false, cancel).run();
}

ReconcileReport reconcile_garbage(Node& node, bool fix, system::Cancel& cancel) {
  return Reconciler(node, fix, true, cancel).run();
}

}  // namespace cocoon::engine
