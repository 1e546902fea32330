"""What a test run left in its temp folder: processes, mounts, files. Processes are killed once they are reported."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

GRACE = 5.0  # seconds for what is just ending


def processes(folder: Path) -> dict[int, str]:
    """Those that work in `folder`, were called with a path in it, or were started by a test that had it as TMPDIR."""
    found = {}
    needle = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            argv = (entry / "cmdline").read_bytes()
            where = os.fsencode((entry / "cwd").readlink())
            if needle in argv or where.startswith(needle) or b"TMPDIR=" + needle in (entry / "environ").read_bytes():
                found[int(entry.name)] = argv.replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def mounts(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def files(folder: Path) -> list[str]:
    # pytest keeps the folder of a failed test, for whoever looks into it.
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("pytest-of-"))


def sweep(folder: Path, grace: float = GRACE) -> list[str]:
    """Looks for up to `grace` seconds, says what is still there and removes it, the folder with it."""
    deadline = time.monotonic() + grace
    while (running := processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [f"process {pid}: {argv}" for pid, argv in running.items()]
    for pid in running:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    left += [f"mount {point}" for point in mounts(folder)]
    left += [f"file {name}" for name in files(folder)] if folder.exists() else []
    if not mounts(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return left
