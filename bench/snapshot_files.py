"""Snapshots' files against the programs one would use: tar and cp, each followed by sync(1) of what it made, since our
calls are durable too. One sparse file of 1 GiB with 64 MiB of data; JSON rows."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cocoon import Node

ROUNDS = 9
SIZE = 1 << 30
PIECES = 64
LIMIT = 1.1


def make_data(folder: Path) -> Path:
    folder.mkdir()
    with (folder / "memory").open("wb") as file:
        file.truncate(SIZE)
        for i in range(PIECES):
            file.seek(i * (SIZE // PIECES))
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    return folder


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def compare(what: str, ours: Callable[[], object], theirs: Callable[[], object], name: str) -> None:
    """In turn, so that a busy moment hits both sides; each makes what it makes anew."""
    a, b = [], []
    for _ in range(ROUNDS):
        a.append(timed(ours))
        b.append(timed(theirs))
    row = {
        "what": what,
        "value": f"{statistics.median(a):.0f} ms",
        "baseline": f"{statistics.median(b):.0f} ms {name}",
        "ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
        "limit": LIMIT,
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as base:
        folder = Path(base)
        data = make_data(folder / "data")
        packed = folder / "theirs.tar"
        out = folder / "out"
        with Node(folder / "node") as node:
            store = node.snapshots
            made = store.create(data)

            def tar() -> None:
                packed.unlink(missing_ok=True)
                run("tar", "--sparse", "-C", store.data_dir(made.id), "-cf", packed, "memory")
                run("sync", packed)

            def export() -> None:
                (folder / "ours.tar").unlink(missing_ok=True)
                store.export(made.id, folder / "ours.tar")

            compare("export of a snapshot, 64 MiB of data in 1 GiB", export, tar, "tar --sparse; sync")

            def untar() -> None:
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                run("tar", "-C", out, "-xf", packed)
                run("sync", out / "memory", out)

            def import_() -> None:
                for snapshot in store.list()[:-1]:
                    store.delete(snapshot.id)
                store.import_(folder / "ours.tar")

            compare("import of it", import_, untar, "tar -x; sync")

            def copy() -> None:
                shutil.rmtree(out, ignore_errors=True)
                store.export_dir(made.id, out)

            def cp() -> None:
                (folder / "copy").unlink(missing_ok=True)
                run("cp", "--reflink=auto", "--sparse=always", store.data_dir(made.id) / "memory", folder / "copy")
                run("sync", folder / "copy", folder)

            compare("copy of its files", copy, cp, "cp --reflink=auto; sync")


if __name__ == "__main__":
    main()
