"""One question to a guest at its console, and what it answers."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cocoon._console import GuestConsole

if TYPE_CHECKING:
    from cocoon import Backend

_POLL_SECONDS = 0.02


def ask(backend: "Backend", vm_id: str, question: str, answer: str, seconds: float) -> str | None:
    """The first group of the pattern `answer` in what the guest prints after the question; None: not in time."""
    path = Path(backend.console_path(vm_id))
    deadline = time.monotonic() + seconds
    if path.is_fifo():
        log = Path(backend.console_log_path(vm_id))
        before = log.stat().st_size if log.exists() else 0
        fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fifo, f"{question}\n".encode())
        finally:
            os.close(fifo)
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if found := re.search(answer, log.read_bytes()[before:].decode(errors="replace")):
                    return found[1]
            time.sleep(_POLL_SECONDS)
        return None
    with GuestConsole.of(backend, vm_id) as console:
        # What was printed while nobody was there comes first, and is no answer.
        console.wait(_POLL_SECONDS)
        while console.read():
            pass
        console.say(f"{question}\n")
        heard = b""
        while (left := deadline - time.monotonic()) > 0:
            console.wait(left)
            block = console.read()
            if block is None:
                continue
            heard += block
            if found := re.search(answer, heard.decode(errors="replace")):
                return found[1]
            if not block:
                break
    return None
