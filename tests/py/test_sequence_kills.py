"""The engine is killed inside snapshot, clone, restore, hibernate and wake; reconcile and gc put right what it left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon import Backend, Node, VMConfig, VMState
from harness import check_node, kill_at, ledger_lines, remove_everything, traced_calls
from test_syscall_kills import CHANGES
from vmms import Vmm, find_vmm, processes_below

Rounds = Callable[[int], int]

DISK = b"of the snapshot"
VERBS = {
    "snapshot": "backend.snapshot('web', name='two')",
    "clone": "backend.clone('one', VMConfig('c1'))",
    "restore": "backend.restore('web', 'one')",
    "hibernate": "backend.hibernate('web')",
    "wake": "backend.wake('web')",
}


def command(vmm: Vmm, root: Path, verb: str) -> list[str]:
    # The marks say where the scenario begins and ends: what the interpreter does around it is of no interest.
    code = (
        "import sys, os, json; from cocoon import *; node = Node(sys.argv[1], binaries=json.loads(sys.argv[2])); "
        f"backend = node.backend({vmm.hypervisor!r}); os.getppid(); {VERBS[verb]}; os.getppid()"
    )
    return [sys.executable, "-c", code, str(root), json.dumps({vmm.hypervisor: str(vmm.binary)})]


def kill_points(command: list[str], trace: Path, most: int) -> list[tuple[str, int]]:
    """(call, n): what it changes of files and locks, and what it tells the VMM. About `most` of them, spread."""
    calls = traced_calls(command, trace, ",".join([*CHANGES, "sendmsg", "getppid"]))
    begin, end = (i for i, call in enumerate(calls) if call == "getppid")
    points = [(call, calls[: i + 1].count(call)) for i, call in enumerate(calls) if begin < i < end]
    assert any(call == "sendmsg" for call, _ in points), "it tells the VMM nothing: this tests nothing"
    return points if os.environ.get("COCOON_TEST_LONG") else points[:: max(1, len(points) // most)]


def own_disk(run_dir: Path) -> bytes:
    with (run_dir / "cow.raw").open("rb") as disk:
        return disk.read(len(DISK))


def set_up(vmm: Vmm, backend: Backend, verb: str) -> None:
    """`web` runs, was saved as `one`, and has written to its disk since; for a wake it is hibernated."""
    remove_everything(backend.node)
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    with (Path(vm.run_dir) / "cow.raw").open("r+b") as disk:
        disk.write(DISK)
    backend.snapshot("web", name="one")
    with (Path(vm.run_dir) / "cow.raw").open("r+b") as disk:
        disk.write(DISK.upper())
    if verb == "wake":
        backend.hibernate("web")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("hypervisor", ["sim-firecracker", "sim-cloud-hypervisor"])
def test_engine_killed_in_the_middle(
    tmp_root: Path, tmp_path: Path, rounds: Rounds, hypervisor: str, verb: str
) -> None:
    """A dozen kill points spread over each sequence; COCOON_TEST_LONG=1 takes them all."""
    vmm = find_vmm(hypervisor, tmp_path / "vmms")
    root, trace = tmp_root / "node", tmp_path / "trace"
    binaries = {vmm.hypervisor: vmm.binary}

    def prepare() -> None:
        with Node(root, binaries=binaries) as node:
            set_up(vmm, node.backend(vmm.hypervisor), verb)

    prepare()
    outcomes = set()
    for call, when in kill_points(command(vmm, root, verb), trace, rounds(12)):
        prepare()
        if not kill_at(command(vmm, root, verb), call, when, trace):
            assert call == "sendmsg", f"it ran to its end, past {call} number {when}"  # it may poll less often
        with Node(root, binaries=binaries) as node:
            backend = node.backend(vmm.hypervisor)
            assert node.reconcile(fix=True).ok, f"killed at {call} number {when}"
            node.gc()
            rows = node.reconcile().rows
            assert all(row["status"] == "ok" for row in rows), rows
            assert node.gc().removed == []
            for vm in node.vms():
                assert vm.alive is vm.interval_open, f"killed at {call} number {when}: {vm}"
                assert not list(Path(vm.run_dir).glob("*.cocoon-*"))
                assert not (Path(vm.run_dir) / "saving").exists()
            assert len(processes_below(root)) == sum(bool(vm.alive) for vm in node.vms())
            outcomes.add(finish(verb, backend))
            assert processes_below(root)
        check_node(root)
    assert len(outcomes) > 1, f"all kills fell on one side of the commit: {outcomes}"
    with Node(root, binaries=binaries) as node:
        remove_everything(node)
    assert check_node(root) == {}
    assert processes_below(root) == []


def finish(verb: str, backend: Backend) -> str:
    """How far the killed one came; what it did not do is done now, so nothing it left is in the way."""
    names = {vm.name: vm for vm in backend.node.vms()}
    web = names["web"]
    run_dir = Path(web.run_dir)
    taken = {snapshot.name for snapshot in backend.node.snapshots.list()}
    if verb == "snapshot":
        assert (web.state, own_disk(run_dir)) == (VMState.RUNNING, DISK.upper())
        if "two" in taken:
            return "taken"
        backend.snapshot("web", name="two")
        return "not taken"
    if verb == "clone":
        assert own_disk(run_dir) == DISK.upper()
        if "c1" in names:
            assert own_disk(Path(names["c1"].run_dir)) == DISK
            return "cloned"
        backend.clone("one", VMConfig("c1"))
        return "not cloned"
    if verb == "restore":
        lines = [line for line in ledger_lines(backend.node.root) if line.get("vm_id") == web.id]
        came_far = [line["kind"] for line in lines if line.get("reason") == "restore"]
        if web.state == VMState.RUNNING and len(came_far) == 4:
            assert own_disk(run_dir) == DISK
            return "restored"
        assert own_disk(run_dir) == DISK.upper(), "the old disk, whenever it died"
        backend.restore("web", "one")
        assert own_disk(run_dir) == DISK
        return f"{web.state}, not restored"
    assert own_disk(run_dir) == DISK.upper()
    if verb == "hibernate":
        if web.state == VMState.HIBERNATED:
            backend.wake("web")
            return "hibernated"
        assert web.state == VMState.RUNNING
        return "not hibernated"
    if web.state == VMState.RUNNING:
        assert taken == {"one"}, "what kept its memory is gone"
        return "woken"
    assert web.state == VMState.HIBERNATED
    backend.wake("web")
    return "not woken"
