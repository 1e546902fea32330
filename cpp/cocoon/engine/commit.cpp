#include "cocoon/engine/commit.h"

#include <string>
#include <variant>

#include <fmt/format.h>

#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using lifecycle::VmRecord;

store::Row to_row(const VmRecord& vm) {
  return {.id = vm.id,
          .hypervisor = vm.hypervisor,
          .name = vm.config.name,
          .state = std::string(lifecycle::to_string(vm.state)),
          .generation = vm.generation,
          .document = lifecycle::to_document(vm)};
}

// One transition inside a transaction that is open already.
std::optional<VmRecord> apply_in(store::MetaStore& store, store::Transaction& transaction, std::string_view id,
                                 const std::optional<VmRecord>& record, const lifecycle::VmEvent& event) {
  if (!record && !std::holds_alternative<lifecycle::Reserve>(event))
    throw NotFound(fmt::format("{}: VM {} was removed", lifecycle::name_of(event), id), std::string(id));
  const auto& moment = transaction.moment();
  const lifecycle::Context context{
      .now = {.wall_ns = moment.wall_ns, .uptime_ns = moment.uptime_ns, .boot_id = moment.boot_id},
      .next_seq = transaction.next_seq(),
      .metered_labels = &store.metered_labels()};
  auto outcome = lifecycle::apply(record, event, context);
  if (outcome.record)
    transaction.put(store::Table::kVm, to_row(*outcome.record));
  else
    transaction.erase(store::Table::kVm, id);
  transaction.append(outcome.entries);
  return std::move(outcome.record);
}

std::optional<VmRecord> read_in(store::Transaction& transaction, std::string_view id) {
  const auto row = transaction.find(store::Table::kVm, id);
  if (!row) return std::nullopt;
  return vm_from_row(*row);
}

}  // namespace

VmRecord vm_from_row(const store::Row& row) { return lifecycle::vm_from_document(row.document); }

std::optional<VmRecord> find_vm(const store::MetaStore& store, std::string_view id) {
  const auto row = store.find(store::Table::kVm, id);
  if (!row) return std::nullopt;
  return vm_from_row(*row);
}

VmRecord load_vm(const store::MetaStore& store, std::string_view id) {
  auto vm = find_vm(store, id);
  if (!vm) throw NotFound(fmt::format("VM {}: not found, it was removed", id), std::string(id));
  return *std::move(vm);
}

NotFound removed_meanwhile(std::string_view verb, const VmRecord& vm) {
  return {fmt::format("{} {}: it was removed meanwhile", verb, vm.config.name), vm.id};
}

InvalidState changed_meanwhile(std::string_view verb, const VmRecord& now, std::string_view consequence) {
  const std::string state(lifecycle::to_string(now.state));
  return {fmt::format("{} {}: it was changed meanwhile and is {} now{}{}", verb, now.config.name, state,
                      consequence.empty() ? "" : ", so ", consequence),
          state};
}

std::optional<VmRecord> commit(store::MetaStore& store, std::string_view id, const lifecycle::VmEvent& event) {
  std::optional<VmRecord> after;
  // A placeholder that a power cut took has left folders at most, which gc removes.
  const bool may_be_lost = std::holds_alternative<lifecycle::Reserve>(event);
  store.transact([&](store::Transaction& transaction) { after = commit_in(store, transaction, id, event); },
                 may_be_lost ? store::Durable::kWithNext : store::Durable::kNow);
  return after;
}

std::optional<VmRecord> commit_in(store::MetaStore& store, store::Transaction& transaction, std::string_view id,
                                  const lifecycle::VmEvent& event) {
  return apply_in(store, transaction, id, read_in(transaction, id), event);
}

Committed commit_if(store::MetaStore& store, const VmRecord& seen, const lifecycle::VmEvent& event) {
  Committed result;
  store.transact([&](store::Transaction& transaction) { result = commit_if_in(store, transaction, seen, event); });
  return result;
}

Committed commit_if_in(store::MetaStore& store, store::Transaction& transaction, const VmRecord& seen,
                       const lifecycle::VmEvent& event) {
  const auto record = read_in(transaction, seen.id);
  if (!record) return {.race = Race::kGone, .record = {}};
  if (record->generation != seen.generation) return {.race = Race::kChanged, .record = record};
  return {.race = Race::kWon, .record = apply_in(store, transaction, seen.id, record, event)};
}

}  // namespace cocoon::engine
