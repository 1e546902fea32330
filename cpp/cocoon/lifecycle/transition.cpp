#include "cocoon/lifecycle/transition.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/entries.h"
#include "cocoon/lifecycle/labels.h"

namespace cocoon::lifecycle {
namespace {

using metering::Kind;
using metering::Reason;

constexpr std::string_view kCreatingOnly = "creating";
constexpr std::string_view kAllButCreating = "created, running, stopped, hibernated, error";

// One event on its way through the table: the record as it changes, and what the ledger says of it.
class Step {
 public:
  Step(VmRecord record, std::string_view event, const Context& context)
      : record_(std::move(record)), event_(event), context_(context), entries_(context) {}

  void on(const Reserve&) {
    throw AlreadyExists(fmt::format("reserve {}: there is such a VM ({})", label(), record_.id), record_.config.name,
                        record_.id);
  }

  void on(const FinalizeCreate& event) {
    require_placeholder();
    configure(event.config);
    record_.state = VmState::kCreated;
    open_storage(Reason::kBoot);
  }

  void on(const RollbackCreate&) {
    require_placeholder();
    removed_ = true;
  }

  void on(const FinalizeClone& event) {
    require_placeholder();
    configure(event.config);
    open_storage(Reason::kClone, event.source_snapshot_id);
    open_compute(Reason::kClone, event.source_snapshot_id);
    run(event.process);
  }

  void on(const MarkStarted& event) {
    require_finalized();
    // Whoever starts a VM knows that an earlier VMM of it is dead; when it died was not seen.
    if (record_.compute_open()) close_crashed(std::nullopt);
    open_compute(boot_reason());
    run(event.process);
  }

  void on(const MarkStopped&) {
    require_finalized();
    // A hibernated VM is a stopped one that keeps its memory: to stop it again is a repetition, and must not lose that.
    const bool keep_memory = record_.state == VmState::kHibernated && !record_.compute_open();
    if (record_.compute_open()) close_compute(Reason::kStopUser);
    if (!keep_memory) record_.state = VmState::kStopped;
    record_.process.reset();
  }

  // Nobody has proven the process dead: the interval stays open, and the process known.
  void on(const MarkError&) {
    require_finalized();
    record_.state = VmState::kError;
  }

  void on(const Relabel& event) {
    require_finalized();
    Labels labels = merge_labels(record_.config.labels, event.labels);
    const bool metered_changed = metered_labels(labels, context_.metered_labels) !=
                                 metered_labels(record_.config.labels, context_.metered_labels);
    const bool reopen_compute = metered_changed && record_.compute_open();
    const bool reopen_storage = metered_changed && record_.storage_open();
    // Storage within compute, so that compute is never open while storage is not.
    if (reopen_compute) say_compute_stop(Reason::kRelabel);
    if (reopen_storage) close_storage(Reason::kRelabel);
    record_.config.labels = std::move(labels);
    if (reopen_storage) open_storage(Reason::kRelabel);
    if (reopen_compute) {
      record_.compute_interval = say_compute_start(Reason::kRelabel);
      // The VMM is the same, and so is `started`; the interval is a new one. A proof of life from before it is no use.
      record_.compute_since = context_.now;
      record_.last_alive.reset();
    }
  }

  void on(const FoundDead& event) {
    require_finalized();
    if (!record_.compute_open()) refuse("any state with an open compute interval");
    close_crashed(event.death);
    if (record_.state == VmState::kRunning) record_.state = VmState::kStopped;
    record_.process.reset();
  }

  void on(const FoundAlive& event) {
    require_finalized();
    if (!record_.compute_open()) open_compute(boot_reason());
    run(event.process);
  }

  // A placeholder has nothing open, so nothing is said of it.
  void on(const Remove& event) {
    if (record_.compute_open()) {
      if (event.stopped_by_caller) {
        close_compute(Reason::kStopUser);
      } else {
        close_crashed(event.death);
      }
    }
    if (record_.storage_open()) close_storage(Reason::kVmRemove);
    removed_ = true;
  }

  void on(const RestoreKilled& event) {
    require_finalized();
    if (record_.compute_open()) close_compute(Reason::kRestore, event.source_snapshot_id);
    record_.state = VmState::kStopped;
    record_.dirty = record_.dirty || event.dirty;
    record_.process.reset();
  }

  void on(const RestoreDone& event) {
    require_finalized();
    if (record_.compute_open()) refuse("any state with a closed compute interval");
    if (record_.storage_open()) close_storage(Reason::kRestore, event.source_snapshot_id);
    configure(event.config);
    open_storage(Reason::kRestore, event.source_snapshot_id);
    open_compute(Reason::kRestore, event.source_snapshot_id);
    run(event.process);
    record_.dirty = false;
  }

  void on(const RestoreFailed& event) {
    require_finalized();
    record_.state = VmState::kError;
    record_.dirty = event.dirty;
  }

  void on(const Hibernate& event) {
    require_finalized();
    if (record_.state != VmState::kRunning || !record_.compute_open()) refuse("running with an open compute interval");
    if (event.kept_snapshot_id.empty()) {
      throw InvalidArgument(fmt::format("{} {}: the kept snapshot's id is empty", event_, label()));
    }
    close_compute(Reason::kStopUser);
    record_.state = VmState::kHibernated;
    record_.kept_snapshot_id = event.kept_snapshot_id;
    record_.process.reset();
  }

  void on(const Wake& event) {
    require_finalized();
    if (record_.state != VmState::kHibernated || record_.compute_open()) {
      refuse("hibernated with a closed compute interval");
    }
    open_compute(Reason::kHibernateWake, std::exchange(record_.kept_snapshot_id, {}));
    run(event.process);
  }

  void on(const SnapshotTaken& event) {
    require_finalized();
    std::erase_if(record_.snapshot_ids, [&](const std::string& id) {
      return id == event.snapshot_id || std::ranges::find(event.gone, id) != event.gone.end();
    });
    record_.snapshot_ids.push_back(event.snapshot_id);
  }

  Outcome<VmRecord> finish() {
    if (removed_) return {std::nullopt, entries_.take()};
    ++record_.generation;
    record_.updated_at_ns = context_.now.wall_ns;
    return {std::move(record_), entries_.take()};
  }

 private:
  [[nodiscard]] const std::string& label() const {
    return record_.config.name.empty() ? record_.id : record_.config.name;
  }

  [[noreturn]] void refuse(std::string_view allowed) const {
    const std::string state(to_string(record_.state));
    throw InvalidState(fmt::format("{} {}: it is {}, allowed: {}", event_, label(), state, allowed), state);
  }

  void require_placeholder() const {
    if (record_.state != VmState::kCreating) refuse(kCreatingOnly);
    if (record_.compute_open() || record_.storage_open()) {
      throw Error(fmt::format("{} {}: broken record: a placeholder with an open interval", event_, label()));
    }
  }

  void require_finalized() const {
    if (record_.state == VmState::kCreating) refuse(kAllButCreating);
  }

  void configure(const VmConfig& config) {
    check_labels(config.labels);
    record_.shape = shape_of(config);
    record_.config = config;
  }

  // The VMM of this process is alive now, and its compute interval open.
  void run(const std::optional<ProcessIdentity>& process) {
    record_.state = VmState::kRunning;
    record_.process = process;
    record_.last_alive = context_.now;
    record_.first_booted = true;
  }

  [[nodiscard]] Reason boot_reason() const { return record_.first_booted ? Reason::kRestart : Reason::kBoot; }

  [[nodiscard]] metering::Entry entry(Kind kind, Reason reason, const std::string& source) const {
    metering::Entry entry;
    entry.kind = kind;
    entry.vm_id = record_.id;
    entry.source_snapshot_id = source;
    entry.reason = reason;
    entry.hypervisor = record_.hypervisor;
    entry.shape = record_.shape;
    if (metering::is_start(kind)) entry.labels = metered_labels(record_.config.labels, context_.metered_labels);
    return entry;
  }

  std::uint64_t say_compute_start(Reason reason, const std::string& source = {}) {
    if (!record_.storage_open()) {
      throw Error(fmt::format("{} {}: broken record: it has no open storage interval", event_, label()));
    }
    return entries_.start(entry(Kind::kVmComputeStart, reason, source));
  }

  void say_compute_stop(Reason reason, const std::string& source = {}) {
    entries_.stop(entry(Kind::kVmComputeStop, reason, source), record_.compute_interval);
  }

  void open_compute(Reason reason, const std::string& source = {}) {
    record_.compute_interval = say_compute_start(reason, source);
    record_.started = context_.now;
    record_.stopped_at_ns.reset();
  }

  void close_compute(Reason reason, const std::string& source = {}) {
    say_compute_stop(reason, source);
    mark_closed();
  }

  void close_crashed(const std::optional<Death>& death) {
    metering::Entry stop = entry(Kind::kVmComputeStop, Reason::kStopCrash, {});
    add_crash_evidence(record_, death, context_.now, stop);
    entries_.stop(std::move(stop), record_.compute_interval);
    mark_closed();
  }

  void mark_closed() {
    record_.stopped_at_ns = context_.now.wall_ns;
    record_.compute_since.reset();
    record_.last_alive.reset();
  }

  void open_storage(Reason reason, const std::string& source = {}) {
    record_.storage_interval = entries_.start(entry(Kind::kVmStorageStart, reason, source));
  }

  void close_storage(Reason reason, const std::string& source = {}) {
    entries_.stop(entry(Kind::kVmStorageStop, reason, source), record_.storage_interval);
  }

  VmRecord record_;
  std::string_view event_;
  const Context& context_;
  Entries entries_;
  bool removed_ = false;
};

Outcome<VmRecord> reserve(const VmRecord& wanted, const Context& context) {
  if (wanted.id.empty()) throw InvalidArgument(fmt::format("reserve {}: the VM's id is empty", wanted.config.name));
  check_labels(wanted.config.labels);
  shape_of(wanted.config);  // refuses what could not be billed later
  VmRecord record;
  record.id = wanted.id;
  record.hypervisor = wanted.hypervisor;
  record.config = wanted.config;
  record.run_dir = wanted.run_dir;
  record.log_dir = wanted.log_dir;
  record.state = VmState::kCreating;
  record.generation = 1;
  record.created_at_ns = context.now.wall_ns;
  record.updated_at_ns = context.now.wall_ns;
  return {std::move(record), {}};
}

struct EventName {
  std::string_view operator()(const Reserve&) const { return "reserve"; }
  std::string_view operator()(const FinalizeCreate&) const { return "finalize create"; }
  std::string_view operator()(const RollbackCreate&) const { return "rollback create"; }
  std::string_view operator()(const MarkStarted&) const { return "mark started"; }
  std::string_view operator()(const MarkStopped&) const { return "mark stopped"; }
  std::string_view operator()(const MarkError&) const { return "mark error"; }
  std::string_view operator()(const Relabel&) const { return "relabel"; }
  std::string_view operator()(const FoundDead&) const { return "found dead"; }
  std::string_view operator()(const FoundAlive&) const { return "found alive"; }
  std::string_view operator()(const Remove&) const { return "remove"; }
  std::string_view operator()(const FinalizeClone&) const { return "finalize clone"; }
  std::string_view operator()(const RestoreKilled&) const { return "restore killed"; }
  std::string_view operator()(const RestoreDone&) const { return "restore done"; }
  std::string_view operator()(const RestoreFailed&) const { return "restore failed"; }
  std::string_view operator()(const Hibernate&) const { return "hibernate"; }
  std::string_view operator()(const Wake&) const { return "wake"; }
  std::string_view operator()(const SnapshotTaken&) const { return "snapshot taken"; }
};

}  // namespace

std::string_view name_of(const VmEvent& event) { return std::visit(EventName{}, event); }

Outcome<VmRecord> apply(const std::optional<VmRecord>& record, const VmEvent& event, const Context& context) {
  const std::string_view name = name_of(event);
  if (!record) {
    if (const auto* wanted = std::get_if<Reserve>(&event)) return reserve(wanted->record, context);
    throw NotFound(fmt::format("{}: there is no such VM (any more)", name), "");
  }
  Step step(*record, name, context);
  std::visit([&step](const auto& known) { step.on(known); }, event);
  return step.finish();
}

}  // namespace cocoon::lifecycle
