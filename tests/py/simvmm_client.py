"""One VMM process, simulated or real, and requests to it that a careful client would never send."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocoon._sockets import connect

FIRECRACKER = "firecracker"
CLOUD_HYPERVISOR = "cloud-hypervisor"
DEADLINE = 20.0


def until(true: Callable[[], Any], what: str, *, seconds: float = DEADLINE) -> Any:
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.002)
    return result


@dataclass(frozen=True)
class Answer:
    """Status 0: the connection closed without one."""

    status: int
    body: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Vmm:
    """A VMM with its run dir as working directory, and in it its API socket, api.sock."""

    def __init__(
        self,
        binary: Path,
        name: str,
        folder: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._connection: socket.socket | None = None
        api = (
            ["--api-sock", "api.sock", "--log-path", "vmm.log"] if name == FIRECRACKER else ["--api-socket", "api.sock"]
        )
        # Nobody else's input, output and limits.
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        with (folder / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [binary, *api, *arguments],
                cwd=folder,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=os.environ | (env or {}),
            )
        os.close(stdin)
        os.close(stdout)
        os.set_blocking(self.stdout, False)
        self._printed = b""
        if wait:
            until(self.is_listening, f"{name} listens")

    @property
    def socket_path(self) -> Path:
        return self.folder / "api.sock"

    def connect(self) -> socket.socket:
        return connect(self.socket_path, DEADLINE)

    def is_listening(self) -> bool:
        assert self.process.poll() is None, f"{self.name} exited with {self.process.returncode}: {self.log()}"
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def request(self, method: str, path: str, body: object = None) -> Answer:
        """On one connection for all, as long as it lives."""
        if self.name == CLOUD_HYPERVISOR and not path.startswith("/"):
            path = f"/api/v1/{path}"
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        try:
            if self._connection is None:
                self._connection = self.connect()
            self._connection.sendall(head.encode() + data)
            return receive(self._connection)
        except (BrokenPipeError, ConnectionError):
            return Answer(0)

    def raw(self, data: bytes, *, quiet_for: float = 0.2) -> bytes:
        """What comes back for these bytes, until nothing more does."""
        received = b""
        with self.connect() as connection:
            connection.sendall(data)
            connection.settimeout(quiet_for)
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except (TimeoutError, ConnectionResetError):
                pass
        return received

    @property
    def state(self) -> str:
        if self.name == FIRECRACKER:
            return str(self.request("GET", "/").json["state"])
        answer = self.request("GET", "vm.info")
        return str(answer.json["state"]) if answer.status == 200 else "none"

    def printed(self) -> str:
        """All that came on standard output so far, of Firecracker the guest's console."""
        try:
            while chunk := os.read(self.stdout, 65536):
                self._printed += chunk
        except BlockingIOError:
            pass
        return self._printed.decode()

    def log(self) -> str:
        paths = (self.folder / "vmm.log", self.folder / "stderr")
        return "".join(path.read_text() for path in paths if path.exists())

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        os.close(self.stdin)
        os.close(self.stdout)


def receive(connection: socket.socket) -> Answer:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return Answer(0)
        received += chunk
    head, body = received.split(b"\r\n\r\n", 1)
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        chunk = connection.recv(65536)
        if not chunk:
            return Answer(0)
        body += chunk
    return Answer(int(head.split()[1]), body.decode())


@contextmanager
def running(binary: Path, name: str, folder: Path, *arguments: str, **options: Any) -> Iterator[Vmm]:
    vmm = Vmm(binary, name, folder, *arguments, **options)
    try:
        yield vmm
    finally:
        vmm.close()


def cloud_hypervisor_config(kernel: Path, **more: Any) -> dict[str, Any]:
    return {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
        "memory": {"size": 64 << 20, "shared": True},
        "payload": {"kernel": str(kernel), "cmdline": "hello"},
        "serial": {"mode": "Socket", "socket": "console.sock"},
        "console": {"mode": "Off"},
        **more,
    }


def boot(vmm: Vmm, kernel: Path, **more: Any) -> None:
    """`more`: members of Cloud Hypervisor's config."""
    if vmm.name == FIRECRACKER:
        calls = [
            ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64}),
            ("PUT", "/boot-source", {"kernel_image_path": str(kernel), "boot_args": "hello"}),
            ("PUT", "/actions", {"action_type": "InstanceStart"}),
        ]
    else:
        calls = [("PUT", "vm.create", cloud_hypervisor_config(kernel, **more)), ("PUT", "vm.boot", None)]
    for method, path, body in calls:
        answer = vmm.request(method, path, body)
        assert answer.status == 204, (path, answer, vmm.log())
