#include "cocoon/store/schema.h"

#include <array>
#include <cstdint>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::store {
namespace {

constexpr std::int64_t kApplicationId = 0x436f636f;  // "Coco"

// kMigrations[i] leads from version i to version i + 1. A released one is never edited.
//
// Version 1. `n` is the order of creation. Only state, generation and document change in a usual transition, and no
// index holds them. The outbox is not AUTOINCREMENT, whose counter is a page of its own in every commit: the next seq
// follows from its last row, or from `given_through` when there is none. A transition then writes two pages.
constexpr std::array kMigrations = {
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE vm ("
    "  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, hypervisor TEXT NOT NULL, name TEXT NOT NULL,"
    "  state TEXT NOT NULL, generation INTEGER NOT NULL, document TEXT NOT NULL,"
    "  UNIQUE (name, hypervisor)) STRICT;"
    "CREATE TABLE snapshot ("
    "  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, hypervisor TEXT NOT NULL, name TEXT NOT NULL,"
    "  state TEXT NOT NULL, generation INTEGER NOT NULL, document TEXT NOT NULL) STRICT;"
    "CREATE UNIQUE INDEX snapshot_name ON snapshot (name) WHERE name <> '';"
    "CREATE TABLE outbox (seq INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT;",
};
constexpr std::int64_t kVersion = kMigrations.size();

std::int64_t pragma_number(Connection& connection, const char* sql) {
  Query query(connection, sql);
  return query.next() ? query.number(0) : 0;
}

[[noreturn]] void refuse(const Connection& connection, const std::string& why) {
  throw StoreError(fmt::format("open database {}: {}", connection.path().string(), why), connection.path().string());
}

void migrate(Connection& connection, std::int64_t from) {
  connection.execute("BEGIN IMMEDIATE;");
  try {
    for (auto version = from; version < kVersion; ++version)
      connection.execute(kMigrations.at(static_cast<std::size_t>(version)));
    if (from == 0) {
      set_meta_value(connection, kNodeId, make_id());
      set_meta_value(connection, kLedgerId, make_id());
      set_meta_value(connection, kMeteredLabels, "");
      set_meta_value(connection, kPrunedThrough, "0");
      set_meta_value(connection, kGivenThrough, "0");
    }
    connection.execute(
        fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT;", kApplicationId, kVersion).c_str());
  } catch (...) {
    connection.roll_back();
    throw;
  }
}

}  // namespace

bool prepare_schema(Connection& connection) {
  // Nothing is written, not even the journal mode, before the database is known to be ours or empty.
  const auto application = pragma_number(connection, "PRAGMA application_id");
  const auto version = pragma_number(connection, "PRAGMA user_version");
  const auto objects = pragma_number(connection, "SELECT count(*) FROM sqlite_master");
  if (application != kApplicationId && (application != 0 || version != 0 || objects != 0))
    refuse(connection,
           fmt::format("not a database of cocoon (application id {:#x}, {} tables and indexes)", application, objects));
  if (version > kVersion)
    refuse(connection, fmt::format("it has schema version {}, this engine knows versions up to {}: it was made by a "
                                   "newer engine, use that one",
                                   version, kVersion));
  std::string mode;
  {
    Query query(connection, "PRAGMA journal_mode = WAL");
    if (query.next()) mode = query.text(0);
  }
  if (mode != "wal") refuse(connection, fmt::format("it cannot be put into WAL mode (it is in mode {})", mode));
  if (version == kVersion) return false;
  migrate(connection, version);
  return true;
}

std::string meta_value(Connection& connection, const std::string& key) {
  Query query(connection, "SELECT value FROM meta WHERE key = ?1");
  query.bind(1, key);
  if (!query.next()) refuse(connection, fmt::format("damaged: it has no {}", key));
  return query.text(0);
}

void set_meta_value(Connection& connection, const std::string& key, const std::string& value) {
  Query(connection, "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")
      .bind(1, key)
      .bind(2, value)
      .run();
}

}  // namespace cocoon::store
