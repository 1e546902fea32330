"""`cocoon vm logs`: whole files, their ends, and files that grow, are cut, replaced and removed under the reader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon.cli import follow

Wait = Callable[..., None]

FOLLOWER = """
import sys
from pathlib import Path
from cocoon.cli import follow
path = Path(sys.argv[1])
follow.follow(path, tail=int(sys.argv[2]) if sys.argv[2] else None, gone=lambda: not path.parent.exists())
"""


@pytest.mark.parametrize(
    ("content", "tail", "shown"),
    [
        (b"", 3, b""),
        (b"one\n", 0, b""),
        (b"one\ntwo\nthree\n", 2, b"two\nthree\n"),
        (b"one\ntwo\nthree\n", 3, b"one\ntwo\nthree\n"),
        (b"one\ntwo\nthree\n", 9, b"one\ntwo\nthree\n"),
        (b"one\ntwo\nno end", 1, b"no end"),
        (b"one\ntwo\nno end", 2, b"two\nno end"),
        (b"\n\n\n", 1, b"\n"),
        (b"a\n\xff\x00\n", None, b"a\n\xff\x00\n"),
    ],
)
def test_the_last_lines(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], content: bytes, tail: int | None, shown: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert follow.copy(path, tail=tail)
    assert capfdbinary.readouterr().out == shown


def test_the_last_lines_of_a_file_of_many_blocks(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = [b"%06d" % i + b"x" * 94 + b"\n" for i in range(5000)]
    path = tmp_path / "log"
    path.write_bytes(b"".join(lines))
    follow.copy(path, tail=1234)
    assert capfdbinary.readouterr().out == b"".join(lines[-1234:])


def test_no_file_is_no_output(tmp_path: Path) -> None:
    assert not follow.copy(tmp_path / "none")


class Follower:
    def __init__(self, path: Path, out: Path, tail: str) -> None:
        self.out = out
        with out.open("wb") as stdout:
            self.process = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(path), tail], stdout=stdout)

    def shows(self, text: bytes) -> bool:
        return self.out.read_bytes() == text


def test_following_a_log_through_its_life(tmp_path: Path, wait_until: Wait) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    path = folder / "log"
    follower = Follower(path, tmp_path / "out", "1")
    try:
        path.write_bytes(b"skipped\nfirst\n")
        wait_until(lambda: follower.shows(b"first\n"), "the last line of what was there")
        with path.open("ab") as log:
            log.write(b"second\n")
        wait_until(lambda: follower.shows(b"first\nsecond\n"), "what was appended")
        path.rename(folder / "log.1")
        path.write_bytes(b"third\nfourth\n")
        wait_until(lambda: follower.shows(b"first\nsecond\nthird\nfourth\n"), "the whole of the next run's log")
        os.truncate(path, 0)
        with path.open("ab") as log:
            log.write(b"5\n")
        wait_until(lambda: follower.shows(b"first\nsecond\nthird\nfourth\n5\n"), "what follows a cut")
        path.unlink()
        (folder / "log.1").unlink()
        folder.rmdir()
        assert follower.process.wait(20) == 0, "it ends when the VM is gone"
    finally:
        follower.process.kill()
        follower.process.wait()


def test_following_ends_when_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line\n")
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, str(path), ""], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.wait(20) != 0
    finally:
        process.kill()
        process.wait()
