#pragma once
// Inside the module: the part of reconcile that gc shares.

#include "cocoon/engine/node.h"
#include "cocoon/system/cancel.h"

namespace cocoon::engine {

// Records and processes alone: the ledger is not read, and what lives is not adopted.
ReconcileReport reconcile_garbage(Node& node, bool fix, system::Cancel& cancel);

}  // namespace cocoon::engine
