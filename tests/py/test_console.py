"""The client of a guest's console, whose VMM holds back what there is no room for, as Cloud Hypervisor does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import cocoon._console
from cocoon._console import GuestConsole
from harness import listening

Wait = Callable[..., None]


with socket.socket(socket.AF_UNIX) as any_socket:
    ROOM = any_socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 1024


class Vmm:
    """Its guest's console. A new client replaces the old one, and takes what was held back, as far as there is room."""

    def __init__(self, path: Path) -> None:
        self.clients = 0
        self._held = b""
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._server = listening(path)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                with self._lock:
                    if self._client is not None:
                        self._client.shutdown(socket.SHUT_RDWR)
                        self._client.close()
                    self._client = client
                    self.clients += 1
                    self._flush()

    def _flush(self) -> None:
        if self._client is not None:
            self._client.sendall(self._held[:ROOM])
            self._held = self._held[ROOM:]

    def prints(self, text: bytes) -> None:
        with self._lock:
            self._held += text
            self._flush()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        if self._client is not None:
            self._client.close()


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[Vmm]:
    server = Vmm(tmp_path / "console.sock")
    yield server
    server.close()


@pytest.fixture
def client(vmm: Vmm, tmp_path: Path, wait_until: Wait) -> Iterator[GuestConsole]:
    with GuestConsole(tmp_path / "console.sock", holds_back=True) as console:
        wait_until(lambda: vmm.clients == 1, "it is taken")
        yield console


def read_until_idle(client: GuestConsole) -> bytes:
    """As long as it expects more by itself."""
    heard = b""
    client.wait(10)
    while (block := client.read()) or client.look_after is not None:
        heard += block or b""
        if block is None:
            client.wait(10)
    return heard


def test_all_that_was_held_back_comes(vmm: Vmm, client: GuestConsole) -> None:
    text = b"".join(b"line %d\n" % number for number in range(5 * ROOM))[: 5 * ROOM + 10]
    vmm.prints(text)
    assert read_until_idle(client) == text
    assert vmm.clients == 6


def test_a_little_at_a_time_needs_no_other_connection(vmm: Vmm, client: GuestConsole) -> None:
    vmm.prints(b"x" * 2 * ROOM)
    assert len(read_until_idle(client)) == 2 * ROOM
    before = vmm.clients
    for _ in range(20):
        vmm.prints(b"a key\n")
        assert read_until_idle(client) == b"a key\n"
    assert vmm.clients == before


def test_who_holds_nothing_back_is_met_once(vmm: Vmm, tmp_path: Path, wait_until: Wait) -> None:
    with GuestConsole(tmp_path / "console.sock") as console:
        wait_until(lambda: vmm.clients == 1, "it is taken")
        vmm.prints(b"x" * 2 * ROOM)
        assert len(read_until_idle(console)) == ROOM
    assert vmm.clients == 1


@pytest.mark.parametrize("speak", [lambda client: client.write(b"typed"), lambda client: client.say("typed")])
def test_input_puts_the_next_connection_off(
    vmm: Vmm, client: GuestConsole, speak: Callable[[GuestConsole], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost if the VMM had not read it."""
    vmm.prints(b"x" * 2 * ROOM)
    client.wait(10)
    assert client.read() == b"x" * ROOM
    assert client.look_after is not None
    time.sleep(client.look_after)
    monkeypatch.setattr(cocoon._console, "_QUIET_SECONDS", 60)
    speak(client)
    assert client.read() is None
    assert client.look_after > 30
    assert vmm.clients == 1


def test_a_vmm_that_closes_is_the_end(vmm: Vmm, client: GuestConsole) -> None:
    vmm.prints(b"x" * 2 * ROOM)
    client.wait(10)
    assert client.read() == b"x" * ROOM
    vmm.close()
    client.wait(10)
    assert client.read() == b""
