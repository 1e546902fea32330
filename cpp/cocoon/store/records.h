#pragma once
// The rows of the record tables, on one connection. Every lookup goes through an index.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cocoon/store/connection.h"
#include "cocoon/store/meta_store.h"

namespace cocoon::store {

// A row and where it stands.
struct Located {
  std::int64_t n = 0;
  Row row;
};

[[nodiscard]] std::optional<Located> find_record(Connection& connection, Table table, std::string_view id);

// `hypervisor` "": the first of any. Snapshots: names are unique, the hypervisor does not matter.
[[nodiscard]] std::optional<Row> find_record_by_name(Connection& connection, Table table, std::string_view hypervisor,
                                                     std::string_view name);

// As MetaStore::resolve.
[[nodiscard]] Row resolve_record(Connection& connection, Table table, std::string_view ref,
                                 std::string_view hypervisor);

// As MetaStore::list.
[[nodiscard]] std::vector<Row> list_records(Connection& connection, Table table, std::string_view hypervisor,
                                            std::string_view state);

// The usual change: id, hypervisor and name stay. False: there is no such row.
bool update_record(Connection& connection, Table table, std::int64_t n, const Row& row);

// Inserts, or replaces by id. Errors AlreadyExists.
void upsert_record(Connection& connection, Table table, const Row& row);

void erase_record(Connection& connection, Table table, std::string_view id);

}  // namespace cocoon::store
