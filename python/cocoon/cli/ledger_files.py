"""`cocoon ledger tail` and `cocoon ledger export`: entries as they come, and the ledger in the formats of others."""

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from cocoon.cli import output
from cocoon.cli.app import command
from cocoon.cli.errors import CommandError, UsageError
from cocoon.cli.ledger import PathsArgument, app, entry_cells, ledger_of
from cocoon.cli.session import Session
from cocoon.cli.units import parse_duration

_FORMATS = ("csv", "parquet", "jsonl", "focus", "cloudevents")
_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@command(app, "tail")
def tail(
    session: Session,
    paths: PathsArgument = None,
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last entries first.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line, as in the ledger.")] = False,
) -> None:
    """Print the last entries, and with -f those that come."""
    from collections import deque

    ledger = ledger_of(session, paths)
    # Following begins before the last entries are read, so that none is lost in between; seq drops what comes twice.
    coming = ledger.follow(poll=0.2) if follow else iter(())
    last = deque(ledger, maxlen=lines) if lines else deque()
    seen = max((entry.seq or 0 for entry in last), default=0)

    def show(entry: Any) -> None:
        if as_json:
            print(entry.to_json(), flush=True)
        else:
            cells = [cell if isinstance(cell, str) else cell.text for cell in entry_cells(entry)]
            output.say("  ".join(cell for cell in cells if cell != "-"))

    for entry in last:
        show(entry)
    for entry in coming:
        if entry.seq is None or entry.seq > seen:
            show(entry)
        if _nobody_reads():
            return


def _nobody_reads() -> bool:
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLNVAL) for _, events in poller.poll(0))


@command(app, "export")
def export(
    session: Session,
    paths: PathsArgument = None,
    *,
    to: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; - is stdout.")] = "-",
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(_FORMATS)}. Default: as FILE ends.")
    ] = None,
    since_seq: Annotated[int, typer.Option("--since-seq", metavar="N", min=1, help="From this entry on.")] = 1,
    until_seq: Annotated[
        int | None, typer.Option("--until-seq", metavar="N", min=1, help="Up to this entry, inclusive.")
    ] = None,
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="The buckets of focus: whole minutes, a part of a day.")
    ] = "1d",
    node_id: Annotated[
        str | None,
        typer.Option("--node-id", metavar="ID", help="In ids of focus and cloudevents. Default: the node's."),
    ] = None,
) -> None:
    """Write the ledger for other programs: the same range is always the same file."""
    chosen = format_ or _SUFFIXES.get(Path(to).suffix)
    if chosen not in _FORMATS:
        raise UsageError(
            f"--format: {format_!r} is none of {', '.join(_FORMATS)}"
            if format_
            else f"--format is missing, and {to} does not say it; allowed: {', '.join(_FORMATS)}"
        )
    seconds = parse_duration(every, "--every")
    if to == "-" and sys.stdout.isatty() and chosen == "parquet":
        raise UsageError("--output: Parquet is no text; name a file, or pipe it")
    ledger = ledger_of(session, paths)
    try:
        with _destination(to) as dest, _progress() as told:
            rows = ledger.export(
                dest,
                format=chosen,  # type: ignore[arg-type]
                since_seq=since_seq,
                until_seq=until_seq,
                progress=told,
                every=seconds,
                node_id=node_id,
            )
    except ImportError as error:
        raise CommandError(str(error)) from None
    if to != "-":
        print(f"{rows} rows written to {to}", file=sys.stderr)


@contextmanager
def _destination(to: str) -> Iterator[str | BinaryIO]:
    if to != "-":
        yield to
        return
    sys.stdout.flush()
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar on a terminal once it takes more than half a second."""
    if not output.is_terminal(sys.stderr):
        yield None
        return
    import time

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    begun = time.monotonic()
    with Progress(
        BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", visible=False)

        def told(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=time.monotonic() - begun > 0.5)

        yield told
