#pragma once
// Garbage: what dead processes left behind, and snapshots that a policy gives up.
//
// Nothing is taken from the living: what has an owner is locked by it, and a lock that can be had proves that there is
// none. Each thing is looked at again under its lock, and its record goes in one transaction with its ledger entries.
// So it may run at any time, in many processes at once, and a second run finds nothing.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cocoon::engine {

struct GcOptions {
  bool dry_run = false;  // only say what would be done
  // Snapshots to give up: those that any of these names. None: none. One in use, or that keeps a hibernated VM's
  // memory, never goes.
  std::optional<std::int64_t> keep_last;        // all but the newest
  std::optional<std::chrono::seconds> max_age;  // since it was made, cloned, restored or exported last
  std::optional<std::int64_t> max_bytes;        // the longest unused ones, until the others fit (logical bytes)
};

struct GcItem {
  std::string module;  // vms, logs, snapshots, staging, locks
  std::string what;    // placeholder, run-dir, snapshot, …
  std::string id;
  std::string path;  // "": it has none
  std::string reason;
  std::int64_t bytes = 0;  // on the disk
  std::string error;       // why it is still there
};

struct GcReport {
  bool dry_run = false;
  std::vector<GcItem> removed;  // or would be, in a dry run
  std::vector<GcItem> failed;
  std::int64_t kept = 0;  // VMs and snapshots that stay
};

}  // namespace cocoon::engine
