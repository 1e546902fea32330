"""Runs of the real command, as a shell would start it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "cocoon.cli"]
SECONDS = 60.0
# Options of a VM that needs no file.
BARE = ("--storage", "0", "--machine", "q35")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """The command on one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COCOON_") and k not in {"NO_COLOR", "TERM"}}
        # The colours that a run under a CI service would force are no business of these tests.
        for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
            kept.pop(name, None)
        return kept | {"COCOON_ROOT": str(self.root), "TERM": "xterm", "COLUMNS": "200"} | dict(more or {})

    def __call__(self, *args: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [*COMMAND, *map(str, args)],
            input=stdin,
            capture_output=True,
            env=self.environment(env),
            timeout=SECONDS,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *args: str | Path) -> Ran:
        """A run that succeeds and complains of nothing."""
        ran = self(*args)
        assert (ran.code, ran.err) == (0, ""), f"{args}: exit {ran.code}: {ran.err}{ran.out}"
        return ran

    def start(self, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*COMMAND, *map(str, args)], env=self.environment(), **options)


class Terminal:
    """A command on a terminal of its own: what it shows, and what is typed."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes], before: list[object]) -> None:
        self.descriptor = descriptor
        self.process = process
        self.before = before  # its settings before the command had it
        self.shown = b""

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def read_until(self, wanted: bytes) -> bytes:
        deadline = time.monotonic() + SECONDS
        while wanted not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not come; shown: {self.shown!r}"
            if not self._read(left):
                raise AssertionError(f"ended before {wanted!r} came; shown: {self.shown!r}")
        return self.shown

    def finish(self) -> int:
        """What it exits with."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running; shown: {self.shown!r}"
            self._read(0.05)
        while select.select([self.descriptor], [], [], 0)[0] and self._read(0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if select.select([self.descriptor], [], [], seconds)[0]:
            with suppress(OSError):  # EIO: nobody has the other side any more
                block = os.read(self.descriptor, 65536)
                self.shown += block
                return bool(block)
            return False
        return True


@contextmanager
def terminal(cli: Cli, *args: str | Path) -> Iterator[Terminal]:
    """The command with a terminal as stdin, stdout and stderr."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(master)
    process = None
    try:
        process = cli.start(*args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        yield Terminal(master, process, before)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        os.close(slave)
        os.close(master)
