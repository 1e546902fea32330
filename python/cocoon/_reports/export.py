"""``Ledger.export``: where the bytes go. The rows are made in the core (cpp/cocoon/ledger/export.h)."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cocoon._core import Ledger
from cocoon.errors import InvalidArgument, LedgerError

Progress = Callable[[int, int | None], object]
FORMATS = ("csv", "parquet", "jsonl", "focus", "cloudevents")
_TRIES = 4  # before the one that may fail
_ROW_GROUP = 16 << 20  # bytes of CSV


def export(
    ledger: Ledger,
    dest: str | os.PathLike[str] | BinaryIO,
    *,
    format: str,  # noqa: A002 - the interface's name
    since_seq: int,
    until_seq: int | None,
    progress: Progress | None,
    every_ns: int,
    node_id: str | None,
) -> int:
    """As ``Ledger.export``."""
    if format not in FORMATS:
        raise InvalidArgument(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    for name, value in (("since_seq", since_seq), ("until_seq", until_seq)):
        if value is not None and (type(value) is not int or not 1 <= value < 1 << 63):
            raise InvalidArgument(f"{name}: {value!r}, allowed: an int from 1 to {(1 << 63) - 1}")
    if node_id is None:
        node_id = ledger._node_id or _name_of(ledger) if format in {"focus", "cloudevents"} else ""
    inner = "csv" if format == "parquet" else format
    parquet = _import_pyarrow() if format == "parquet" else None  # before the file is begun

    def run(write: Callable[[bytes], object]) -> int:
        rows = ledger._export(write, inner, since_seq, until_seq, node_id, every_ns, progress)
        if rows is None:
            raise _RotatedError("export: the ledger was rotated while it was read: try again")
        return rows

    def once() -> int:
        with _opened(dest) as file:
            return run(file.write) if parquet is None else _write_parquet(parquet, file, run)

    if isinstance(dest, (str, os.PathLike)):
        for _ in range(_TRIES):
            with suppress(_RotatedError):
                return once()
    return once()


class _RotatedError(LedgerError):
    """What was written is not the ledger once."""


def _name_of(ledger: Ledger) -> str:
    """Of a ledger whose node is not known: made from its first entry, which no other ledger has."""
    entries = iter(ledger)
    while True:
        try:
            line = next(entries).to_json()
        except StopIteration:
            return "empty"
        except LedgerError:
            # A bad line at the front; a file that cannot be read ends the iteration.
            continue
        return "ledger-" + hashlib.sha256(line.encode()).hexdigest()[:26]


@contextmanager
def _opened(dest: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    """A path gets the whole file or stays as it was: it is written under another name, synced, then renamed."""
    if not isinstance(dest, (str, os.PathLike)):
        if not callable(getattr(dest, "write", None)):
            raise InvalidArgument(f"dest: {dest!r}, allowed: a path or a binary file")
        yield dest
        return
    path = Path(dest)
    if path.exists() and not path.is_file():  # a device, a FIFO: nothing that could be put in its place
        with _named(path):
            raw = _Part(path, path)
        with io.BufferedWriter(raw) as file:
            yield file
        return
    with _named(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with io.BufferedWriter(_Part(descriptor, path)) as file:
            yield file
            file.flush()
            mask = os.umask(0)
            os.umask(mask)
            with _named(path):
                os.fchmod(descriptor, 0o666 & ~mask)
                os.fsync(descriptor)
        with _named(path):
            Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


class _Part(io.FileIO):
    """What becomes the file of that path, and fails in its name."""

    def __init__(self, opened: int | Path, path: Path) -> None:
        super().__init__(opened, "wb")
        self._path = path

    def write(self, data: Any, /) -> int:
        with _named(self._path):
            return super().write(data)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(f"export to {path}: {error.strerror}", path=str(path), code=error.errno or 0) from error


# ---------------------------------------------------------------- parquet


def _import_pyarrow() -> Any:
    try:
        import pyarrow  # noqa: ICN001 - the name is the whole module's
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow, which is not installed: pip install 'cocoon-vm[parquet]'", name="pyarrow"
        ) from error
    return pyarrow


def _schema(pyarrow: Any) -> Any:
    text, integer, time = pyarrow.string(), pyarrow.int64(), pyarrow.timestamp("ns", "UTC")
    return pyarrow.schema(
        [
            ("seq", integer),
            *((name, text) for name in ("kind", "vm_id", "snapshot_id", "source_snapshot_id", "reason", "hypervisor")),
            *((name, integer) for name in ("cpu", "mem_bytes", "storage_bytes")),
            ("emitted_at", time),
            ("interval", integer),
            ("labels", text),
            ("ended_at", time),
            ("ended_uptime_ns", integer),
            ("evidence", text),
            ("alive_until", time),
            ("boot_id", text),
            ("uptime_ns", integer),
        ]
    )


def _write_parquet(pyarrow: Any, file: BinaryIO, run: Callable[[Callable[[bytes], object]], int]) -> int:
    schema = _schema(pyarrow)
    options = {
        "read_options": pyarrow.csv.ReadOptions(column_names=schema.names),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
        ),
    }
    waiting = bytearray()
    headed = False

    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write_group() -> None:
            if waiting:
                writer.write_table(pyarrow.csv.read_csv(io.BytesIO(waiting), **options))
                waiting.clear()

        def take(block: bytes) -> None:
            nonlocal headed
            waiting.extend(block if headed else block[block.index(b"\n") + 1 :])
            headed = True
            if len(waiting) >= _ROW_GROUP:
                write_group()

        rows = run(take)
        write_group()
    return rows
