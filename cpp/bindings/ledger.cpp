// Ledger, its iterators, Finding and AuditReport in Python.

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "cocoon/ledger/audit.h"
#include "cocoon/ledger/checkpoint.h"
#include "cocoon/ledger/export.h"
#include "cocoon/ledger/follow.h"
#include "cocoon/ledger/iterate.h"
#include "cocoon/ledger/reader.h"
#include "cocoon/ledger/selection.h"
#include "cocoon/ledger/table.h"
#include "cocoon/ledger/usage.h"

#include "bindings/bind.h"
#include "bindings/support.h"
#include "bindings/table.h"
#include "bindings/values.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;
using ledger::AuditReport;
using ledger::Files;
using ledger::Finding;
using ledger::Table;
using metering::Entry;

// What the caller named; looked up anew at each reading.
struct PyLedger {
  ledger::Selection selection;
  std::uint64_t expected = 0;  // of a node's own: as ledger::audit has it
  std::string node_id;         // of a node's own
};

ledger::Check check_of(system::Cancel& cancel) {
  return [&cancel] { cancel.check(); };
}

// One thread at a time, as Python's generators: the GIL is released while a batch is read.
class Busy {
 public:
  explicit Busy(bool& busy) : busy_(busy) {
    if (busy_) {
      throw py::value_error("the iterator is being advanced by another thread");
    }
    busy_ = true;
  }
  ~Busy() { busy_ = false; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  bool& busy_;
};

// Reads in batches, so that the GIL changes hands once per batch and not once per entry.
class EntryIterator {
 public:
  explicit EntryIterator(const PyLedger& source)
      : entries_(blocking([&](system::Cancel&) { return std::make_unique<ledger::Iterator>(source.selection); })) {}

  Entry next() {
    const Busy busy(busy_);
    if (batch_.empty() && !failure_) {
      blocking([&](system::Cancel& cancel) { fill(cancel); });
    }
    if (!batch_.empty()) {
      Entry entry = std::move(batch_.front());
      batch_.pop_front();
      return entry;
    }
    if (failure_) {
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
    throw py::stop_iteration();
  }

 private:
  void fill(system::Cancel& cancel) {
    constexpr std::size_t kBatch = 256;
    cancel.check();
    const ledger::Check check = check_of(cancel);
    try {
      Entry entry;
      while (batch_.size() < kBatch && entries_->next(entry, check)) {
        batch_.push_back(std::move(entry));
      }
    } catch (const LedgerError&) {
      failure_ = std::current_exception();  // raised where its line comes, behind the entries before it
    }
  }

  std::unique_ptr<ledger::Iterator> entries_;
  std::deque<Entry> batch_;
  std::exception_ptr failure_;
  bool busy_ = false;
};

class FollowIterator {
 public:
  FollowIterator(ledger::Selection selection, bool from_start, std::chrono::nanoseconds poll)
      : follower_(std::move(selection), from_start), poll_(poll) {}

  Entry next() {
    const Busy busy(busy_);
    return blocking([&](system::Cancel& cancel) {
      for (;;) {
        if (auto entry = follower_.poll()) {
          return *std::move(entry);
        }
        system::pause_for(poll_, cancel);
        cancel.check();
      }
    });
  }

 private:
  ledger::Follower follower_;
  std::chrono::nanoseconds poll_;
  bool busy_ = false;
};

PyLedger make_ledger(const py::Args<AnyPath>& paths) {
  PyLedger made;
  for (const auto& path : paths) {
    made.selection.patterns.push_back(from_path("path", path));
  }
  if (made.selection.patterns.empty()) {
    throw InvalidArgument("paths: none, allowed: one or more files, folders or globs");
  }
  return made;
}

// read(files, check) without the GIL. A ledger that is rotated meanwhile is read again: its names have moved on.
template <typename Read>
auto reading(const PyLedger& source, Read&& read) {
  return blocking([&](system::Cancel& cancel) {
    const ledger::Check check = check_of(cancel);
    constexpr int kTries = 5;
    for (int tried = 1;; ++tried) {
      const Files files = ledger::find_files(source.selection);
      const auto before = ledger::identities(files);
      const auto moved = [&] { return ledger::identities(ledger::find_files(source.selection)) != before; };
      try {
        auto result = read(files, check);
        if (tried == kTries || !moved()) return result;
      } catch (const LedgerError&) {
        if (tried == kTries || !moved()) throw;
      }
    }
  });
}

Table intervals(const PyLedger& source, const MaybeDatetime& until) {
  const std::int64_t until_ns = to_optional_time("until", until).value_or(now_ns());
  return reading(source, [&](const Files& files, const ledger::Check& check) {
    return ledger::intervals_table(files, until_ns, check);
  });
}

Table usage(const PyLedger& source, const Typed<"collections.abc.Iterable[str]">& by, const MaybeDatetime& since,
            const MaybeDatetime& until, const Typed<"float | datetime.timedelta | None">& every, const Text& crash,
            const MaybeAnyPath& checkpoint) {
  ledger::UsageQuery query;
  query.by = to_texts("by", by);
  query.since_ns = to_optional_time("since", since);
  query.until_ns = to_optional_time("until", until);
  if (!every.is_none()) {
    query.every_ns = to_duration("every", every);
  }
  query.crash = ledger::parse_crash_end(to_text("crash", crash));
  std::optional<std::string> file;
  if (!checkpoint.is_none()) {
    file = from_path("checkpoint", checkpoint);
  }
  return reading(source, [&](const Files& files, const ledger::Check& check) {
    return ledger::usage_table(query, file ? ledger::read_usage_from(*file, files, query, now_ns(), check)
                                           : ledger::read_usage(files, query, now_ns(), check));
  });
}

// Blocks of bytes go to `write`, which runs with the GIL; so does `progress`. None: the ledger was rotated meanwhile,
// and what was written is not all, or not once.
std::optional<std::uint64_t> export_blocks(
    const PyLedger& source, const Typed<"collections.abc.Callable[[bytes], object]">& write, const std::string& format,
    std::uint64_t since_seq, std::optional<std::uint64_t> until_seq, const std::string& node_id, std::int64_t every_ns,
    const Typed<"collections.abc.Callable[[int, int | None], object] | None">& progress) {
  ledger::ExportQuery query;
  query.format = ledger::parse_export_format(format);
  query.node_id = node_id;
  query.since_seq = since_seq;
  query.until_seq = until_seq;
  query.every_ns = every_ns;
  const auto sink = [&](std::string_view block) {
    const py::gil_scoped_acquire acquired;
    write(py::bytes(block.data(), block.size()));
  };
  ledger::ExportProgress told;
  if (!progress.is_none()) {
    told = [&](std::uint64_t done, std::uint64_t total) {
      const py::gil_scoped_acquire acquired;
      progress(done, total);
    };
  }
  return blocking([&](system::Cancel& cancel) -> std::optional<std::uint64_t> {
    const Files files = ledger::find_files(source.selection);
    const auto before = ledger::identities(files);
    const auto moved = [&] { return ledger::identities(ledger::find_files(source.selection)) != before; };
    try {
      const std::uint64_t rows = ledger::export_ledger(files, query, sink, told, check_of(cancel));
      return moved() ? std::nullopt : std::optional(rows);
    } catch (const LedgerError&) {
      if (!moved()) throw;
      return std::nullopt;
    }
  });
}

JsonRows intervals_of(const PyLedger& source, const Typed<"collections.abc.Iterable[str]">& ids,
                      const MaybeDatetime& until) {
  const auto wanted = to_texts("ids", ids);
  const std::int64_t until_ns = to_optional_time("until", until).value_or(now_ns());
  const auto found = reading(source, [&](const Files& files, const ledger::Check& check) {
    return ledger::read_intervals_of(files, {wanted.begin(), wanted.end()}, until_ns, check);
  });
  py::list rows;
  for (const ledger::Interval& i : found) {
    const auto reason = [](const std::optional<metering::Reason>& value) {
      return value ? std::string(to_string(*value)) : std::string();
    };
    rows.append(py::dict("id"_a = to_str(i.id), "kind"_a = std::string(to_string(i.dimension)),
                         "hypervisor"_a = to_str(i.hypervisor), "cpu"_a = i.shape.cpu,
                         "mem_bytes"_a = i.shape.mem_bytes, "storage_bytes"_a = i.shape.storage_bytes,
                         "start_ns"_a = i.start_ns, "length_ns"_a = i.length_ns, "open"_a = i.open,
                         "start_reason"_a = reason(i.start_reason), "stop_reason"_a = reason(i.stop_reason),
                         "source_snapshot_id"_a = to_str(i.source_snapshot_id), "labels"_a = i.labels));
  }
  return rows;
}

// Methods that are written in Python: what has to do with formats and pictures of others.
py::object reports(const char* function) { return py::module_::import("cocoon._reports").attr(function); }

py::typing::Iterator<Entry> follow(const PyLedger& source, const Typed<"float | datetime.timedelta">& poll,
                                   bool from_start) {
  // Followed oftener than this, a quiet ledger would only cost.
  const std::int64_t poll_ns = std::max<std::int64_t>(to_duration("poll", poll), 1'000'000);
  auto iterator = blocking([&](system::Cancel&) {
    return std::make_unique<FollowIterator>(source.selection, from_start, std::chrono::nanoseconds(poll_ns));
  });
  return py::cast(std::move(iterator));
}

std::string quoted_paths(const PyLedger& source) {
  std::string paths;
  for (const std::string& path : source.selection.patterns) {
    paths += fmt::format("{}{}", paths.empty() ? "" : ", ", std::string(py::repr(py::str(to_path(path)))));
  }
  return paths;
}

using ExportDest = Typed<"str | os.PathLike[str] | typing.BinaryIO">;
using ExportFormatName = Typed<"typing.Literal['csv', 'parquet', 'jsonl', 'focus', 'cloudevents']">;
using MaybeProgress = Typed<"collections.abc.Callable[[int, int | None], object] | None">;

void bind_audit(py::module_& m) {
  py::class_<Finding>(m, "Finding", "One thing that is wrong with a ledger, and where.")
      .def_property_readonly("code", [](const Finding& f) { return std::string(to_string(f.code)); })
      .def_property_readonly("file", [](const Finding& f) -> FilePath { return to_path(f.file); })
      .def_readonly("line", &Finding::line, "From 1, in its file.")
      .def_readonly("offset", &Finding::offset, "Of the line's first byte.")
      .def_readonly("seq", &Finding::seq)
      .def_readonly("vm_id", &Finding::vm_id)
      .def_readonly("snapshot_id", &Finding::snapshot_id)
      .def_property_readonly("message", [](const Finding& f) { return to_str(f.message); })
      .def("__repr__", [](const Finding& f) {
        return to_str(fmt::format("<Finding {} at line {}: {}>", to_string(f.code), f.line.value_or(0), f.message));
      });
  py::class_<AuditReport>(m, "AuditReport", "What the audit of a ledger found.")
      .def_property_readonly("ok", &AuditReport::ok, "Nothing was found.")
      .def_readonly("entries", &AuditReport::entries, "Well-formed lines.")
      .def_property_readonly(
          "findings", [](const AuditReport& r) { return r.findings; }, "In the order of the lines.")
      .def("_repr_html_", [](const py::object& self) -> py::str { return reports("audit_html")(self); })
      .def("__repr__", [](const AuditReport& r) {
        return fmt::format("<AuditReport of {} entries: {} findings>", r.entries, r.findings.size());
      });
}

template <typename Iterator>
void bind_iterator(py::module_& m, const char* name) {
  py::class_<Iterator>(m, name)
      .def("__iter__", [](const py::object& self) -> py::typing::Iterator<Entry> { return self; })
      .def("__next__", &Iterator::next);
}

}  // namespace

void bind_ledger(py::module_& m) {
  bind_table(m);
  bind_audit(m);
  bind_iterator<EntryIterator>(m, "_EntryIterator");
  bind_iterator<FollowIterator>(m, "_FollowIterator");
  py::class_<PyLedger>(
      m, "Ledger",
      R"(The usage ledger in these files, folders or globs, packed (zstd, gzip) or not. Nothing is read yet.

Tables pass over lines that are no entries, with one warning; iterating raises LedgerError at each, naming file, line
and offset, and may go on; ``audit`` reports them.
Raises LedgerError from each reading: nothing is there, or it cannot be read.)")
      .def(py::init(&make_ledger))
      .def_static(
          "_of_node",
          [](const AnyPath& path, std::uint64_t expected, const std::string& node_id) {
            return PyLedger{{{from_path("path", path)}, true}, expected, node_id};
          },
          "path"_a, "expected"_a, "node_id"_a,
          "The ledger ``path`` with its rotated parts, which holds all up to ``expected``.")
      .def("__iter__",
           [](const PyLedger& source) -> py::typing::Iterator<Entry> {
             return py::cast(std::make_unique<EntryIterator>(source));
           })
      .def("entries",
           [](const PyLedger& source) {
             return reading(source, [](const Files& files, const ledger::Check& check) {
               return ledger::entries_table(files, check);
             });
           })
      .def("intervals", &intervals, py::kw_only(), "until"_a = py::none(),
           "Starts and stops paired, in the order of the starts. Open ones count up to ``until``, or to now.")
      .def(
          "usage", &usage, py::kw_only(), "by"_a = py::make_tuple("vm_id"), "since"_a = py::none(),
          "until"_a = py::none(), "every"_a = py::none(), "crash"_a = "ended", "checkpoint"_a = py::none(),
          R"(Sums over [since, until), by any of vm_id, snapshot_id, hypervisor, kind, reason (of the start), label:KEY.

``every``: in buckets that begin at its multiples since the epoch. ``crash``: up to when a crashed VM counts.
``checkpoint``: a file that saves reading again what was read; the answer is the same, and where it does not fit the
ledger or the question, all is read.
Raises InvalidArgument.)")
      .def(
          "audit",
          [](const PyLedger& source) {
            return reading(source, [&](const Files& files, const ledger::Check& check) {
              return ledger::audit(files, check, source.expected);
            });
          },
          "What is wrong with the ledger, each fault once.")
      .def("follow", &follow, py::kw_only(), "poll"_a = 0.5, "from_start"_a = false,
           "New entries as they are appended, for ever; ``from_start``: after all that are there.")
      .def("_export", &export_blocks, "write"_a, "format"_a, "since_seq"_a, "until_seq"_a, "node_id"_a, "every_ns"_a,
           "progress"_a)
      .def(
          "export",
          [](const py::object& self, const ExportDest& dest, const ExportFormatName& format, const Int& since_seq,
             const MaybeInt& until_seq, const MaybeProgress& progress, const Typed<"float | datetime.timedelta">& every,
             const Typed<"str | None">& node_id) -> py::int_ {
            return reports("export")(self, dest, "format"_a = format, "since_seq"_a = since_seq,
                                     "until_seq"_a = until_seq, "progress"_a = progress,
                                     "every_ns"_a = to_duration("every", every), "node_id"_a = node_id);
          },
          "dest"_a, py::kw_only(), "format"_a, "since_seq"_a = 1, "until_seq"_a = py::none(), "progress"_a = py::none(),
          "every"_a = 86400, "node_id"_a = py::none(),
          R"(Writes the entries with these numbers to a path (whole or not at all) or a binary file; returns the rows.

The same range gives the same bytes. ``csv``, ``parquet`` (needs the extra ``parquet``), ``jsonl``, ``cloudevents``: a row
per entry. ``focus``: a row per interval and bucket of ``every``, for those who replace rows by x_RowId. ``node_id`` is part
of ids; left out: the node's, else one made from the first entry.
Raises InvalidArgument; LedgerError; from a file of yours what it raises.)")
      .def(
          "timeline",
          [](const py::object& self, const Typed<"collections.abc.Iterable[str] | None">& ids,
             const MaybeDatetime& since, const MaybeDatetime& until, const Int& most)
              ->Typed<"typing.Any"> {
                return reports("timeline")(self, "ids"_a = ids, "since"_a = since, "until"_a = until, "most"_a = most);
              },
          py::kw_only(), "ids"_a = py::none(), "since"_a = py::none(), "until"_a = py::none(), "most"_a = 40,
          R"(A picture of what ran when, interactive in a notebook; ``save("x.svg")`` or ``save("x.png")`` of it is a file.

At most ``most`` VMs and snapshots, those that have used most first. Needs the extra ``notebook``.)")
      .def("_intervals_of", &intervals_of, "ids"_a, "until"_a = py::none())
      .def_readonly("_node_id", &PyLedger::node_id)
      .def("_repr_html_", [](const py::object& self) -> py::str { return reports("ledger_html")(self); })
      .def("__repr__", [](const PyLedger& source) { return fmt::format("Ledger({})", quoted_paths(source)); });
}

}  // namespace cocoon::bindings
