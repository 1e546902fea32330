"""Archives by hand, hostile ones too, and what a snapshot store must look like afterwards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any, Literal

from cocoon import Node
from harness import check_books, ledger_lines

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "go-engine"
Entry = tuple[str, bytes] | tarfile.TarInfo


def envelope(name: str = "", **more: Any) -> bytes:
    return json.dumps({"config": {"name": name, **more}, "version": 1}).encode()


def archive(*entries: Entry, compression: Literal["", "gz"] = "") -> bytes:
    """A tar of (name, bytes) and of ready-made headers, in pax."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if compression else "w:", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                body = b"x" * entry.size if entry.isreg() else b""
                tar.addfile(entry, io.BytesIO(body))
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0, **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = size
    info.pax_headers = {key.replace("_", "."): value for key, value in pax.items()}
    return info


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in data.items():
            file.seek(offset)
            file.write(piece)
    return path


def data_folder(path: Path) -> Path:
    """What a VMM might leave: a state file, sparse memory, a disk that is one hole."""
    path.mkdir()
    (path / "vmstate").write_bytes(b"state" * 100)
    sparse_file(path / "memory", 8 << 20, {0: b"first", 1 << 20: os.urandom(100_000), (8 << 20) - 3: b"end"})
    sparse_file(path / "cow.raw", 4 << 20, {})
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def check_store(root: Path, *expected: str) -> None:
    """Nothing is left but these snapshots; each has an open interval, and nothing else has."""
    folder = root / "snapshots"
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == sorted(expected)
    assert list((folder / ".staging").iterdir()) == []
    assert sorted(p.name for p in (folder / ".locks").iterdir()) == sorted(expected)
    with Node(root) as node:
        node.flush()
        assert sorted(s.id for s in node.snapshots.list()) == sorted(expected)
        opened = check_books(ledger_lines(root))
        assert sorted(who for who, dimension in opened if dimension == "snap.storage") == sorted(expected)
