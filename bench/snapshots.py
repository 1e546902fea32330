"""Pause window, clone, restore and clone storms: each against the VMM's own calls, or itself, in turn; JSON rows.

Firecracker with the tests' guest where COCOON_TEST_VMM_DIR has both and KVM is there; the storm runs on the simulator.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cocoon import Backend, Node, VMConfig
from cocoon.testing import SimulatedVmms

ROUNDS = 15
MEMORY = 512 << 20
PAUSE_LIMIT, PAUSE_EXTRA = 1.5, 0.002
LOAD_LIMIT, LOAD_EXTRA = 1.3, 0.003
RESIDENT = 200
FEW, STORMS, STORM_TURNS = 16, (64, 256), 5
STORM_LIMIT = 0.9
HYPERVISOR = "firecracker"


class Api(http.client.HTTPConnection):
    """Requests to a VMM's UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        self.request(method, path, json.dumps(body))
        answer = self.getresponse()
        said = answer.read()
        if answer.status >= 300:
            sys.exit(f"error: {method} {path}: {answer.status} {said!r}")


def row(what: str, value: float, baseline: float, against: str, limit: float, *, extra: float = 0.0) -> None:
    """`limit` times the baseline and `extra` seconds on top are allowed: the ratio is what is left without those."""
    print(
        json.dumps(
            {
                "what": what,
                "value": f"{value * 1e3:.2f} ms",
                "baseline": f"{baseline * 1e3:.2f} ms {against}",
                "ratio": max(0.0, value - extra) / baseline,
                "limit": limit,
                "note": f"{extra * 1e3:g} ms are taken off" if extra else "",
            }
        ),
        flush=True,
    )


# ---- the real one


class Marked:
    """How long the file that says "paused for a snapshot" was there."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not os.path.exists(self._mark):  # noqa: PTH110 (the cheapest look there is)
            time.sleep(0.00002)
        begin = time.perf_counter()
        while os.path.exists(self._mark):  # noqa: PTH110
            time.sleep(0.00002)
        self._seconds = time.perf_counter() - begin

    def during(self, work: Callable[[], object]) -> float:
        self._thread.start()
        work()
        self._thread.join()
        return self._seconds


def spawn(binary: Path, folder: Path) -> tuple[subprocess.Popen[bytes], Api]:
    """A bare VMM in that folder that takes requests."""
    process = subprocess.Popen(
        [binary, "--api-sock", "bare.sock", "--id", "bare", "--log-path", "bare.log"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        api = Api(folder / "bare.sock")
        try:
            api.connect()
        except OSError:
            time.sleep(0.0002)
        else:
            return process, api


def bare_snapshot(binary: Path, kernel: Path, folder: Path) -> float:
    """The VMM's own snapshot call, and a copy of the disk."""
    (folder / "cow").touch()
    os.truncate(folder / "cow", 1 << 20)
    process, api = spawn(binary, folder)
    try:
        api.ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": MEMORY >> 20})
        api.ask("PUT", "/boot-source", {"kernel_image_path": str(kernel), "boot_args": "bare"})
        api.ask("PUT", "/actions", {"action_type": "InstanceStart"})
        time.sleep(0.2)
        api.ask("PATCH", "/vm", {"state": "Paused"})
        begin = time.perf_counter()
        api.ask(
            "PUT",
            "/snapshot/create",
            {"snapshot_type": "Diff", "snapshot_path": "bare.state", "mem_file_path": "bare.memory"},
        )
        middle = time.perf_counter()
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", "cow", "cow.copy"], cwd=folder, check=True)
        # A program's start is not a copy's time: an empty copy is taken off.
        end = time.perf_counter()
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", "bare.log", "log.copy"], cwd=folder, check=True)
        return (middle - begin) + max(0.0, (end - middle) - (time.perf_counter() - end))
    finally:
        process.kill()
        process.wait()


def bare_load(binary: Path, like: Path, data: Path, folder: Path) -> tuple[float, float]:
    """Spawn and load, in a folder with the same files that the engine's clone has; and the end of that VMM."""
    for entry in like.iterdir():
        if entry.is_symlink() or (entry.is_file() and entry.name not in ("vm.lock", "exit")):
            shutil.copy2(entry, folder / entry.name, follow_symlinks=False)
    begin = time.perf_counter()
    process, api = spawn(binary, folder)
    try:
        api.ask(
            "PUT",
            "/snapshot/load",
            {
                "snapshot_path": str(data / "vmstate"),
                "mem_backend": {"backend_type": "File", "backend_path": str(data / "memory")},
                "resume_vm": True,
            },
        )
        loaded = time.perf_counter() - begin
    finally:
        killing = time.perf_counter()
        process.kill()
        process.wait()
    return loaded, time.perf_counter() - killing


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure_real(binary: Path, kernel: Path, folder: Path) -> None:
    windows, bare_windows, clones, restores, loads, kills = [], [], [], [], [], []
    with Node(folder / "node", binaries={HYPERVISOR: binary}) as node:
        backend = node.backend(HYPERVISOR)
        try:
            config = {"memory": MEMORY, "storage": "1M", "kernel": kernel}
            for n in range(ROUNDS):
                vm = backend.create(VMConfig(f"w{n}", **config))
                backend.start(vm.id)
                time.sleep(0.2)
                mark = Marked(Path(vm.run_dir) / "saving")
                windows.append(mark.during(lambda n=n: backend.snapshot(f"w{n}", name=f"s{n}")))
                bare = Path(tempfile.mkdtemp(dir=folder))
                bare_windows.append(bare_snapshot(binary, kernel, bare))
                shutil.rmtree(bare)
                if n > 0:
                    backend.delete(vm.id, force=True)
                    node.snapshots.delete(f"s{n}")
            data = Path(node.snapshots.data_dir("s0"))
            like = Path(backend.clone("s0", VMConfig("like")).run_dir)
            for n in range(ROUNDS):
                clones.append(timed(lambda n=n: backend.clone("s0", VMConfig(f"c{n}"))))
                restores.append(timed(lambda: backend.restore("w0", "s0")))
                bare = Path(tempfile.mkdtemp(dir=folder))
                load, kill = bare_load(binary, like, data, bare)
                loads.append(load)
                kills.append(kill)
                shutil.rmtree(bare)
                backend.delete(f"c{n}", force=True)
        finally:
            for vm in node.vms():
                backend.delete(vm.id, force=True)
    middle = statistics.median
    own = "its own call and a copy"
    pauses = middle(windows), middle(bare_windows)
    row("snapshot of a fresh 512 MiB guest: pause", *pauses, own, PAUSE_LIMIT, extra=PAUSE_EXTRA)
    made, replaced = middle(loads), middle([kill + load for kill, load in zip(kills, loads, strict=True)])
    bare = "bare spawn and load"
    row("clone of a 512 MiB snapshot, to running", middle(clones), made, bare, LOAD_LIMIT, extra=LOAD_EXTRA)
    bare = "bare kill, spawn and load"
    row("restore of it in place, to running", middle(restores), replaced, bare, LOAD_LIMIT, extra=LOAD_EXTRA)


# ---- the storm


def storm(backend: Backend, size: int, name: str) -> float:
    """Seconds for `size` clones at once."""
    gate = threading.Barrier(size)

    def clone(n: int) -> None:
        gate.wait()
        backend.clone("one", VMConfig(f"{name}-{n}"))

    with ThreadPoolExecutor(size) as pool:
        begin = time.perf_counter()
        for done in [pool.submit(clone, n) for n in range(size)]:
            done.result()
        seconds = time.perf_counter() - begin
    backend.delete(*(f"{name}-{n}" for n in range(size)), force=True)
    return seconds


def measure_storm(folder: Path) -> None:
    vmms = SimulatedVmms(folder / "vmms")
    seconds: dict[int, list[tuple[float, float]]] = {size: [] for size in STORMS}
    with Node(folder / "storm", binaries=vmms.binaries) as node:
        backend = Backend(node, HYPERVISOR, socket_timeout=60)
        try:
            backend.create(VMConfig("source", memory="64M", storage="1M", kernel=vmms.kernel))
            backend.start("source")
            backend.snapshot("source", name="one")
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda n: backend.clone("one", VMConfig(f"resident-{n}")), range(RESIDENT)))
            # In turn, and as many clones on both sides: what else the machine does meets both alike.
            for turn in range(STORM_TURNS):
                for size in STORMS:
                    few = sum(storm(backend, FEW, f"f{turn}-{size}-{n}") for n in range(size // FEW))
                    seconds[size].append((storm(backend, size, f"s{turn}-{size}"), few))
        finally:
            backend.delete(*(vm.id for vm in node.vms()), force=True)
    for size, pairs in seconds.items():
        many, few = (size / statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            json.dumps(
                {
                    "what": f"{size} clones at once, {RESIDENT} VMs resident (simulator)",
                    "value": f"{many:.0f}/s",
                    "baseline": f"{few:.0f}/s {FEW} at once",
                    "ratio": statistics.median(few / many for many, few in pairs),
                    "limit": STORM_LIMIT if size == STORMS[-1] else None,
                    "at_least": True,
                }
            ),
            flush=True,
        )


def main() -> None:
    vmms = Path(os.environ.get("COCOON_TEST_VMM_DIR", ""))
    with tempfile.TemporaryDirectory(prefix="cb-") as name:
        folder = Path(name)
        binary, kernel = vmms / HYPERVISOR, vmms / "guest.elf"
        if binary.is_file() and kernel.is_file() and os.access("/dev/kvm", os.R_OK | os.W_OK):
            measure_real(binary, kernel, folder)
        else:
            print("no firecracker and guest.elf in COCOON_TEST_VMM_DIR, or no KVM: only the storm", file=sys.stderr)
    # In memory: for a minute ext4 passes over the inodes of removed files one by one, whoever makes and removes many.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cb-", dir=memory if memory.is_dir() else None) as name:
        measure_storm(Path(name))


if __name__ == "__main__":
    main()
