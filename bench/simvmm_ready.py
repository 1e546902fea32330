"""From the spawn of a simulated VMM to its first answer, against the spawn and end of a program that does nothing.

One JSON row per VMM. The limit is the design's 3 ms where such a spawn takes 1 ms.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from cocoon.testing import HYPERVISORS, SimulatedVmms

ROUNDS = 100
LIMIT = 3.0
ARGUMENTS = {
    "firecracker": ["--api-sock", "api.sock", "--log-path", "log"],
    "cloud-hypervisor": ["--api-socket", "api.sock"],
}


def ready_ns(binary: Path, arguments: list[str], folder: Path) -> int:
    """Until it has answered one request; any answer will do."""
    begin = time.perf_counter_ns()
    process = subprocess.Popen(
        [binary, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False
    )
    with socket.socket(socket.AF_UNIX) as connection:
        while connection.connect_ex(os.fspath(folder / "api.sock")) != 0:
            time.sleep(0.0001)
        connection.sendall(b"GET /version HTTP/1.1\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 ")
    took = time.perf_counter_ns() - begin
    process.kill()
    process.wait()
    (folder / "api.sock").unlink()
    return took


def spawn_ns(program: str, folder: Path) -> int:
    begin = time.perf_counter_ns()
    subprocess.run([program], cwd=folder, stdin=subprocess.DEVNULL, close_fds=False, check=True)
    return time.perf_counter_ns() - begin


def main() -> None:
    nothing = shutil.which("true")
    assert nothing is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vmms = SimulatedVmms(folder / "vmms")
        for hypervisor in HYPERVISORS:
            ready, bare = [], []
            for _ in range(ROUNDS):
                ready.append(ready_ns(vmms.binaries[hypervisor], ARGUMENTS[hypervisor], folder))
                bare.append(spawn_ns(nothing, folder))
            print(
                json.dumps(
                    {
                        "what": f"simulated {hypervisor}: spawn to first answer",
                        "value": f"{statistics.median(ready) / 1e6:.2f} ms",
                        "baseline": f"{statistics.median(bare) / 1e6:.2f} ms spawn of true",
                        "ratio": statistics.median(ready) / statistics.median(bare),
                        "limit": LIMIT,
                    }
                )
            )


if __name__ == "__main__":
    main()
