#pragma once
// One SQLite connection: our pragmas, prepared statements kept, SQLite's errors as StoreErrors that name the file.
// Threads  one at a time; whoever shares a connection holds a lock around it.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Statement.h>

namespace cocoon::store {

class Connection {
 public:
  enum class Mode : std::uint8_t { kWrite, kRead };

  // Requires the file to exist. Errors StoreError.
  Connection(std::filesystem::path path, Mode mode);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  // Runs a text of statements that give no rows.
  void execute(const char* sql);

  // Leaves no transaction open; SQLite may have rolled it back by itself already.
  void roll_back() noexcept;

  // Frames in the WAL after this connection's last commit, 0 before the first. Whoever writes looks after the WAL:
  // SQLite's automatic checkpoint is off.
  [[nodiscard]] std::uint64_t wal_frames() const { return wal_frames_; }
  // Moves what it can of the WAL into the database. False: it could not, which is tried again after the next commit.
  bool checkpoint() noexcept;

  // While one lives, a fork would carry this connection away in the middle of something.
  class Use {
   public:
    explicit Use(Connection& connection) : connection_(connection) { ++connection_.uses_; }
    ~Use() { --connection_.uses_; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Connection& connection_;
  };

  // In a forked child: the process forked inside a transaction, which is its parent's.
  void carried_away() { ++uses_; }

  // In a forked child, of a connection its parent opened: closes it without a lock taken or a file changed, so that
  // SQLite forgets the locks which the parent holds and this process does not. False: it was in use when the process
  // forked, and must not be touched.
  [[nodiscard]] bool abandon();

 private:
  friend class Query;

  [[nodiscard]] SQLite::Statement& prepared(const char* sql);
  [[noreturn]] void fail(std::string_view tried, int code) const;

  std::filesystem::path path_;
  std::unique_ptr<SQLite::Database> database_;
  std::vector<std::pair<const char*, std::unique_ptr<SQLite::Statement>>> statements_;
  std::atomic<int> uses_{0};
  std::uint64_t wal_frames_ = 0;
};

// One run of a prepared statement; reset when it goes.
class Query {
 public:
  // Requires `sql` to be a string literal: statements are kept by its address.
  Query(Connection& connection, const char* sql);
  ~Query() { statement_.tryReset(); }
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;

  // Requires `text` to outlive the query: it is not copied.
  Query& bind(int index, const std::string& text);
  Query& bind(int index, std::string&& text) = delete;
  Query& bind(int index, std::int64_t number);
  Query& bind_seq(int index, std::uint64_t seq) { return bind(index, static_cast<std::int64_t>(seq)); }

  // True: there is a row. Errors StoreError.
  bool next();
  void run() {
    while (next()) {
    }
  }
  // False: a UNIQUE constraint refused it.
  [[nodiscard]] bool run_unless_taken();

  // Of the row that next() found.
  [[nodiscard]] std::string text(int column) const { return statement_.getColumn(column).getString(); }
  [[nodiscard]] std::int64_t number(int column) const { return statement_.getColumn(column).getInt64(); }
  [[nodiscard]] std::uint64_t seq(int column) const { return static_cast<std::uint64_t>(number(column)); }
  // Rows that the statement inserted, changed or deleted.
  [[nodiscard]] int changes() const { return statement_.getChanges(); }

 private:
  Connection& connection_;
  Connection::Use use_;
  SQLite::Statement& statement_;
};

}  // namespace cocoon::store
