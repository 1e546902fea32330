"""What a guest has printed since its VMM was started, from the log or, where there is none, from the console itself."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cocoon._console import GuestConsole

if TYPE_CHECKING:
    from cocoon import Backend


class Printed:
    """One run of one VM. A console without a log has one reader: whoever attaches takes it from us."""

    def __init__(self, backend: "Backend", vm_id: str) -> None:
        from cocoon import InvalidArgument

        self._text = b""
        self._open = partial(GuestConsole.of, backend, vm_id)
        self._console: GuestConsole | None = None
        self._log: Path | None = None
        with suppress(InvalidArgument):
            self._log = Path(backend.console_log_path(vm_id))

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
        if self._console is None:
            self._console = self._open()
        while block := self._console.read():
            self._text += block
        if block is not None:
            self.close()

    def close(self) -> None:
        """What was printed until now stays."""
        if self._console is not None:
            self._console.close()
            self._console = None
