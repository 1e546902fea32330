"""A client of a guest's console, where that is a socket."""

import math
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cocoon._sockets import connect

if TYPE_CHECKING:
    from cocoon import Backend

_BLOCK = 1 << 16
# How long a VMM may take to notice that its console's client leaves.
_LEAVE_SECONDS = 1.0
# As long as this nothing comes before another connection is tried; the VMM may take as long for each step of that.
_QUIET_SECONDS = 0.2
# The same once it is known that something was held back.
_AGAIN_SECONDS = 0.02


class GuestConsole:
    """One client. `holds_back`: the VMM is a Cloud Hypervisor, which has two ways of its own (seen with 53).

    What a client that reads slowly has no room for stays in the VMM until the guest prints more or another client
    comes. So where a full socket was read and then nothing comes, we come once more, as one who replaces us. (What the
    guest prints in the very moment of that may be lost, if nothing was held back.)

    And a client that closes the connection with something unread, which resets it, is the last one until the guest
    restarts. So we end our side, and close when the VMM has ended the other one.
    """

    def __init__(self, path: Path, timeout: float | None = None, *, holds_back: bool = False) -> None:
        """Raises OSError: nobody listens there; TimeoutError after `timeout` seconds (None: never), as `say` does."""
        self._path = path
        self._timeout = timeout
        self._socket = self._connect(timeout)
        # What may be all that there was room for. A message takes some 770 bytes of the sender's room, be it of one
        # byte; ours is as large as the VMM's.
        room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._much = room // 1024 if holds_back else math.inf
        self._look_at: float | None = None
        self._came_again = False
        self._received = 0  # since we came again

    @classmethod
    def of(cls, backend: "Backend", vm_id: str, timeout: float | None = None) -> Self:
        return cls(backend.console_path(vm_id), timeout, holds_back=cls.held_back_by(backend))

    @staticmethod
    def held_back_by(backend: "Backend") -> bool:
        return backend.hypervisor == "cloud-hypervisor"

    def _connect(self, timeout: float | None) -> socket.socket:
        connection = connect(self._path, timeout)
        connection.settimeout(None)  # or MSG_DONTWAIT would wait
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def look_after(self) -> float | None:
        """In so many seconds `read` may find something, though nothing has come. None: only when something comes."""
        return None if self._look_at is None else max(0.0, self._look_at - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Until `read` may find something, `seconds` at most."""
        look_after = self.look_after
        select.select([self], [], [], seconds if look_after is None else min(seconds, look_after))

    def read(self) -> bytes | None:
        """What has come. None: nothing. b"": the VMM has closed the console. Waits only where it comes again, and there
        less than half a second."""
        try:
            block = self._socket.recv(_BLOCK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._look_again()
        except ConnectionResetError:
            return b""
        self._received += len(block)
        if self._came_again:
            if self._received >= self._much:  # and there may be more
                self._came_again = False
                self._look_at = time.monotonic() + _AGAIN_SECONDS
        elif self._look_at is not None or len(block) >= self._much:
            self._look_at = time.monotonic() + _QUIET_SECONDS
        return block

    def _look_again(self) -> bytes | None:
        if self._look_at is None or time.monotonic() < self._look_at:
            return None
        if self._came_again:
            self._look_at, self._came_again = None, False  # it has given us all it had
            return None
        self._look_at, self._came_again, self._received = time.monotonic() + _QUIET_SECONDS, True, 0
        with suppress(OSError):  # the guest has ended: so will this connection
            replacing = self._connect(_QUIET_SECONDS)
            with self._socket as replaced:
                self._socket = replacing
                return _read_to_end(replaced, _QUIET_SECONDS) or None
        return None

    def _is_spoken_to(self) -> None:
        # What the VMM has not read yet would be lost with the connection.
        if self._look_at is not None:
            self._look_at = time.monotonic() + _QUIET_SECONDS

    def write(self, data: bytes) -> int:
        """How much of it was taken. Does not wait. Raises BrokenPipeError when nobody is there to take it."""
        self._is_spoken_to()
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except ConnectionResetError as error:
            raise BrokenPipeError from error

    def say(self, text: str) -> None:
        """Writes all of it. Raises OSError."""
        self._is_spoken_to()
        self._socket.settimeout(self._timeout)
        self._socket.sendall(text.encode())
        self._socket.settimeout(None)

    def close(self) -> None:
        leave(self._socket)


def leave(connection: socket.socket) -> None:
    """Closes a connection to a guest's console after the VMM has let go of it, which takes a second at most."""
    with connection, suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        _read_to_end(connection, _LEAVE_SECONDS)


def _read_to_end(connection: socket.socket, seconds: float) -> bytes:
    """All that still comes, for so long at most."""
    heard = b""
    deadline = time.monotonic() + seconds
    with suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            block = connection.recv(_BLOCK)
            if not block:
                break
            heard += block
    return heard
