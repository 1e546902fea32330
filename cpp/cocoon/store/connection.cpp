#include "cocoon/store/connection.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <SQLiteCpp/Exception.h>
#include <fmt/format.h>
#include <sqlite3.h>

#include "cocoon/error.h"

namespace cocoon::store {
namespace {

// Writers queue on store.lock, so SQLite itself is busy only while somebody opens, closes or recovers the database.
constexpr int kBusyTimeoutMs = 10'000;

// What the operating system said, as far as SQLite knows it.
int system_code(sqlite3* handle, int code) {
  const int primary = code & 0xff;
  if (primary == SQLITE_FULL) return ENOSPC;
  if (primary == SQLITE_IOERR || primary == SQLITE_CANTOPEN) return sqlite3_system_errno(handle);
  return 0;
}

}  // namespace

Connection::Connection(std::filesystem::path path, Mode mode) : path_(std::move(path)) {
  try {
    // Each connection is used by one thread at a time: SQLite's own mutexes would only cost.
    database_ = std::make_unique<SQLite::Database>(
        path_.string(), SQLite::OPEN_READWRITE | SQLite::OPEN_NOMUTEX | SQLite::OPEN_PRIVATECACHE, kBusyTimeoutMs);
  } catch (const SQLite::Exception& error) {
    throw StoreError(fmt::format("open database {}: {}", path_.string(), error.what()), path_.string());
  }
  if (sqlite3_db_readonly(database_->getHandle(), "main") == 1)
    throw StoreError(fmt::format("open database {}: it may only be read", path_.string()), path_.string(), EACCES);
  sqlite3_extended_result_codes(database_->getHandle(), 1);
  // NORMAL: a commit does not sync the WAL; the drain does, once for all that committed before it.
  // secure_delete costs a write of every page that pruning frees, and ledger lines are no secrets to their disk.
  execute("PRAGMA synchronous = NORMAL; PRAGMA secure_delete = OFF; PRAGMA trusted_schema = OFF;");
  // The writer keeps the indexes and inner pages of 100 000 records at hand, in KiB.
  execute(mode == Mode::kRead ? "PRAGMA query_only = ON;" : "PRAGMA cache_size = -16384;");
  sqlite3_wal_hook(
      database_->getHandle(),
      [](void* self, sqlite3* /*handle*/, const char* /*name*/, int frames) {
        static_cast<Connection*>(self)->wal_frames_ = static_cast<std::uint64_t>(frames);
        return SQLITE_OK;
      },
      this);
}

Connection::~Connection() = default;

void Connection::fail(std::string_view tried, int code) const {
  sqlite3* handle = database_->getHandle();
  const int system = system_code(handle, code);
  auto message = fmt::format("{} {}: {}", tried, path_.string(), sqlite3_errmsg(handle));
  if (system != 0) message += fmt::format(" ({})", std::strerror(system));
  throw StoreError(message, path_.string(), system);
}

void Connection::execute(const char* sql) {
  const Use use(*this);
  const int code = database_->tryExec(sql);
  if (code != SQLITE_OK) fail("database", code);
}

void Connection::roll_back() noexcept {
  const Use use(*this);
  if (sqlite3_get_autocommit(database_->getHandle()) == 0) database_->tryExec("ROLLBACK;");
}

bool Connection::checkpoint() noexcept {
  const Use use(*this);
  return sqlite3_wal_checkpoint_v2(database_->getHandle(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr) ==
         SQLITE_OK;
}

SQLite::Statement& Connection::prepared(const char* sql) {
  for (const auto& [text, statement] : statements_) {
    if (text == sql) return *statement;
  }
  try {
    statements_.emplace_back(sql, std::make_unique<SQLite::Statement>(*database_, sql));
  } catch (const SQLite::Exception& error) {
    fail("database", error.getExtendedErrorCode());
  }
  return *statements_.back().second;
}

bool Connection::abandon() {
  if (uses_ != 0) return false;
  // With this set, closing neither checkpoints nor deletes the WAL; unlocking touches this process's locks only, and
  // it has none (fork inherits no POSIX locks).
  sqlite3_db_config(database_->getHandle(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
  statements_.clear();
  database_.reset();
  return true;
}

Query::Query(Connection& connection, const char* sql)
    : connection_(connection), use_(connection), statement_(connection.prepared(sql)) {}

Query& Query::bind(int index, const std::string& text) {
  statement_.bindNoCopy(index, text);
  return *this;
}

Query& Query::bind(int index, std::int64_t number) {
  statement_.bind(index, number);
  return *this;
}

bool Query::next() {
  const int code = statement_.tryExecuteStep();
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) connection_.fail("database", code);
  return false;
}

bool Query::run_unless_taken() {
  const int code = statement_.tryExecuteStep();
  if (code == SQLITE_DONE) return true;
  if ((code & 0xff) == SQLITE_CONSTRAINT) {
    const int extended = sqlite3_extended_errcode(connection_.database_->getHandle());
    if (extended == SQLITE_CONSTRAINT_UNIQUE || extended == SQLITE_CONSTRAINT_PRIMARYKEY) return false;
  }
  connection_.fail("database", code);
}

}  // namespace cocoon::store
