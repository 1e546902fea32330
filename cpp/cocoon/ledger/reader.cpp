#include "cocoon/ledger/reader.h"

#include <utility>

#include <fmt/format.h>

#include "cocoon/error.h"
#include "cocoon/ledger/log.h"

namespace cocoon::ledger {
namespace {

Position position_of(const Files& files, const Batch& batch, std::uint32_t line, std::uint32_t offset) {
  return {&files[batch.block.file], batch.first_line + line, batch.block.offset + offset};
}

}  // namespace

BadLine bad_line(const Files& files, const Batch& batch, const Batch::Bad& bad) {
  BadLine line;
  line.line.text = batch.block.text().substr(bad.offset, bad.size);
  line.line.at = position_of(files, batch, bad.line, bad.offset);
  line.line.torn = batch.block.torn;
  line.line.overlong = batch.block.overlong;
  line.error = bad.error;
  return line;
}

std::string describe(const Position& at) {
  return fmt::format("{}, line {}, byte {}", at.file->string(), at.line, at.offset);
}

std::string describe(const BadLine& bad) {
  std::string why;
  if (bad.error) {
    why = bad.error->what();
  } else if (bad.line.overlong) {
    why = "the line is longer than 16 MiB";
  } else {
    why = "the last line has no '\\n': it is torn";
  }
  return fmt::format("{}: {}", describe(bad.line.at), why);
}

void for_each_line(const std::shared_ptr<const Files>& files, const OnEntry& on_entry, const OnBad& on_bad,
                   const Check& check) {
  const auto take = [&](const Batch& batch) {
    auto bad = batch.bad.begin();
    for (std::size_t i = 0; i <= batch.items.size(); ++i) {
      for (; bad != batch.bad.end() && bad->before == i; ++bad) {
        on_bad(bad_line(*files, batch, *bad));
      }
      if (i < batch.items.size()) {
        const Batch::Item& item = batch.items[i];
        Position at = position_of(*files, batch, item.line, item.offset);
        at.batch = &batch;
        at.item = i;
        on_entry(item, at);
      }
    }
  };
  scan(files, take, check);
}

void for_each_entry(const Files& files, const OnEntry& on_entry, const Check& check) {
  PassedOver passed;
  for_each_line(std::make_shared<const Files>(files), on_entry, [&](const BadLine& bad) { passed.add(bad); }, check);
  passed.say();
}

void PassedOver::add(const BadLine& bad) {
  if (++lines_ == 1) {
    first_ = describe(bad);
  }
}

void PassedOver::say() const {
  if (lines_ > 0) {
    logger()->warn("passed over {} bad lines of the ledger, the first: {}", lines_, first_);
  }
}

EntryReader::EntryReader(std::shared_ptr<const Files> files, OnBad on_bad)
    : files_(std::move(files)), on_bad_(std::move(on_bad)), source_(files_) {}

bool EntryReader::next(PlacedEntry& placed) {
  for (;;) {
    if (bad_ < batch_.bad.size() && batch_.bad[bad_].before <= item_) {
      const BadLine bad = bad_line(*files_, batch_, batch_.bad[bad_++]);
      if (!on_bad_) {
        throw LedgerError("read ledger " + describe(bad), bad.line.at.file->string());
      }
      on_bad_(bad);
      continue;
    }
    if (item_ < batch_.items.size()) {
      const Batch::Item& item = batch_.items[item_++];
      placed.entry = metering::to_entry(item.entry);
      placed.at = position_of(*files_, batch_, item.line, item.offset);
      return true;
    }
    const std::uint64_t next_line = batch_.first_line + batch_.lines;
    const std::size_t file = batch_.block.file;
    item_ = bad_ = 0;
    batch_.items.clear();
    batch_.bad.clear();
    batch_.lines = 0;
    batch_.first_line = next_line;
    if (!source_.next(batch_.block)) {
      return false;
    }
    parse(batch_);
    batch_.first_line = batch_.block.file == file ? next_line : 1;
  }
}

}  // namespace cocoon::ledger
