"""What the lifecycle tests share: books that must balance, engines in processes of their own, and real guests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cocoon
from cocoon import Backend, Node, VMConfig, _sockets

READY = "COCOON-GUEST-READY"
LineType = dict[str, Any]


# ------------------------------------------------------------------ the books


def ledger_lines(root: Path) -> list[LineType]:
    path = root / "metering" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def check_books(lines: list[LineType]) -> dict[tuple[str, str], LineType]:
    """Invariants 1 to 5 and 7 of docs/lifecycle.md over whole ledger lines, told independently of the engine's reader.

    Returns what is open: (id, dimension) -> the line that opened it.
    """
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1)), "seq is not 1, 2, 3 …"
    opened: dict[tuple[str, str], LineType] = {}
    removed: set[str] = set()
    for line in lines:
        who = line.get("vm_id") or line["snapshot_id"]
        dimension, _, what = line["kind"].rpartition(".")
        key = (who, dimension)
        assert who not in removed, f"said after its removal: {line}"
        if what == "start":
            assert key not in opened, f"opened twice: {line}"
            assert line["interval"] == line["seq"], line
            if dimension == "vm.compute":
                assert (who, "vm.storage") in opened, f"compute without storage: {line}"
            opened[key] = line
        else:
            assert key in opened, f"closed though not open: {line}"
            start = opened.pop(key)
            assert line["interval"] == start["seq"], line
            assert line["shape"] == start["shape"], f"a stop carries the shape of its start: {line}"
            assert line.get("hypervisor") == start.get("hypervisor"), line
            if dimension == "vm.storage":
                assert (who, "vm.compute") not in opened, f"storage closed under compute: {line}"
            if line.get("reason") in ("vm-rm", "snap-rm"):
                removed.add(who)
            for bound in ("ended_at", "alive_until"):
                if bound in line:
                    assert cocoon.Entry.from_json(json.dumps(start)).emitted_at_ns <= time_ns(line[bound])
                    assert time_ns(line[bound]) <= time_ns(line["emitted_at"])
    return opened


def time_ns(text: str) -> int:
    entry = {"kind": "vm.storage.start", "vm_id": "x", "shape": {}, "emitted_at": text}
    return cocoon.Entry.from_json(json.dumps(entry)).emitted_at_ns


def check_node(root: Path) -> dict[tuple[str, str], LineType]:
    """The books balance, and agree with our own auditor and with the records."""
    with Node(root) as node:
        node.flush()
        opened = check_books(ledger_lines(root))
        audit = node.ledger.audit() if (root / "metering" / "ledger.jsonl").exists() else None
        assert audit is None or audit.ok, [f"{f.code} line {f.line}: {f.message}" for f in audit.findings]
        records = {vm.id: vm for vm in node.vms()}
        assert {who for who, dim in opened if dim == "vm.storage"} == {
            vm.id for vm in records.values() if vm.state != "creating"
        }
        assert {who for who, dim in opened if dim == "vm.compute"} == {
            vm.id for vm in records.values() if vm.interval_open
        }
        assert {who for who, dim in opened if dim == "snap.storage"} == {s.id for s in node.snapshots.list()}
    return opened


def reasons(lines: list[LineType], vm_id: str) -> list[tuple[str, str | None]]:
    """[("vm.compute.start", "boot"), …] of one VM, in order."""
    return [(line["kind"], line.get("reason")) for line in lines if line.get("vm_id") == vm_id]


def count_reasons(lines: list[LineType]) -> dict[tuple[str, str | None], int]:
    counts: dict[tuple[str, str | None], int] = defaultdict(int)
    for line in lines:
        counts[line["kind"], line.get("reason")] += 1
    return counts


# ------------------------------------------------------------------ engines side by side


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """Runs the calls at once, each in a thread; returns results, or the CocoonError that a call raised."""
    results: list[object] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def run(at: int, call: Callable[[], object]) -> None:
        gate.wait()
        try:
            results[at] = call()
        except cocoon.CocoonError as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a call did not return: deadlock"
    return results


def engine_process(code: str, *args: object) -> subprocess.Popen[str]:
    """A Python process with an engine of its own. `code` sees `sys.argv[1:]` and everything of `cocoon`."""
    prologue = "import sys, os, json\nfrom cocoon import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", prologue + code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def race(*racers: subprocess.Popen[str]) -> list[str]:
    """What engine processes print that say "up", wait for a line, and begin together."""
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "up\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    return [finish(racer) for racer in racers]


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit {process.returncode}: {err}"
    return out


# ------------------------------------------------------------------ real guests


def guest_config(name: str, **more: Any) -> VMConfig:
    from cocoon.guest import find_guest

    guest = find_guest()
    assert guest is not None
    options: dict[str, Any] = {
        "cpu": 1,
        "memory": "192M",
        "storage": "64M",
        "kernel": guest.kernel,
        "initrd": guest.initrd,
        "cmdline": guest.cmdline,
    }
    return VMConfig(name, **(options | more))


def wait_ready(backend: Backend, ref: str, *, seconds: float = 90) -> None:
    """The guest has printed its ready line. A guest that stays silent is started once more: see docs/qemu.md."""
    for attempt in range(2):
        deadline = time.monotonic() + seconds / 2
        while time.monotonic() < deadline:
            log = backend.console_log_path(ref)
            if log.exists() and READY in log.read_text(errors="replace"):
                return
            if backend.inspect(ref).alive is False:
                pytest.fail(f"the VMM ended before its guest was ready: {backend.log_path(ref).read_text()}")
            threading.Event().wait(0.02)
        if attempt == 0:
            backend.restart(ref, force=True)
    pytest.fail(f"the guest never spoke; console: {backend.console_log_path(ref).read_text(errors='replace')[-2000:]}")


def console(backend: Backend, ref: str) -> socket.socket:
    return _sockets.connect(backend.console_path(ref), 30)


def listening(path: Path) -> socket.socket:
    """A socket of ours at this path, which may be longer than a socket's can be."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(8)
    finally:
        os.close(folder)
    return listener


def tell(backend: Backend, ref: str, line: str, answer: str) -> None:
    """Types a line at the guest's console and waits for its answer."""
    with console(backend, ref) as serial:
        serial.sendall(f"{line}\n".encode())
        heard = b""
        while f"\n{answer}".encode() not in heard:
            more = serial.recv(4096)
            assert more, f"the console closed before {answer!r}: {heard!r}"
            heard += more


def remove_everything(node: Node) -> None:
    for vm in node.vms():
        node.backend(vm.hypervisor).delete(vm.id, force=True)
    for snapshot in node.snapshots.list():
        node.snapshots.delete(snapshot.id)


def proc_gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def vmm_processes(root: Path) -> list[int]:
    """Live VMMs whose working directory lies below this root's run dir."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cwd = os.readlink(entry / "cwd")
                argv = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if cwd.startswith(f"{root}/run/") and b"qemu-system" in argv.split(b"\0")[0]:
                found.append(int(entry.name))
    return found


def shim_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


# ------------------------------------------------------------------ kills at system calls


def strace(trace: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    binary = shutil.which("strace")
    if binary is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run([binary, "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"strace may not trace here: {probe.stderr.decode().strip()}")
    # Without -f: a single reference is worked on by the calling thread alone, and a VMM that it starts must not be
    # traced.
    return subprocess.run([binary, "-qq", "-o", str(trace), *args], capture_output=True, check=False, timeout=120)


def traced_calls(command: list[str], trace: Path, calls: str) -> list[str]:
    """Names of the system calls that the command's first thread makes, in order."""
    done = strace(trace, "-e", f"trace={calls}", *command)
    assert done.returncode == 0, done.stderr.decode()
    return [line.split("(")[0] for line in trace.read_text(errors="replace").splitlines() if line[0].isalpha()]


def kill_at(command: list[str], call: str, when: int, trace: Path) -> bool:
    """Kills the command at the `when`-th such call of a thread of it. False: it ran to its end before that."""
    done = strace(trace, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}", *command)
    assert done.returncode in (0, -9, 137), done.stderr.decode()
    return done.returncode != 0
