"""The engine is killed at every system call of a scenario; whatever it left, the next opener puts right.

`strace -e inject=…:signal=KILL:when=N` with N = 1, 2, … until the scenario completes. By default the calls that
change something are kill points (fewer under COCOON_TEST_SCALE); COCOON_TEST_LONG=1 takes every call there is.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon import Node, VMConfig
from harness import (
    check_books,
    check_node,
    guest_config,
    kill_at,
    ledger_lines,
    reasons,
    traced_calls,
    vmm_processes,
)

Rounds = Callable[[int], int]

# The calls by which the engine changes what others can see: files, locks. How many they are does not depend on the
# host, unlike the others: a look at /proc opens and closes something for each process there is.
CHANGES: list[str] = [
    "write",
    "pwrite64",
    "writev",
    "fdatasync",
    "fsync",
    "ftruncate",
    "flock",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
]


def scenario(verb: str) -> list[str]:
    # The marks say where the scenario begins and ends: what the interpreter does around it is of no interest.
    code = f"import sys, os; from cocoon import Node; node = Node(sys.argv[1]); os.getppid(); {verb}; os.getppid()"
    return [sys.executable, "-c", code]


def kill_points(command: list[str], trace: Path, most: int) -> list[tuple[str, int]]:
    """(call, n): the n-th such call of the engine's thread lies within the scenario. About `most`, spread."""
    everything = bool(os.environ.get("COCOON_TEST_LONG"))
    calls = traced_calls(command, trace, "all" if everything else ",".join([*CHANGES, "getppid"]))
    begin, end = (i for i, call in enumerate(calls) if call == "getppid")
    points = [(call, calls[: i + 1].count(call)) for i, call in enumerate(calls) if begin < i < end]
    assert points, "the scenario makes no such call: it tests nothing"
    return points if everything else points[:: max(1, len(points) // most)]


def prepare(root: Path, *, started: bool) -> str:
    with Node(root) as node:
        vm = node.backend("qemu").create(VMConfig("web", storage="1M"))
        if started:
            node.backend("qemu").mark_started("web")
        return vm.id


MARKED = [("vm.storage.start", "boot"), ("vm.compute.start", "boot")]
REMOVED = [*MARKED, ("vm.compute.stop", "stop-crash"), ("vm.storage.stop", "vm-rm")]


@pytest.mark.parametrize("verb", ["mark_started", "mark_error", "remove"])
def test_engine_killed_at_every_system_call(tmp_root: Path, tmp_path: Path, rounds: Rounds, verb: str) -> None:
    statements = {
        "mark_started": "node.backend('qemu').mark_started('web')",
        "mark_error": "node.backend('qemu').mark_error('web')",
        "remove": "node.backend('qemu').delete('web', force=True)",
    }
    started = verb != "mark_started"
    trace = tmp_path / "trace"

    def fresh(at: int) -> tuple[Path, str]:
        root = tmp_root / str(at)
        return root, prepare(root, started=started)

    def command(root: Path) -> list[str]:
        command = scenario(statements[verb])
        return [*command, str(root)]

    root, _ = fresh(0)
    points = kill_points(command(root), trace, rounds(40))
    committed = 0
    for at, (call, when) in enumerate(points, start=1):
        root, vm_id = fresh(at)
        if not kill_at(command(root), call, when, trace):
            assert call not in CHANGES, f"it ran to its end, past {call} number {when}"
            shutil.rmtree(root)  # there were fewer processes to look at than before
            continue
        with Node(root) as node:
            assert node.pending == 0, "opening drains what was left"
            # The same verb again does the rest, or finds that all is done.
            backend = node.backend("qemu")
            here = [vm.id for vm in node.vms()]
            lines = ledger_lines(root)
            check_books(lines)
            if verb == "mark_started":
                assert here == [vm_id]
                assert reasons(lines, vm_id) in (MARKED[:1], MARKED)
                committed += reasons(lines, vm_id) == MARKED
            elif verb == "mark_error":
                assert reasons(lines, vm_id) == MARKED
                committed += backend.inspect("web").state == "error"
            else:
                assert (reasons(lines, vm_id) == REMOVED) is (here == [])
                committed += here == []
                if here:
                    backend.delete("web", force=True)
                assert reasons(ledger_lines(root), vm_id) == REMOVED
                assert not list((root / "run").rglob("cow.raw"))
        check_node(root)
        shutil.rmtree(root)
    if len(points) > 20:
        assert 0 < committed < len(points), "some kills fell before the commit and some after it"


@pytest.mark.guest
@pytest.mark.parametrize("verb", ["start", "stop", "create", "remove"])
def test_engine_killed_during_sequences_on_a_live_guest(
    tmp_root: Path, tmp_path: Path, guest: object, rounds: Rounds, verb: str
) -> None:
    """A dozen kill points spread over each sequence; COCOON_TEST_LONG=1 takes them all."""
    trace = tmp_path / "trace"
    statements = {
        "create": "sys.path.insert(0, sys.argv[2]); import harness; "
        "node.backend('qemu').create(harness.guest_config('web'))",
        "start": "node.backend('qemu').start('web')",
        "stop": "node.backend('qemu').stop('web', force=True)",
        "remove": "node.backend('qemu').delete('web', force=True)",
    }
    root = tmp_root / "node"
    command = [*scenario(statements[verb]), str(root), str(Path(__file__).parent)]

    def set_up() -> None:
        with Node(root) as node:
            backend = node.backend("qemu")
            for vm in node.vms():
                backend.delete(vm.id, force=True)
            if verb != "create":
                backend.create(guest_config("web", memory="128M"))
            if verb in ("stop", "remove"):
                backend.start("web")

    set_up()
    for call, when in kill_points(command, trace, rounds(12)):
        set_up()
        kill_at(command, call, when, trace)
        with Node(root) as node:
            assert node.reconcile(fix=True).ok
            assert all(row["status"] == "ok" for row in node.reconcile().rows)
            living = vmm_processes(root)
            assert len(living) == sum(bool(vm.alive) for vm in node.vms())
            for vm in node.vms():
                assert vm.alive is vm.interval_open
        check_node(root)
    set_up()
    with Node(root) as node:
        for vm in node.vms():
            node.backend("qemu").delete(vm.id, force=True)
    assert vmm_processes(root) == []
    assert check_node(root) == {}
