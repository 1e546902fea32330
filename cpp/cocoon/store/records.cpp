#include "cocoon/store/records.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cocoon/error.h"

namespace cocoon::store {
namespace {

constexpr std::size_t kShortestPrefix = 3;
constexpr std::size_t kMostCandidates = 10;

struct Sql {
  const char* noun;
  const char* by_id;
  const char* by_name;
  const char* by_prefix;
  const char* list;
  const char* update;
  const char* upsert;
  const char* erase;
};

#define COCOON_COLUMNS "n, id, hypervisor, name, state, generation, document"

constexpr Sql kVmSql = {
    .noun = "VM",
    .by_id = "SELECT " COCOON_COLUMNS " FROM vm WHERE id = ?1",
    .by_name = "SELECT " COCOON_COLUMNS " FROM vm WHERE name = ?1 AND (?2 = '' OR hypervisor = ?2) ORDER BY hypervisor",
    .by_prefix = "SELECT " COCOON_COLUMNS
                 " FROM vm WHERE id >= ?1 AND id < ?2 AND (?3 = '' OR hypervisor = ?3) ORDER BY id LIMIT ?4",
    .list =
        "SELECT " COCOON_COLUMNS " FROM vm WHERE (?1 = '' OR hypervisor = ?1) AND (?2 = '' OR state = ?2) ORDER BY n",
    .update = "UPDATE vm SET state = ?2, generation = ?3, document = ?4 WHERE n = ?1",
    .upsert =
        "INSERT INTO vm (id, hypervisor, name, state, generation, document) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
        " ON CONFLICT (id) DO UPDATE SET hypervisor = ?2, name = ?3, state = ?4, generation = ?5, document = ?6",
    .erase = "DELETE FROM vm WHERE id = ?1",
};

constexpr Sql kSnapshotSql = {
    .noun = "snapshot",
    .by_id = "SELECT " COCOON_COLUMNS " FROM snapshot WHERE id = ?1",
    .by_name =
        "SELECT " COCOON_COLUMNS " FROM snapshot WHERE name = ?1 AND name <> '' AND (?2 = '' OR hypervisor = ?2)",
    .by_prefix = "SELECT " COCOON_COLUMNS
                 " FROM snapshot WHERE id >= ?1 AND id < ?2 AND (?3 = '' OR hypervisor = ?3) ORDER BY id LIMIT ?4",
    .list = "SELECT " COCOON_COLUMNS
            " FROM snapshot WHERE (?1 = '' OR hypervisor = ?1) AND (?2 = '' OR state = ?2) ORDER BY n",
    .update = "UPDATE snapshot SET state = ?2, generation = ?3, document = ?4 WHERE n = ?1",
    .upsert =
        "INSERT INTO snapshot (id, hypervisor, name, state, generation, document) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
        " ON CONFLICT (id) DO UPDATE SET hypervisor = ?2, name = ?3, state = ?4, generation = ?5, document = ?6",
    .erase = "DELETE FROM snapshot WHERE id = ?1",
};

#undef COCOON_COLUMNS

const Sql& sql_of(Table table) {
  switch (table) {
    case Table::kVm:
      return kVmSql;
    case Table::kSnapshot:
      return kSnapshotSql;
  }
  throw Error("unknown table");
}

Row row_of(const Query& query) {
  return {.id = query.text(1),
          .hypervisor = query.text(2),
          .name = query.text(3),
          .state = query.text(4),
          .generation = query.number(5),
          .document = query.text(6)};
}

// The least text that is greater than every text which begins with `prefix`; nullopt if there is none.
std::optional<std::string> after_prefix(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  if (prefix.empty()) return std::nullopt;
  prefix.back() = static_cast<char>(static_cast<unsigned char>(prefix.back()) + 1);
  return prefix;
}

[[noreturn]] void throw_ambiguous(const Sql& sql, const std::string& ref, const char* what,
                                  const std::vector<Row>& rows) {
  std::vector<std::string> candidates;
  std::vector<std::string> shown;
  for (const auto& row : rows) {
    candidates.push_back(row.id);
    shown.push_back(row.name.empty() ? row.id : fmt::format("{} ({}, {})", row.id, row.name, row.hypervisor));
  }
  if (candidates.size() > kMostCandidates) {
    candidates.pop_back();
    shown.back() = "…";
  }
  throw AmbiguousRef(fmt::format("{} {}: this {} fits several: {}", sql.noun, ref, what, fmt::join(shown, ", ")), ref,
                     std::move(candidates));
}

std::vector<Row> rows_of(Query& query) {
  std::vector<Row> rows;
  while (query.next()) rows.push_back(row_of(query));
  return rows;
}

}  // namespace

std::optional<Located> find_record(Connection& connection, Table table, std::string_view id) {
  const std::string key(id);
  Query query(connection, sql_of(table).by_id);
  query.bind(1, key);
  if (!query.next()) return std::nullopt;
  return Located{.n = query.number(0), .row = row_of(query)};
}

std::optional<Row> find_record_by_name(Connection& connection, Table table, std::string_view hypervisor,
                                       std::string_view name) {
  const std::string name_key(name);
  const std::string hypervisor_key(table == Table::kSnapshot ? std::string_view() : hypervisor);
  Query query(connection, sql_of(table).by_name);
  query.bind(1, name_key).bind(2, hypervisor_key);
  if (!query.next()) return std::nullopt;
  return row_of(query);
}

Row resolve_record(Connection& connection, Table table, std::string_view ref, std::string_view hypervisor) {
  const auto& sql = sql_of(table);
  const std::string key(ref);
  const std::string hypervisor_key(hypervisor);
  if (auto found = find_record(connection, table, ref);
      found && (hypervisor.empty() || found->row.hypervisor == hypervisor))
    return std::move(found->row);

  if (!key.empty()) {
    Query query(connection, sql.by_name);
    query.bind(1, key).bind(2, hypervisor_key);
    auto rows = rows_of(query);
    if (rows.size() > 1) throw_ambiguous(sql, key, "name", rows);
    if (rows.size() == 1) return std::move(rows.front());
  }

  if (key.size() >= kShortestPrefix) {
    if (const auto end = after_prefix(key)) {
      Query query(connection, sql.by_prefix);
      query.bind(1, key).bind(2, *end).bind(3, hypervisor_key);
      query.bind(4, static_cast<std::int64_t>(kMostCandidates) + 1);
      auto rows = rows_of(query);
      if (rows.size() > 1) throw_ambiguous(sql, key, "prefix", rows);
      if (rows.size() == 1) return std::move(rows.front());
    }
  }
  const auto where = hypervisor.empty() ? std::string() : fmt::format(" under {}", hypervisor);
  throw NotFound(fmt::format("{} {}: not found{} (by id, name, or id prefix of at least {} characters)", sql.noun, key,
                             where, kShortestPrefix),
                 key);
}

std::vector<Row> list_records(Connection& connection, Table table, std::string_view hypervisor,
                              std::string_view state) {
  const std::string hypervisor_key(hypervisor);
  const std::string state_key(state);
  Query query(connection, sql_of(table).list);
  query.bind(1, hypervisor_key).bind(2, state_key);
  return rows_of(query);
}

bool update_record(Connection& connection, Table table, std::int64_t n, const Row& row) {
  Query query(connection, sql_of(table).update);
  query.bind(1, n).bind(2, row.state).bind(3, row.generation).bind(4, row.document);
  query.run();
  return query.changes() == 1;
}

void upsert_record(Connection& connection, Table table, const Row& row) {
  const auto& sql = sql_of(table);
  {
    Query query(connection, sql.upsert);
    query.bind(1, row.id).bind(2, row.hypervisor).bind(3, row.name).bind(4, row.state).bind(5, row.generation);
    query.bind(6, row.document);
    if (query.run_unless_taken()) return;
  }
  const auto other = find_record_by_name(connection, table, row.hypervisor, row.name);
  const auto id = other ? other->id : std::string();
  throw AlreadyExists(fmt::format("{} {}: this name is taken by {}", sql.noun, row.name, id), row.name, id);
}

void erase_record(Connection& connection, Table table, std::string_view id) {
  const std::string key(id);
  Query(connection, sql_of(table).erase).bind(1, key).run();
}

}  // namespace cocoon::store
