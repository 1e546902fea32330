"""UNIX sockets below a node's folder, however long its path is."""

import os
import socket
from pathlib import Path


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
