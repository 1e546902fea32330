#pragma once
// Records through the store: load them, and commit one event of one record with its ledger entries.

#include <cstdint>
#include <optional>
#include <string_view>

#include "cocoon/error.h"
#include "cocoon/lifecycle/record.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::engine {

lifecycle::VmRecord vm_from_row(const store::Row& row);

std::optional<lifecycle::VmRecord> find_vm(const store::MetaStore& store, std::string_view id);

// As it is now. Errors NotFound: it was removed.
lifecycle::VmRecord load_vm(const store::MetaStore& store, std::string_view id);

// Applies the event whatever the record's generation is.
// Durable  the record and its entries, on return; a placeholder with the VM that is made of it.
// Errors as lifecycle::apply; StoreError.
std::optional<lifecycle::VmRecord> commit(store::MetaStore& store, std::string_view id,
                                          const lifecycle::VmEvent& event);

// The same inside a transaction that is open already.
std::optional<lifecycle::VmRecord> commit_in(store::MetaStore& store, store::Transaction& transaction,
                                             std::string_view id, const lifecycle::VmEvent& event);

enum class Race {
  kWon,
  kGone,     // the record was removed meanwhile
  kChanged,  // somebody committed meanwhile: what was decided from the old record is void
};

struct Committed {
  Race race = Race::kWon;
  std::optional<lifecycle::VmRecord> record;  // as it is now
};

// What a sequence throws that has lost such a race for good. `now`: the record as it is; `consequence` may be empty.
NotFound removed_meanwhile(std::string_view verb, const lifecycle::VmRecord& vm);
InvalidState changed_meanwhile(std::string_view verb, const lifecycle::VmRecord& now, std::string_view consequence);

// Applies the event only if the record's generation is still the one it was decided from. A lost race changes nothing.
Committed commit_if(store::MetaStore& store, const lifecycle::VmRecord& seen, const lifecycle::VmEvent& event);

// The same inside a transaction that is open already, so that another record changes with it or not at all: whoever
// must not lose the race throws if this did, which rolls everything back.
Committed commit_if_in(store::MetaStore& store, store::Transaction& transaction, const lifecycle::VmRecord& seen,
                       const lifecycle::VmEvent& event);

}  // namespace cocoon::engine
