"""The terminal on a guest's serial console, which is a UNIX socket."""

import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cocoon.cli.errors import FAILED, CommandError, printable

_LEAVE = b"\x1d"  # ^]
_BLOCK = 1 << 16
# After the end of a piped input: how long a guest may think before its answer.
_QUIET_SECONDS = 1.0


def attach(path: Path, name: str) -> None:
    """Copies both ways until ^] (terminal), until the input has ended and the guest is quiet (pipe), or until the VMM
    closes the console."""
    with _connect(path, name) as guest:
        stdin = sys.stdin.fileno()
        if not os.isatty(stdin):
            _copy(guest, stdin, leaves=False)
            return
        print(f"console of {printable(name)}; ^] leaves it", file=sys.stderr)
        with _raw(stdin):
            left = _copy(guest, stdin, leaves=True)
        print("" if left else "\nthe VMM closed the console", file=sys.stderr)


def _connect(path: Path, name: str) -> socket.socket:
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # sun_path holds 107 bytes: through /proc the folder's own length does not matter.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            guest.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    except OSError as error:
        guest.close()
        raise CommandError(
            f"console of {name}: {path}: {error.strerror}", code=FAILED, hint=f"`cocoon vm inspect {name}`"
        ) from None
    return guest


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    # Whatever ends us, but SIGKILL, gives the terminal back as it was.
    before = termios.tcgetattr(terminal)
    deadly = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    handlers = {number: signal.signal(number, _end) for number in deadly}
    try:
        tty.setraw(terminal)
        yield
    finally:
        # A terminal that hung up has nothing to be restored.
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _copy(guest: socket.socket, stdin: int, *, leaves: bool) -> bool:
    # True: the user left. False: the guest's side ended, or the piped input did.
    open_input = True
    deadline = float("inf")
    to_guest = b""
    while True:
        reading: list[Any] = [guest] if not open_input or to_guest else [guest, stdin]
        left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        readable, writable, _ = select.select(reading, [guest] if to_guest else [], [], left)
        if not readable and not writable:
            return False
        if guest in readable:
            try:
                block = guest.recv(_BLOCK)
            except ConnectionResetError:
                block = b""
            if not block:
                return False
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        if guest in writable:
            try:
                # Never blocks for a guest that does not read while it has something to say.
                to_guest = to_guest[guest.send(to_guest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                return False
        if stdin in readable:
            block = os.read(stdin, _BLOCK)
            open_input = bool(block)
            typed, leave, _ = block.partition(_LEAVE) if leaves else (block, b"", b"")
            to_guest += typed
            if leave:
                with suppress(OSError):  # what was typed just before, if the guest takes it
                    guest.send(to_guest, socket.MSG_DONTWAIT)
                return True
        if not open_input and not to_guest:
            deadline = time.monotonic() + _QUIET_SECONDS
