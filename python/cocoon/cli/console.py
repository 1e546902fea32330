"""The terminal on a guest's serial console: a UNIX socket, or a fifo for the input and a file for the output."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cocoon._console import GuestConsole
from cocoon.cli.errors import FAILED, CommandError, printable

_LEAVE = b"\x1d"  # ^]
_BLOCK = 1 << 16
# After the end of a piped input: how long a guest may think before its answer.
_QUIET_SECONDS = 1.0
# A file cannot be waited for: how often it is looked at.
_LOOK_SECONDS = 0.02


def attach(path: Path, name: str, printed: Path | None = None, *, holds_back: bool = False) -> None:
    """Copies both ways until ^] (terminal), until the input has ended and the guest is quiet (pipe), or until the VMM
    closes the console. `printed` is the console's log: the output of a console whose path is only a way in;
    `holds_back` is explained at GuestConsole."""
    with _ended_by_signals(), _open(path, name, printed, holds_back) as guest:
        stdin = sys.stdin.fileno()
        if not os.isatty(stdin):
            _copy(guest, stdin, leaves=False)
            return
        print(f"console of {printable(name)}; ^] leaves it", file=sys.stderr)
        with _raw(stdin):
            left = _copy(guest, stdin, leaves=True)
        print("" if left else "\nthe VMM closed the console", file=sys.stderr)


class _Console(Protocol):
    """The guest's side, as GuestConsole describes it."""

    def fileno(self) -> int: ...

    @property
    def look_after(self) -> float | None: ...

    def read(self) -> bytes | None: ...

    def write(self, data: bytes) -> int: ...


class _Fifo:
    """Firecracker's: its stdin, a fifo that only it reads, and its stdout, a file."""

    look_after: float | None = _LOOK_SECONDS

    def __init__(self, fifo: int, printed: BinaryIO) -> None:
        self._fifo = fifo
        self._printed = printed
        # From the beginning of the last line, which may be a prompt.
        end = printed.seek(0, os.SEEK_END)
        begin = max(0, end - _BLOCK)
        printed.seek(begin)
        last = printed.read(end - begin)
        printed.seek(begin + last.rfind(b"\n") + 1)
        self._hangup = select.poll()
        self._hangup.register(fifo, 0)

    def fileno(self) -> int:
        return self._fifo

    def read(self) -> bytes | None:
        ended = bool(self._hangup.poll(0))  # asked first: what was printed before the end is in the file by then
        block = self._printed.read(_BLOCK)
        if block:
            return block
        return b"" if ended else None

    def write(self, data: bytes) -> int:
        try:
            return os.write(self._fifo, data)
        except BlockingIOError:
            return 0


@contextmanager
def _open(path: Path, name: str, printed: Path | None, holds_back: bool) -> Iterator[_Console]:
    with ExitStack() as opened:
        try:
            guest: _Console
            if printed is None:
                guest = opened.enter_context(GuestConsole(path, holds_back=holds_back))
            else:
                fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                opened.callback(os.close, fifo)
                guest = _Fifo(fifo, opened.enter_context(printed.open("rb")))
        except OSError as error:
            raise CommandError(
                f"console of {name}: {path}: {error.strerror}", code=FAILED, hint=f"`cocoon vm inspect {name}`"
            ) from None
        yield guest


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    # Whatever ends us, but SIGKILL, leaves the console and gives the terminal back as it was.
    deadly = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    # One that was ignored when we were started (nohup, a job in the background) stays so.
    handlers = {number: signal.signal(number, _end) for number in deadly if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        # A terminal that hung up has nothing to be restored.
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _end(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _copy(guest: _Console, stdin: int, *, leaves: bool) -> bool:
    # True: the user left. False: the guest's side ended, or the piped input did.
    open_input = True
    deadline: float | None = None
    to_guest = b""
    while True:
        # (A fifo is a way in, and never readable, until its other end is closed.)
        reading: list[_Console | int] = [guest, stdin] if open_input and not to_guest else [guest]
        waits = [max(0.0, deadline - time.monotonic())] if deadline is not None else []
        if guest.look_after is not None:
            waits.append(guest.look_after)
        readable, writable, _ = select.select(reading, [guest] if to_guest else [], [], min(waits, default=None))
        active = bool(readable or writable)
        block = guest.read()
        if block == b"":
            return False
        if block:
            active = True
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        if writable:
            try:
                # Never blocks for a guest that does not read while it has something to say.
                to_guest = to_guest[guest.write(to_guest) :]
            except BrokenPipeError:
                return False
        if stdin in readable:
            block = os.read(stdin, _BLOCK)
            open_input = bool(block)
            typed, leave, _ = block.partition(_LEAVE) if leaves else (block, b"", b"")
            to_guest += typed
            if leave:
                with suppress(OSError):  # what was typed just before, if the guest takes it
                    guest.write(to_guest)
                return True
        if not active and deadline is not None and time.monotonic() >= deadline:
            return False
        if active and not open_input and not to_guest:
            deadline = time.monotonic() + _QUIET_SECONDS
