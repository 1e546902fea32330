"""UNIX sockets below a node's folder, however long its path is."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BLOCK = 1 << 16
# How long a VMM may take to notice that its console's client leaves.
_LEAVE_SECONDS = 1.0


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """A connected stream socket, whose waits end with TimeoutError after `timeout` seconds (None: never).

    sun_path holds 107 bytes (unix(7)): through the open folder its own length does not matter.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        except BaseException:
            connection.close()
            raise
    finally:
        os.close(folder)
    return connection


@contextmanager
def console(path: Path, timeout: float | None = None) -> Iterator[socket.socket]:
    """A connection to a guest's console, which is left as `leave` does."""
    connection = connect(path, timeout)
    try:
        yield connection
    finally:
        leave(connection)


def leave(connection: socket.socket) -> None:
    """Closes a connection to a guest's console after the VMM has let go of it, which takes a second at most.

    A UNIX socket that is closed with something unread resets the connection, and Cloud Hypervisor takes no other client
    after that until its guest restarts (seen with 53).
    """
    with connection, suppress(OSError):
        deadline = time.monotonic() + _LEAVE_SECONDS
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(_BLOCK):
                break
