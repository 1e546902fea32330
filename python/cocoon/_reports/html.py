"""HTML for notebooks. It takes the notebook's colours, everything from a ledger is escaped, sizes are bounded."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from cocoon._core import AuditReport, GCReport, Ledger, ReconcileReport, Table
from cocoon.errors import LedgerError

_ROWS = 30
_CELL = 120  # characters
_MESSAGE = 400
_GIB = 1 << 30

# Text and lines in the notebook's own colour, so that light and dark need no case. The two status colours have one:
# what the system prefers, and what Jupyter and VS Code say of themselves.
_STYLE = """<style>
.cocoon{--good:#1a7f37;--bad:#c9222d;font-size:13px;line-height:1.4;color:inherit;max-width:100%;overflow-x:auto}
@media (prefers-color-scheme:dark){.cocoon{--good:#3fb950;--bad:#ff7b72}}
[data-jp-theme-light="true"] .cocoon,.vscode-light .cocoon{--good:#1a7f37;--bad:#c9222d}
[data-jp-theme-light="false"] .cocoon,.vscode-dark .cocoon{--good:#3fb950;--bad:#ff7b72}
.cocoon p{margin:.3em 0}
.cocoon .good{color:var(--good)}
.cocoon .bad{color:var(--bad)}
.cocoon .dim{opacity:.7}
.cocoon table{border-collapse:collapse;border:0;margin:.4em 0;font-size:12px;color:inherit}
.cocoon tr,.cocoon thead{background:none!important}
.cocoon th,.cocoon td{border:0;border-bottom:1px solid;border-color:color-mix(in srgb,currentColor 18%,transparent);
padding:3px 10px 3px 0;text-align:left;vertical-align:top;white-space:nowrap;background:none;color:inherit}
.cocoon th{font-weight:600;border-bottom-width:2px}
.cocoon .num{text-align:right;font-variant-numeric:tabular-nums}
.cocoon .id{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:11px}
.cocoon .wide{white-space:normal;min-width:20em}
</style>"""


def table_html(table: Table) -> str:
    """The first rows."""
    return _page(_table(table.column_names, table._head(_ROWS), total=len(table)))


def ledger_html(ledger: Ledger) -> str:
    """What ran, how much that adds up to, and whether the ledger is in order."""
    try:
        return _page(*_ledger_parts(ledger))
    except LedgerError as error:
        return _page(f'<p class="bad">{_text(repr(ledger))}: {_text(str(error))}</p>')


def _ledger_parts(ledger: Ledger) -> Iterable[str]:
    audit = ledger.audit()
    now = datetime.now(UTC)
    kinds = {row["kind"]: row for row in ledger.usage(by=("kind",), until=now).to_pylist()}
    vms = [row for row in ledger.usage(by=("vm_id", "hypervisor"), until=now).to_pylist() if row["vm_id"] is not None]
    snapshots = kinds.get("snap.storage", {"intervals": 0, "open": 0})
    compute = kinds.get("vm.compute", {"intervals": 0, "open": 0})
    yield (
        f"<p><b>{_text(repr(ledger))}</b></p><p>{audit.entries:,} entries, {len({row['vm_id'] for row in vms}):,} VMs: "
        f"{compute['intervals']:,} runs, of which {compute['open']:,} go on; "
        f"{snapshots['intervals']:,} snapshots, {snapshots['open']:,} kept</p>"
    )
    columns = ("", "vCPU hours", "memory, GiB hours", "storage, GiB hours", "intervals", "open")
    total = {name: sum(row[name] for row in kinds.values()) for name in _SUMS}
    rows: list[list[Any]] = [[kind, *_sums(row)] for kind, row in kinds.items()]
    yield _table(columns, [*rows, ["all", *_sums(total)]])
    vms.sort(key=lambda row: (-row["vcpu_seconds"], -row["storage_byte_seconds"], row["vm_id"]))
    if vms:
        top = [[row["vm_id"], row["hypervisor"], *_sums(row)] for row in vms[:10]]
        yield _table(("vm_id", "hypervisor", *columns[1:]), top, total=len(vms), what="VMs")
    yield _audit_line(audit)
    if not audit.ok:
        yield _findings_by_code(audit)


_SUMS = ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds", "intervals", "open")


def _sums(row: dict[str, Any]) -> list[Any]:
    return [
        row["vcpu_seconds"] / 3600,
        row["mem_byte_seconds"] / 3600 / _GIB,
        row["storage_byte_seconds"] / 3600 / _GIB,
        row["intervals"],
        row["open"],
    ]


def audit_html(report: AuditReport) -> str:
    """How many findings of which kind, and the first of them."""
    if report.ok:
        return _page(_audit_line(report))
    columns = ("code", "line", "offset", "seq", "vm_id", "snapshot_id", "message")
    rows = [
        [one.code, one.line, one.offset, one.seq, one.vm_id, one.snapshot_id, one.message]
        for one in report.findings[:_ROWS]
    ]
    return _page(
        _audit_line(report),
        _findings_by_code(report),
        _table(columns, rows, total=len(report.findings), what="findings", bad=("code",)),
    )


def _audit_line(report: AuditReport) -> str:
    if report.ok:
        return f'<p class="good">✓ audit: {report.entries:,} entries, nothing found</p>'
    return f'<p class="bad">✗ audit: {report.entries:,} entries, {len(report.findings):,} findings</p>'


def _findings_by_code(report: AuditReport) -> str:
    counts = Counter(one.code for one in report.findings)
    return f"<p>{', '.join(f'{_text(code)} {count:,}' for code, count in counts.most_common())}</p>"


def reconcile_html(report: ReconcileReport) -> str:
    """Those that do not agree first."""
    rows = sorted(report.rows, key=lambda row: row["status"] in {"ok", "busy"})
    counts = Counter(row["status"].partition(":")[0] for row in rows)
    summary = ", ".join(f"{count:,} {_text(status)}" for status, count in counts.most_common()) or "no VMs"
    fixed = sum(row["action"] != "" for row in rows)
    if report.ok:
        line = '<p class="good">✓ reconcile: records, ledger and processes agree</p>'
        if fixed:
            line = f'<p class="good">✓ reconcile: {fixed:,} put right, now records, ledger and processes agree</p>'
    else:
        line = '<p class="bad">✗ reconcile: records, ledger and processes do not agree</p>'
    columns = ("kind", "name", "id", "hypervisor", "status", "record_state", "ledger_state", "pid", "action")
    shown = [[row[column] for column in columns] for row in rows[:_ROWS]]
    table = _table(columns, shown, total=len(rows), what="rows", bad=() if report.ok else ("status",)) if rows else ""
    return _page(line, f"<p>{summary}</p>", table)


def gc_html(report: GCReport) -> str:
    """What could not be removed first."""
    done = "to be removed" if report.dry_run else "removed"
    mark = "bad" if report.failed else "good"
    line = (
        f'<p class="{mark}">{"✗" if report.failed else "✓"} gc: {len(report.removed):,} {done}, {report.kept:,} kept, '
        f"{len(report.failed):,} failed</p>"
    )
    rows = [*report.failed, *report.removed]
    columns = ("module", "what", "id", "path", "reason", "bytes", "error")
    shown = [[row.get(column, "") for column in columns] for row in rows[:_ROWS]]
    return _page(line, _table(columns, shown, total=len(rows), what="things", bad=("error",)) if rows else "")


# ---------------------------------------------------------------- pieces


def _page(*parts: str) -> str:
    return f'{_STYLE}<div class="cocoon">{"".join(parts)}</div>'


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    total: int | None = None,
    what: str = "rows",
    bad: Sequence[str] = (),
) -> str:
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    head = "".join(
        f'<th class="num">{_text(name)}</th>' if number else f"<th>{_text(name)}</th>"
        for name, number in zip(columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(name, value, name in bad) for name, value in zip(columns, row, strict=True)) + "</tr>"
        for row in rows
    )
    more = f'<p class="dim">{len(rows):,} of {total:,} {what}</p>' if total is not None and total > len(rows) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(column: str, value: Any, bad: bool) -> str:
    classes = []
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        classes.append("num")
        text = f"{value:,.3f}"
    elif isinstance(value, int):
        classes.append("num")
        text = str(value) if column in {"pid", "seq", "line", "offset"} or column.endswith("_ns") else f"{value:,}"
    else:
        text = "" if value is None else str(value)
        if column == "id" or column.endswith("_id"):
            classes.append("id")
        elif len(text) > 40:
            classes.append("wide")
    if bad and value not in {"ok", "busy"}:
        classes.append("bad")
    attribute = f' class="{" ".join(classes)}"' if classes else ""
    return f"<td{attribute}>{_text(text, _MESSAGE if column == 'message' else _CELL)}</td>"


def _text(text: str, most: int = _CELL) -> str:
    """Escaped, cut where it is long; control characters and those that turn writing around are shown, not obeyed."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return escape(shown, quote=True)
