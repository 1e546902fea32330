// Making a snapshot: lock and folder → name → (its maker fills the folder) → on the disk → final name → record.

#include <stdio.h>
#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "cocoon/error.h"
#include "cocoon/lifecycle/transition.h"
#include "cocoon/metering/text.h"
#include "cocoon/snapshot/commit.h"
#include "cocoon/snapshot/local_file.h"
#include "cocoon/system/archive.h"

namespace cocoon::snapshot {
namespace {

constexpr std::size_t kLongestDescription = 4096;

void check(const Spec& spec) {
  if (!spec.name.empty()) lifecycle::check_name(spec.name);
  if (!spec.hypervisor.empty()) {
    try {
      lifecycle::check_name(spec.hypervisor);
    } catch (const InvalidArgument& error) {
      throw InvalidArgument(fmt::format("hypervisor: {}", error.what()));
    }
  }
  if (spec.description.size() > kLongestDescription || !metering::is_utf8(spec.description))
    throw InvalidArgument(fmt::format("description: {} ({} bytes), allowed: UTF-8 of at most {} bytes",
                                      metering::quote(spec.description), spec.description.size(), kLongestDescription));
  if (spec.cpu < 0 || spec.mem_bytes < 0 || spec.storage_bytes < 0)
    throw InvalidArgument(fmt::format("snapshot {}: cpu {}, memory {}, storage {}: none can be negative", spec.name,
                                      spec.cpu, spec.mem_bytes, spec.storage_bytes));
}

// Puts every file on the disk. Logical bytes: what is billed does not depend on where a file has holes.
std::int64_t settle(const system::Path& folder, system::Cancel& cancel) {
  std::int64_t bytes = 0;
  for (const auto& name : system::list_dir(folder)) {
    const auto path = folder / name;
    struct stat status{};
    if (::lstat(path.c_str(), &status) != 0)
      throw StoreError(system_message("stat " + path.string(), errno), path.string(), errno);
    // What is in it must fit into an archive.
    if (!S_ISREG(status.st_mode) || !system::is_member_name(name))
      throw InvalidArgument(fmt::format(
          "snapshot: {} is not a plain file with a plain name, and a snapshot holds nothing else", path.string()));
    if (__builtin_add_overflow(bytes, status.st_size, &bytes))
      throw InvalidArgument(fmt::format("snapshot: the files in {} are larger than 2^63 - 1 bytes", folder.string()));
    system::sync_file(path, cancel);
  }
  system::sync_dir(folder);
  return bytes;
}

}  // namespace

Staging::Staging(const LocalFile& owner, std::string id, Lock lock)
    : owner_(&owner), id_(std::move(id)), dir_(owner.staging_dir(id_)), lock_(std::move(lock)) {}

Staging::Staging(Staging&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      id_(std::move(other.id_)),
      dir_(std::move(other.dir_)),
      lock_(std::move(other.lock_)),
      reserved_(other.reserved_) {}

void Staging::abandon() noexcept {
  if (owner_ == nullptr || !lock_->is_ours()) return;
  try {
    // A commit that failed after the fact is a commit.
    const auto record = find_record(owner_->store(), id_);
    if (!record || record->pending) owner_->forget(id_, *lock_);
  } catch (const std::exception& error) {
    spdlog::warn("snapshot {}: taking back what was made: {}; gc removes the rest", id_, error.what());
  }
  owner_ = nullptr;
}

Staging LocalFile::stage() {
  for (;;) {
    // 1. The lock says that it has an owner. Die here: an empty lock file, for gc.
    auto id = store::make_id();
    auto lock = Lock::try_exclude(lock_path(id));
    if (!lock) continue;  // gc was faster, and looks whose it is
    Staging staging(*this, std::move(id), *std::move(lock));
    // 2. Die here, or while it is filled: a folder whose lock is free, for gc.
    system::make_private_dirs(staging.dir());
    return staging;
  }
}

void LocalFile::reserve(Staging& staging, const Spec& spec) {
  check(spec);
  SnapshotRecord record;
  record.id = staging.id();
  record.name = spec.name;
  record.description = spec.description;
  record.hypervisor = spec.hypervisor;
  record.vm_id = spec.vm_id;
  record.cpu = spec.cpu;
  record.mem_bytes = spec.mem_bytes;
  record.storage_bytes = spec.storage_bytes;
  record.kept = spec.kept;
  record.data_dir = final_dir(staging.id()).string();
  for (;;) {
    try {
      // 3. The name is taken. Die here: a pending record whose lock is free; gc, rm and the next who wants the name
      //    remove it.
      store_->transact([&](store::Transaction& transaction) {
        apply_in(transaction, staging.id(), lifecycle::ReserveSnapshot{.record = record});
      });
      staging.reserved_ = true;
      return;
    } catch (const AlreadyExists& error) {
      if (error.id.empty() || error.id == staging.id() || discard_stale(error.id) == Stale::kOwned) throw;
    }
  }
}

Staging LocalFile::begin(const Spec& spec) {
  check(spec);
  auto staging = stage();
  reserve(staging, spec);
  return staging;
}

SnapshotRecord LocalFile::publish(Staging staging, system::Cancel& cancel, const Also& also) {
  if (staging.owner_ != this || !staging.reserved_)
    throw Error(fmt::format("publish snapshot {}: it was not reserved here", staging.id()));
  // 4. The bytes are on the disk before the name that promises them.
  const auto bytes = settle(staging.dir(), cancel);
  cancel.check();
  // 5. Die here: a pending record, and a folder under its final name, whose lock is free; gc removes both.
  const auto folder = final_dir(staging.id());
  if (::rename(staging.dir().c_str(), folder.c_str()) != 0)
    throw StoreError(system_message("publish snapshot " + folder.string(), errno), folder.string(), errno);
  system::sync_dir(folder_);
  // 6. The snapshot, its storage interval, and what its maker has to say, in one transaction.
  std::optional<SnapshotRecord> ready;
  store_->transact([&](store::Transaction& transaction) {
    if (also) also(transaction);
    ready = apply_in(transaction, staging.id(), lifecycle::FinalizeSnapshot{.size_bytes = bytes});
  });
  staging.owner_ = nullptr;
  return *std::move(ready);
}

}  // namespace cocoon::snapshot
