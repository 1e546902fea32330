#pragma once
// The way of committed entries from the outbox to the recorder. One kind per kind of recorder.
// Threads  any; processes queue on the ledger's lock.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "cocoon/error.h"
#include "cocoon/metering/recorder.h"
#include "cocoon/store/database.h"
#include "cocoon/store/outbox.h"

namespace cocoon::store {

class Outlet {
 public:
  Outlet() = default;
  virtual ~Outlet() = default;
  Outlet(const Outlet&) = delete;
  Outlet& operator=(const Outlet&) = delete;

  // Right after a commit, in seq order: what it put into the outbox. Saves reading it back, where nobody else drains.
  // Requires the store's lock.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): those that keep them move them out
  virtual void committed(std::vector<OutboxRow> /*rows*/) {}

  // After a commit whose last entry is `through` (0: whatever is there, on open).
  // Durable  on return, what committed before the call survives a power cut, whether or not the recorder took it.
  // Errors   StoreError: it could not be made durable. A recorder that fails is a warning, once until it works again.
  virtual void deliver(std::uint64_t through) = 0;

  // As MetaStore::flush and pending.
  virtual void flush() = 0;
  [[nodiscard]] virtual std::uint64_t pending() = 0;

  // As MetaStore::rotate.
  virtual std::filesystem::path rotate() {
    throw LedgerError("rotate the ledger: this node's recorder is not a file, so there is none", {});
  }
};

struct DrainOptions {
  std::size_t prune_every = 512;
  std::uint64_t rotate_bytes = 0;
};

// References must outlive the outlet.
std::unique_ptr<Outlet> make_ledger_drain(Database& database, const std::filesystem::path& ledger,
                                          DrainOptions options);
std::unique_ptr<Outlet> make_call_delivery(Database& database, metering::Recorder& recorder);
std::unique_ptr<Outlet> make_no_delivery(Database& database);

}  // namespace cocoon::store
