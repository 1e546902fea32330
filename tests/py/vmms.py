"""The VMMs that the lifecycle tests run over: the real ones with a guest of 5 KB, and the simulator."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cocoon import Backend, InvalidArgument, Node, VMConfig
from cocoon._console import GuestConsole
from cocoon.testing import SimulatedVmms
from harness import proc_gone

SECONDS = 30.0


def find_in_test_dir(name: str) -> Path | None:
    folder = os.environ.get("COCOON_TEST_VMM_DIR")
    if folder and (found := Path(folder, name)).exists():
        return found
    return None


@dataclass
class Vmm:
    """One VMM of this host, and how its guest is talked to."""

    hypervisor: str
    binary: Path
    kernel: Path
    # A key, and what the guest prints when it is pressed.
    key: tuple[str, str] = ("d", "DIRTY")

    def backend(self, node: Node, **options: Any) -> Backend:
        return Backend(node, self.hypervisor, binary=self.binary, **options)

    def config(self, name: str, **more: Any) -> VMConfig:
        options: dict[str, Any] = {"cpu": 1, "memory": "64M", "storage": "1M", "kernel": self.kernel}
        if self.hypervisor == "qemu":
            options["accelerator"] = "tcg"  # this guest needs nothing that would be slow
        return VMConfig(name, **(options | more))

    @property
    def guest_listens(self) -> bool:
        """Not under QEMU, where this guest's timer stands still; that of test_live.py hears."""
        return self.hypervisor != "qemu"

    @property
    def reset_ends_it(self) -> bool:
        """Cloud Hypervisor restarts a guest in the same process."""
        return self.hypervisor != "cloud-hypervisor"


@dataclass
class Console:
    """The guest's console, whichever way it is reached."""

    backend: Backend
    ref: str
    heard: str = ""

    def __post_init__(self) -> None:
        self._console: GuestConsole | None = None
        self._read = 0
        self._log: Path | None = None
        with suppress(InvalidArgument):  # Cloud Hypervisor writes none
            self._log = self.backend.console_log_path(self.ref)

    def type(self, text: str) -> None:
        path = self.backend.console_path(self.ref)
        if path.is_fifo():
            fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(fifo, text.encode())
            finally:
                os.close(fifo)
        else:
            self._connected().say(text)

    def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        """The guest has printed this since the last such wait: what came before it."""
        deadline = time.monotonic() + seconds
        while (at := self.heard.find(text)) < 0:
            if time.monotonic() > deadline:
                pytest.fail(f"the guest of {self.ref} did not print {text!r}: {self.heard!r}")
            if not self._hear():
                threading.Event().wait(0.005)
        before, self.heard = self.heard[:at], self.heard[at + len(text) :]
        return before

    def skip(self) -> None:
        """Forgets what the guest has printed so far."""
        while self._hear():
            pass
        self.heard = ""

    def _hear(self) -> bool:
        if self._log is not None:
            more = self._log.read_bytes()[self._read :] if self._log.exists() else b""
            self._read += len(more)
        else:
            received: bytes | None = b""
            with suppress(OSError):
                console = self._connected()
                console.wait(0.02)
                received = console.read()
            if received == b"":  # the guest restarts: its new serial port is a new socket
                self.close()
            more = received or b""
        self.heard += more.decode(errors="replace")
        return bool(more)

    def _connected(self) -> GuestConsole:
        if self._console is None:
            self._console = GuestConsole.of(self.backend, self.ref, SECONDS)
        return self._console

    def close(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None


def processes_below(root: Path) -> list[int]:
    """Processes whose working directory lies below this root's run dir."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd").startswith(f"{root}/run/"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if not proc_gone(pid)]


@contextmanager
def console(backend: Backend, ref: str) -> Iterator[Console]:
    attached = Console(backend, ref)
    try:
        yield attached
    finally:
        attached.close()


@functools.cache
def simulated_vmm(hypervisor: str) -> Vmm:
    """For all tests of this process, in a folder that goes with it."""
    folder = tempfile.TemporaryDirectory(prefix="cp-vmms-")
    atexit.register(folder.cleanup)
    vmms = SimulatedVmms(Path(folder.name))
    return Vmm(hypervisor, vmms.binaries[hypervisor], vmms.kernel)


def find_vmm(name: str, folder: Path, guest: Path | None = None) -> Vmm:
    """Skips where it is not there. A hypervisor's name, with "sim-" before it for a simulated one in `folder`. A real
    one boots `guest`, by default the guest.elf of the tests' folder."""
    if name.startswith("sim-"):
        simulated = SimulatedVmms(folder)
        hypervisor = name.removeprefix("sim-")
        return Vmm(hypervisor, simulated.binaries[hypervisor], simulated.kernel, key=("z", "z"))
    guest = guest or find_in_test_dir("guest.elf")
    if guest is None:
        pytest.skip("no guest.elf in COCOON_TEST_VMM_DIR")
    if not guest.exists():
        pytest.skip(f"no {guest.name} on this architecture")
    program = "qemu-system-x86_64" if name == "qemu" else name
    binary = find_in_test_dir(program) or shutil.which(program)
    if binary is None:
        pytest.skip(f"no {program} in COCOON_TEST_VMM_DIR or PATH")
    if name != "qemu" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened")
    return Vmm(name, Path(binary), guest)
