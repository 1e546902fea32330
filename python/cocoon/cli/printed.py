"""What a guest has printed since its VMM was started, from the log or, where there is none, from the console itself."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cocoon._sockets import connect, leave

if TYPE_CHECKING:
    from cocoon import Backend

_BLOCK = 1 << 16


class Printed:
    """One run of one VM. A console without a log has one reader: whoever attaches takes it from us."""

    def __init__(self, backend: "Backend", vm_id: str) -> None:
        from cocoon import InvalidArgument

        self._text = b""
        self._connection: socket.socket | None = None
        self._log: Path | None = None
        try:
            self._log = Path(backend.console_log_path(vm_id))
        except InvalidArgument:
            self._console = Path(backend.console_path(vm_id))

    def text(self) -> str:
        """All of it so far."""
        if self._log is not None:
            with suppress(FileNotFoundError):
                self._text = self._log.read_bytes()
        else:
            with suppress(OSError):  # not there yet, or not any more
                self._receive()
        return self._text.decode(errors="replace")

    def _receive(self) -> None:
        if self._connection is None:
            self._connection = connect(self._console)
        while block := self._connection.recv(_BLOCK, socket.MSG_DONTWAIT):
            self._text += block
        self.close()

    def close(self) -> None:
        """What was printed until now stays."""
        if self._connection is not None:
            leave(self._connection)
            self._connection = None
