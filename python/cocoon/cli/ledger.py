"""`cocoon ledger`: what was used, from the node's own ledger or from files."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocoon.cli import output
from cocoon.cli.app import command, new_group
from cocoon.cli.errors import FAILED, CommandError, UsageError
from cocoon.cli.options import JsonOption, QuietOption
from cocoon.cli.output import Cell
from cocoon.cli.session import Session
from cocoon.cli.units import absolute, format_duration, format_local, format_size, parse_duration, parse_when

if TYPE_CHECKING:
    from cocoon import Entry, Ledger

app = new_group("Read the usage ledger.")

PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH...]", help="Ledger files, folders or globs. Default: the node's own ledger."),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="An ISO 8601 time, a date, or a duration ago such as 90s, 2h, 1d."),
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Up to, not including; as --since.")]
_GIB = 1 << 30
# What `--by` may say beside label:KEY, and the column that it means.
_BY = {"vm": "vm_id", "snapshot": "snapshot_id", "hypervisor": "hypervisor", "reason": "reason"}


@command(app, "show")
def show(
    session: Session,
    paths: PathsArgument = None,
    *,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the entries, as they were written."""
    entries = _between(ledger_of(session, paths), _when(since, "--since"), _when(until, "--until"))
    if as_json:
        output.print_json([json.loads(entry.to_json()) for entry in entries])
        return
    if quiet:
        print_ids(entry.vm_id or entry.snapshot_id for entry in entries)
        return
    columns = ("SEQ", "TIME", "KIND", "REASON", "ID", "CPU", "MEMORY", "STORAGE", "NOTE")
    output.print_table(columns, [entry_cells(entry) for entry in entries], right=("SEQ", "CPU", "MEMORY", "STORAGE"))


def entry_cells(entry: "Entry") -> tuple[str | Cell, ...]:
    """A row of `cocoon ledger show`."""
    return (
        str(entry.seq or "-"),
        format_local(entry.emitted_at, millis=True),
        Cell(str(entry.kind), "green" if str(entry.kind).endswith(".start") else ""),
        Cell(str(entry.reason or "-"), "red" if entry.reason == "stop-crash" else ""),
        short_id(entry.vm_id or entry.snapshot_id),
        *_shape(entry.shape.cpu, entry.shape.mem_bytes, entry.shape.storage_bytes),
        _note(entry),
    )


@command(app, "intervals")
def intervals(
    session: Session,
    paths: PathsArgument = None,
    *,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the intervals: what was open from when to when, and why."""
    low, high = _when(since, "--since"), _when(until, "--until")
    rows = [
        row
        for row in ledger_of(session, paths).intervals(until=high).to_pylist()
        if (low is None or row["stop"] is None or row["stop"] >= low) and (high is None or row["start"] < high)
    ]
    if as_json:
        output.print_json(rows)
    elif quiet:
        print_ids(row["id"] for row in rows)
    else:
        print_intervals(rows)


@command(app, "usage")
def usage(
    session: Session,
    paths: PathsArgument = None,
    *,
    by: Annotated[
        str, typer.Option("--by", metavar="WHAT[,WHAT…]", help="vm, snapshot, hypervisor, reason or label:KEY.")
    ] = "vm",
    since: SinceOption = None,
    until: UntilOption = None,
    every: Annotated[str | None, typer.Option("--every", metavar="TIME", help="In buckets of 1h, 1d, ….")] = None,
    crash: Annotated[
        str, typer.Option("--crash", metavar="UNTIL", help="Crashed VMs count to: ended, emitted or alive_until.")
    ] = "ended",
    as_json: JsonOption = False,
) -> None:
    """Sum up what was used: vCPU-seconds, memory and storage."""
    options: dict[str, Any] = {}
    if every is not None:
        options["every"] = parse_duration(every, "--every")
    if crash not in {"ended", "emitted", "alive_until"}:
        raise UsageError(f"--crash: {crash!r} is none of ended, emitted, alive_until")
    table = ledger_of(session, paths).usage(
        by=_columns(by), since=_when(since, "--since"), until=_when(until, "--until"), crash=crash, **options
    )
    rows = table.to_pylist()
    if as_json:
        output.print_json(rows)
    else:
        print_usage(rows)


@command(app, "audit")
def audit(session: Session, paths: PathsArgument = None, *, as_json: JsonOption = False) -> None:
    """Check that every interval was opened once and closed once. Exits with 1 if anything is found."""
    report = ledger_of(session, paths).audit()
    fields = ("code", "line", "offset", "seq", "vm_id", "snapshot_id", "message")
    if as_json:
        findings = [{name: getattr(finding, name) for name in fields} for finding in report.findings]
        output.print_json({"ok": report.ok, "entries": report.entries, "findings": findings})
    elif report.findings:
        rows = [
            (
                Cell(finding.code, "red"),
                output.plain(finding.line),
                output.plain(finding.seq),
                short_id(finding.vm_id or finding.snapshot_id),
                finding.message,
            )
            for finding in report.findings
        ]
        output.print_table(("FINDING", "LINE", "SEQ", "ID", "WHAT"), rows, right=("LINE", "SEQ"))
    else:
        output.say(f"{report.entries} entries: nothing found", style="green")
    if not report.ok:
        raise typer.Exit(FAILED)


def ledger_of(session: Session, paths: list[str] | None) -> "Ledger":
    """The ledger in these files, or the node's own, with what was still waiting to be written."""
    from cocoon import Ledger

    if paths:
        return Ledger(*(absolute(path) for path in paths))
    if not (session.root / "db").is_dir():
        raise CommandError(f"{session.root} holds no node yet", hint="name ledger files, or the root folder: --root")
    own: Ledger = session.node.ledger
    return own


def print_ids(ids: Iterable[str]) -> None:
    """Each once, in the order in which they came."""
    for identity in dict.fromkeys(ids):
        output.say(identity)


def print_intervals(rows: list[dict[str, Any]], *, names: dict[str, str] | None = None) -> None:
    """The table of `cocoon ledger intervals`. `names`: of VMs, by id, to be shown in their place."""
    columns = ("ID", "KIND", "CPU", "MEMORY", "STORAGE", "START", "STOP", "WHY", "LENGTH")
    table = []
    for row in rows:
        reasons = f"{row['start_reason'] or '-'} … {'(open)' if row['open'] else row['stop_reason'] or '-'}"
        crashed = row["stop_reason"] == "stop-crash"
        table.append(
            (
                (names or {}).get(row["id"]) or short_id(row["id"]),
                row["kind"],
                *_shape(row["cpu"], row["mem_bytes"], row["storage_bytes"]),
                format_local(row["start"], millis=True),
                "-" if row["stop"] is None else format_local(row["stop"], millis=True),
                Cell(reasons, "red" if crashed else ""),
                "-" if row["length_ns"] is None else format_duration(row["length_ns"] / 1e9),
            )
        )
    output.print_table(columns, table, right=("CPU", "MEMORY", "STORAGE", "LENGTH"))


def print_usage(rows: list[dict[str, Any]], *, names: dict[str, str] | None = None) -> None:
    """The table of `cocoon ledger usage`: the columns it is grouped by, then the sums."""
    sums = ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds", "intervals", "open")
    titles = ("VCPU-SECONDS", "MEMORY GIB-SECONDS", "STORAGE GIB-SECONDS", "INTERVALS", "OPEN")
    keys = [name for name in (rows[0] if rows else {}) if name not in sums]
    table = [
        (
            *(_key(name, row[name], names or {}) for name in keys),
            f"{row['vcpu_seconds']:.3f}",
            f"{row['mem_byte_seconds'] / _GIB:.3f}",
            f"{row['storage_byte_seconds'] / _GIB:.3f}",
            str(row["intervals"]),
            str(row["open"]),
        )
        for row in rows
    ]
    output.print_table((*(name.upper() for name in keys), *titles), table, right=titles)


def short_id(text: str) -> str:
    """The first characters of an id."""
    return text[:12] or "-"


def _key(name: str, value: Any, names: dict[str, str]) -> str:
    if isinstance(value, datetime):
        return format_local(value)
    if name in {"vm_id", "snapshot_id"} and value:
        return names.get(value) or short_id(value)
    return output.plain(value)


def _shape(cpu: int, mem_bytes: int, storage_bytes: int) -> tuple[str, str, str]:
    return (
        str(cpu) if cpu else "-",
        format_size(mem_bytes) if mem_bytes else "-",
        format_size(storage_bytes) if storage_bytes else "-",
    )


def _note(entry: "Entry") -> str:
    notes = []
    if entry.ended_at is not None:
        notes.append(f"died {format_local(entry.ended_at, millis=True)} ({entry.evidence})")
    if entry.alive_until is not None:
        notes.append(f"last seen alive {format_local(entry.alive_until, millis=True)}")
    if entry.source_snapshot_id:
        notes.append(f"from {short_id(entry.source_snapshot_id)}")
    notes += [f"{key}={value}" for key, value in sorted(entry.labels.items())]
    return ", ".join(notes)


def _between(ledger: "Ledger", since: datetime | None, until: datetime | None) -> "Iterator[Entry]":
    for entry in ledger:
        if (since is None or entry.emitted_at >= since) and (until is None or entry.emitted_at < until):
            yield entry


def _when(text: str | None, option: str) -> datetime | None:
    return None if text is None else parse_when(text, option)


def _columns(by: str) -> tuple[str, ...]:
    columns = []
    for item in by.split(","):
        if item.startswith("label:") and item != "label:":
            columns.append(item)
        elif item in _BY or item in _BY.values():
            columns.append(_BY.get(item, item))
        else:
            raise UsageError(f"--by: {item!r} is none of {', '.join(_BY)}, label:KEY")
    return tuple(dict.fromkeys(columns))
