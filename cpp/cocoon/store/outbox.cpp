#include "cocoon/store/outbox.h"

#include <charconv>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/store/schema.h"

namespace cocoon::store {
namespace {

constexpr std::int64_t kMostRows = 4096;
constexpr std::size_t kMostBytes = std::size_t{1} << 20;

}  // namespace

std::uint64_t last_given(Connection& connection) {
  Query query(connection,
              "SELECT max(ifnull((SELECT max(seq) FROM outbox), 0),"
              " (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'given_through'))");
  return query.next() ? query.seq(0) : 0;
}

void insert_row(Connection& connection, const OutboxRow& row) {
  Query(connection, "INSERT INTO outbox (seq, line) VALUES (?1, ?2)").bind_seq(1, row.seq).bind(2, row.line).run();
}

void skip_through(Connection& connection, std::uint64_t seq) {
  set_meta_value(connection, kGivenThrough, std::to_string(seq));
}

std::vector<OutboxRow> rows_after(Connection& connection, std::uint64_t seq) {
  std::vector<OutboxRow> rows;
  std::size_t bytes = 0;
  Query query(connection, "SELECT seq, line FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2");
  query.bind_seq(1, seq).bind(2, kMostRows);
  while (bytes < kMostBytes && query.next()) {
    rows.push_back({.seq = query.seq(0), .line = query.text(1)});
    bytes += rows.back().line.size() + 1;
  }
  return rows;
}

std::uint64_t count_after(Connection& connection, std::uint64_t seq) {
  Query query(connection, "SELECT count(*) FROM outbox WHERE seq > ?1");
  query.bind_seq(1, seq);
  return query.next() ? query.seq(0) : 0;
}

std::uint64_t pruned_through(Connection& connection) {
  const auto text = meta_value(connection, kPrunedThrough);
  std::uint64_t seq = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seq);
  if (error != std::errc{} || end != text.data() + text.size())
    throw StoreError(
        fmt::format("database {}: damaged: {} is \"{}\"", connection.path().string(), kPrunedThrough, text),
        connection.path().string());
  return seq;
}

void prune_rows(Connection& connection, std::uint64_t seq) {
  const Connection::Use use(connection);
  const auto text = std::to_string(seq);
  connection.execute("BEGIN IMMEDIATE;");
  try {
    Query(connection, "DELETE FROM outbox WHERE seq <= ?1").bind_seq(1, seq).run();
    set_meta_value(connection, kPrunedThrough, text);
    // Never lowered: where metering is off, numbers are given that never were in the outbox.
    Query(connection, "UPDATE meta SET value = ?2 WHERE key = 'given_through' AND CAST(value AS INTEGER) < ?1")
        .bind_seq(1, seq)
        .bind(2, text)
        .run();
    connection.execute("COMMIT;");
  } catch (...) {
    connection.roll_back();
    throw;
  }
}

}  // namespace cocoon::store
