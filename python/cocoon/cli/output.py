"""What commands print. A terminal gets colours; a pipe gets the same tables plain, without escapes.

Results go to stdout; errors, warnings and progress to stderr: `--json` is one document on stdout and nothing else.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from cocoon.cli.errors import one_line, printable
from cocoon.cli.units import format_utc


class Cell(NamedTuple):
    """Text in a colour of rich's names ("green", "bold red")."""

    text: str
    style: str


def is_terminal(stream: IO[str]) -> bool:
    """True where escapes are understood and wanted."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def print_json(document: object) -> None:
    """One document, keys in the order they have."""
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False, default=_jsonable))


def _jsonable(value: object) -> object:
    if isinstance(value, datetime):
        return format_utc(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    right: Sequence[str] = (),
    file: IO[str] | None = None,
) -> None:
    """Aligned columns, `right` ones to the right. No rows: the heading alone."""
    stream = file or sys.stdout
    clean = [[_clean(cell) for cell in row] for row in rows]
    if is_terminal(stream):
        _rich_table(columns, clean, right, stream)
        return
    widths = [max([len(title), *(len(row[i].text) for row in clean)]) for i, title in enumerate(columns)]
    for texts in [list(columns), *([cell.text for cell in row] for row in clean)]:
        padded = [
            text.rjust(width) if title in right else text.ljust(width)
            for title, text, width in zip(columns, texts, widths, strict=True)
        ]
        print("  ".join(padded).rstrip(), file=stream)


def _clean(cell: str | Cell) -> Cell:
    if isinstance(cell, Cell):
        return Cell(printable(cell.text), cell.style)
    return Cell(printable(cell), "")


def _rich_table(columns: Sequence[str], rows: list[list[Cell]], right: Sequence[str], stream: IO[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    Console(file=stream, highlight=False).print(table)


def say(text: str, *, style: str = "", file: IO[str] | None = None) -> None:
    """One line."""
    stream = file or sys.stdout
    if style and is_terminal(stream):
        from rich.console import Console
        from rich.text import Text

        Console(file=stream, highlight=False).print(Text(printable(text), style=style), soft_wrap=True)
    else:
        print(printable(text), file=stream, flush=True)


def fail(message: str, hint: str = "", *, ref: str = "") -> None:
    """`error: …` on stderr, and what to do next. `ref`: which of several references it is about."""
    prefix = f"{printable(ref)}: " if ref and ref not in message else ""
    _labelled("error", "bold red", prefix + one_line(message))
    if hint:
        _labelled("hint", "dim", one_line(hint))


def warn(message: str) -> None:
    """`warning: …` on stderr."""
    _labelled("warning", "yellow", one_line(message))


def _labelled(label: str, style: str, text: str) -> None:
    sys.stdout.flush()
    if is_terminal(sys.stderr):
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble((f"{label}:", style), " ", text)
        Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    else:
        print(f"{label}: {text}", file=sys.stderr)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Shows on a terminal that something is being done; a pipe sees nothing."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(printable(text)):
        yield


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes on a terminal, from half a second on; a pipe sees nothing. What it gives is called with the bytes
    done and, where that is known, in all."""
    if not is_terminal(sys.stderr):
        yield lambda _done, _total: None
        return
    began = time.monotonic()
    bar: Any = None

    def advance(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None and time.monotonic() - began < 0.5:
            return
        if bar is None:
            bar = _new_bar()
            bar.start()
            bar.add_task(printable(text), total=total)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )


def dashed(text: str | None) -> str:
    """ "-" where there is nothing to show."""
    return text or "-"


def plain(value: Any) -> str:
    """A value of a table whose columns are not known here."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
