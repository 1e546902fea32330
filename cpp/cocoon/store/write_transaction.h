#pragma once
// The write transaction behind store::Transaction.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "cocoon/store/connection.h"
#include "cocoon/store/meta_store.h"
#include "cocoon/store/outbox.h"
#include "cocoon/store/records.h"
#include "cocoon/system/clock.h"

namespace cocoon::store {

class WriteTransaction final : public Transaction {
 public:
  // Begins, then reads the clock. `keep_entries` false: metering is off, entries only consume their numbers.
  // Requires the store's lock.
  WriteTransaction(Connection& connection, const system::Clock& clock, bool keep_entries);
  ~WriteTransaction() override;  // rolls back what was not committed
  WriteTransaction(const WriteTransaction&) = delete;
  WriteTransaction& operator=(const WriteTransaction&) = delete;

  [[nodiscard]] const Moment& moment() const override { return moment_; }
  [[nodiscard]] std::uint64_t next_seq() const override { return next_seq_; }
  std::optional<Row> find(Table table, std::string_view id) override;
  std::optional<Row> find_by_name(Table table, std::string_view hypervisor, std::string_view name) override;
  void put(Table table, const Row& row) override;
  void erase(Table table, std::string_view id) override;
  void append(const std::vector<metering::Entry>& entries) override;

  // What it did, for the drain after it.
  struct Result {
    bool changed = false;        // any record or entry
    std::uint64_t last_seq = 0;  // of its entries; 0 if it has none
    std::vector<OutboxRow> rows;
  };
  // Durable  not yet: the drain syncs.
  // Errors   StoreError; nothing of it remains.
  Result commit();

  // In a forked child: the transaction is the parent's.
  void disown() {
    open_ = false;
    connection_.carried_away();
  }

 private:
  struct Loaded {
    Table table;
    std::int64_t n;
    std::string id;
    std::string hypervisor;
    std::string name;
  };

  template <typename Action>
  auto guarded(Action action);

  Connection& connection_;
  Connection::Use use_;
  bool keep_entries_;
  bool open_ = false;
  bool broken_ = false;  // SQLite failed: it may have rolled back, and what follows would commit piece by piece
  Moment moment_;
  std::uint64_t next_seq_ = 0;
  Result result_;
  std::vector<Loaded> loaded_;
};

}  // namespace cocoon::store
