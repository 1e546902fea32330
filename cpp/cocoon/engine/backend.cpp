#include "cocoon/engine/backend.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/engine/commit.h"
#include "cocoon/engine/op_lock.h"
#include "cocoon/engine/paused_guest.h"
#include "cocoon/error.h"

namespace cocoon::engine {
namespace {

using namespace std::chrono_literals;
using lifecycle::VmRecord;

// Waiting for guests is idle time, so more threads than cores; a bound, so that a batch of thousands stays polite.
constexpr std::size_t kMaxThreads = 32;
constexpr auto kApiTimeout = 10s;

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

bool is_cancelled(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Cancelled&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

Backend::Backend(Node& node, std::string_view hypervisor, BackendOptions options)
    : node_(&node), driver_(&node.driver(hypervisor)), options_(std::move(options)) {
  if (!options_.binary.empty()) options_.binary = std::filesystem::absolute(options_.binary);
}

system::Path Backend::binary() const { return node_->find_binary(hypervisor(), options_.binary); }

std::string Backend::resolve(std::string_view ref) const {
  return node_->store().resolve(store::Table::kVm, ref, hypervisor()).id;
}

VmView Backend::view(VmRecord vm) const { return node_->view(std::move(vm)); }

Backend::Ids Backend::for_each(Refs refs, system::Cancel& cancel, std::string_view verb,
                               const std::function<void(const std::string& id)>& one) {
  struct Item {
    std::string ref;
    std::string id;
    std::exception_ptr error;
  };
  std::vector<Item> items;
  for (const auto& ref : refs) {
    Item item{.ref = ref, .id = {}, .error = {}};
    try {
      item.id = resolve(ref);
      // Two references of one VM are one piece of work.
      const auto is_same = [&](const Item& other) { return other.id == item.id; };
      if (std::any_of(items.begin(), items.end(), is_same)) continue;
    } catch (const Error&) {
      item.error = std::current_exception();
    }
    items.push_back(std::move(item));
  }

  const auto run = [&](Item& item) {
    if (item.error) return;
    try {
      cancel.check();
      one(item.id);
    } catch (...) {
      item.error = std::current_exception();
    }
  };
  if (items.size() == 1) {
    run(items.front());
    if (items.front().error) std::rethrow_exception(items.front().error);
    return {items.front().id};
  }

  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> running{0};
  std::vector<std::jthread> threads;
  const auto count = std::min(items.size(), kMaxThreads);
  running = count;
  threads.reserve(count);
  try {
    while (threads.size() < count)
      threads.emplace_back([&] {
        for (auto at = next++; at < items.size(); at = next++) run(items[at]);
        --running;
      });
  } catch (const std::system_error&) {
    // The system has no more threads for us: fewer do the work as well, but none cannot.
    running -= count - threads.size();
    if (threads.empty()) throw;
  }
  // The caller's thread does nothing but listen for Ctrl-C; a request makes each worker undo what it began.
  std::exception_ptr interrupted;
  while (running > 0) {
    try {
      if (interrupted)
        std::this_thread::sleep_for(1ms);
      else
        system::pause_for(1ms, cancel);
    } catch (...) {
      interrupted = std::current_exception();
      cancel.request();
    }
  }
  threads.clear();
  if (interrupted) std::rethrow_exception(interrupted);

  Ids succeeded;
  std::map<std::string, std::exception_ptr> errors;
  for (auto& item : items) {
    if (!item.error)
      succeeded.push_back(item.id);
    else if (is_cancelled(item.error))
      std::rethrow_exception(item.error);
    else
      errors.emplace(item.ref, item.error);
  }
  if (errors.empty()) return succeeded;
  std::vector<std::string> messages;
  messages.reserve(errors.size());
  for (const auto& [ref, error] : errors) messages.push_back(fmt::format("{}: {}", ref, message_of(error)));
  const auto message =
      fmt::format("{} failed for {} of {}: {}", verb, errors.size(), items.size(), fmt::join(messages, "; "));
  throw BulkError(message, std::move(succeeded), std::move(errors));
}

VmView Backend::inspect(std::string_view ref) const {
  return view(vm_from_row(node_->store().resolve(store::Table::kVm, ref, hypervisor())));
}

std::vector<VmView> Backend::list(std::optional<lifecycle::VmState> state,
                                  const std::map<std::string, std::string>& labels) const {
  const auto rows = node_->store().list(store::Table::kVm, hypervisor(), state ? to_string(*state) : "");
  std::vector<VmView> views;
  views.reserve(rows.size());
  for (const auto& row : rows) {
    auto vm = vm_from_row(row);
    const bool matches = std::all_of(labels.begin(), labels.end(), [&](const auto& wanted) {
      const auto found = vm.config.labels.find(wanted.first);
      return found != vm.config.labels.end() && found->second == wanted.second;
    });
    if (matches) views.push_back(view(std::move(vm)));
  }
  return views;
}

VmView Backend::relabel(std::string_view ref, const std::map<std::string, std::optional<std::string>>& labels,
                        system::Cancel& cancel) {
  const auto id = resolve(ref);
  // A start that is under way would lose its race against this commit; it is waited for instead.
  return with_op_lock(*node_, id, cancel, [&] {
    auto after = commit(node_->store(), id, lifecycle::Relabel{.labels = labels});
    return view(*std::move(after));
  });
}

VmRecord Backend::load_alive(const std::string& id, std::string_view verb, system::Cancel& cancel) const {
  auto vm = load_vm(node_->store(), id);
  if (settle(*driver_, vm, verb, cancel).life == Life::kDead)
    throw InvalidState(fmt::format("{} {}: its VMM is not alive (state {})", verb, vm.config.name, to_string(vm.state)),
                       std::string(to_string(vm.state)));
  return vm;
}

void Backend::ask_vmm(std::string_view ref, std::string_view verb, Request request, system::Cancel& cancel) {
  const auto id = resolve(ref);
  with_op_lock(*node_, id, cancel, [&] {
    const auto vm = load_alive(id, verb, cancel);
    try {
      (driver_->*request)(vm, kApiTimeout, cancel);
    } catch (const VmmError& error) {
      explain(vm, verb, "while it was asked", error);
      throw;
    }
    PausedGuest::forget(vm);
  });
}

void Backend::pause(std::string_view ref, system::Cancel& cancel) {
  ask_vmm(ref, "pause", &vmm::Driver::pause, cancel);
}

void Backend::resume(std::string_view ref, system::Cancel& cancel) {
  ask_vmm(ref, "resume", &vmm::Driver::resume, cancel);
}

system::Path Backend::console_path(std::string_view ref) const {
  return driver_->console(load_vm(node_->store(), resolve(ref)));
}

system::Path Backend::console_log_path(std::string_view ref) const {
  const auto vm = load_vm(node_->store(), resolve(ref));
  const auto log = driver_->console_log(vm);
  if (!log)
    throw InvalidArgument(fmt::format("console log of {}: {} writes none; what the guest prints waits at its console",
                                      vm.config.name, hypervisor()));
  return *log;
}

system::Path Backend::log_path(std::string_view ref) const {
  return driver_->log(load_vm(node_->store(), resolve(ref)));
}

void Backend::mark_started(Refs refs, system::Cancel& cancel) {
  for_each(refs, cancel, "mark started", [&](const std::string& id) {
    const auto vm = load_vm(node_->store(), id);
    const auto alive = probe(*driver_, vm);
    std::optional<lifecycle::ProcessIdentity> process;
    if (alive.process) process = to_record(*alive.process);
    commit(node_->store(), id, lifecycle::MarkStarted{.process = process});
  });
}

void Backend::mark_stopped_one(const std::string& id, system::Cancel& cancel) {
  for (;;) {
    const auto vm = load_vm(node_->store(), id);
    const auto alive = settle(*driver_, vm, "mark stopped", cancel);
    if (alive.life == Life::kAlive)
      throw InvalidState(
          fmt::format("mark stopped {}: its VMM (pid {}) is alive, stop it", vm.config.name, alive.process->pid),
          std::string(to_string(vm.state)));
    const auto done = commit_if(node_->store(), vm, lifecycle::MarkStopped{});
    if (done.race != Race::kChanged) {
      if (done.race == Race::kGone) throw NotFound(fmt::format("mark stopped {}: it was removed", id), id);
      return;
    }
  }
}

void Backend::mark_stopped(Refs refs, system::Cancel& cancel) {
  for_each(refs, cancel, "mark stopped", [&](const std::string& id) { mark_stopped_one(id, cancel); });
}

void Backend::mark_error(std::string_view ref) { commit(node_->store(), resolve(ref), lifecycle::MarkError{}); }

Backend::Ids Backend::start(Refs refs, system::Cancel& cancel) {
  return for_each(refs, cancel, "start", [&](const std::string& id) { start_one(id, cancel); });
}

Backend::Ids Backend::stop(Refs refs, const StopOptions& options, system::Cancel& cancel) {
  return for_each(refs, cancel, "stop", [&](const std::string& id) { stop_one(id, options, cancel); });
}

Backend::Ids Backend::restart(Refs refs, const StopOptions& options, system::Cancel& cancel) {
  return for_each(refs, cancel, "restart", [&](const std::string& id) {
    with_op_lock(*node_, id, cancel, [&] {
      stop_locked(id, options, cancel);
      start_locked(id, cancel);
    });
  });
}

Backend::Ids Backend::remove(Refs refs, bool force, system::Cancel& cancel) {
  return for_each(refs, cancel, "remove", [&](const std::string& id) { remove_one(id, force, cancel); });
}

}  // namespace cocoon::engine
