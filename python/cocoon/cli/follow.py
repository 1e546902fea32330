"""Copies a log to stdout, and follows it as it grows, is cut short, replaced or removed."""

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 16
_POLL_MS = 100


def copy(path: Path, *, tail: int | None = None) -> bool:
    """The whole file, or its last lines. False: there is no such file."""
    try:
        with path.open("rb") as file:
            _skip_to_tail(file.fileno(), tail)
            _drain(file.fileno())
    except FileNotFoundError:
        return False
    return True


def follow(path: Path, *, tail: int | None, gone: Callable[[], bool]) -> None:
    """Goes on until the file is gone and `gone` says that it will not come back, or nobody reads stdout any more."""
    fd = -1
    identity = (0, 0)
    first = True
    try:
        while True:
            if fd < 0 and path.exists():
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                status = os.fstat(fd)
                identity = (status.st_dev, status.st_ino)
                _skip_to_tail(fd, tail if first else None)
                first = False
            if fd >= 0:
                if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
                    os.lseek(fd, 0, os.SEEK_SET)  # cut short: a VMM that starts again begins a new log
                _drain(fd)
                if _identity(path) != identity:
                    _drain(fd)  # what came between the last read and the removal
                    os.close(fd)
                    fd = -1
                    continue
            elif gone():
                return
            if not _wait_for_reader():
                raise BrokenPipeError
    finally:
        if fd >= 0:
            os.close(fd)


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def _wait_for_reader() -> bool:
    # Waits a moment; False at once when stdout is a pipe that nobody reads: a quiet log would otherwise be followed
    # for ever.
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poller.poll(_POLL_MS))


def _drain(fd: int) -> None:
    while block := os.read(fd, _BLOCK):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _skip_to_tail(fd: int, lines: int | None) -> None:
    # Backwards block by block: a console log can be much larger than what is asked for.
    if lines is None:
        return
    end = position = os.lseek(fd, 0, os.SEEK_END)
    # A last line without its end is a line too.
    wanted = lines + 1 if end and os.pread(fd, 1, end - 1) == b"\n" else lines
    while position and wanted:
        start = max(0, position - _BLOCK)
        block = os.pread(fd, position - start, start)
        at = len(block)
        while wanted and (at := block.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if not wanted:
                os.lseek(fd, start + at + 1, os.SEEK_SET)
                return
        position = start
    os.lseek(fd, end if not lines else 0, os.SEEK_SET)
