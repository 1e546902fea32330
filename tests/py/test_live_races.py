"""Races on living VMMs: whoever wins, no process is left without a record, and the books balance."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cocoon import Backend, InvalidState, Node, NotFound, VmmError
from harness import (
    check_node,
    count_reasons,
    engine_process,
    finish,
    guest_config,
    in_threads,
    ledger_lines,
    reasons,
    vmm_processes,
)

pytestmark = pytest.mark.guest
Rounds = Callable[[int], int]


@pytest.fixture
def backend(tmp_root: Path, guest: object) -> Iterator[Backend]:
    with Node(tmp_root) as node:
        yield node.backend("qemu")
    with Node(tmp_root) as node:  # also when the test has closed the first one
        for vm in node.vms():
            node.backend("qemu").delete(vm.id, force=True)


def is_ok(result: object) -> bool:
    return not isinstance(result, Exception)


def test_rm_force_beats_mark_error_on_live_guests(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    for i in range(rounds(10)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        backend.start(vm.id)
        marked, removed = in_threads(partial(backend.mark_error, vm.id), partial(backend.delete, vm.id, force=True))
        assert removed == [vm.id]
        assert is_ok(marked) or isinstance(marked, NotFound)
        assert reasons(ledger_lines(tmp_root), vm.id)[2:] == [
            ("vm.compute.stop", "stop-user"),
            ("vm.storage.stop", "vm-rm"),
        ]
        assert vmm_processes(tmp_root) == []
    assert check_node(tmp_root) == {}


def test_rm_force_beats_mark_error_on_live_guests_across_processes(
    backend: Backend, tmp_root: Path, rounds: Rounds
) -> None:
    marker = """
backend = Node(sys.argv[1]).backend("qemu")
for name in sys.stdin:
    try:
        backend.mark_error(name.strip())
        print("marked", flush=True)
    except NotFound:
        print("lost", flush=True)
"""
    racer = engine_process(marker, tmp_root)
    assert racer.stdin is not None
    assert racer.stdout is not None
    for i in range(rounds(10)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        backend.start(vm.id)
        racer.stdin.write(f"{vm.id}\n")
        racer.stdin.flush()
        assert backend.delete(vm.id, force=True) == [vm.id]
        assert racer.stdout.readline() in ("marked\n", "lost\n")
    racer.stdin.close()
    racer.stdin = None
    finish(racer)
    assert vmm_processes(tmp_root) == []
    assert check_node(tmp_root) == {}


def test_start_against_rm_force_leaves_no_orphan(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    outcomes = set()
    for i in range(rounds(20)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        delay = threading.Event()

        def remove(vm_id: str = vm.id, after: float = 0.01 * i, delay: threading.Event = delay) -> list[str]:
            delay.wait(after)  # each round meets the start at a later step
            return backend.delete(vm_id, force=True)

        started, removed = in_threads(partial(backend.start, vm.id), remove)
        assert removed == [vm.id], removed
        assert is_ok(started) or isinstance(started, NotFound | InvalidState | VmmError), started
        outcomes.add(is_ok(started))
        assert vmm_processes(tmp_root) == []
        assert not Path(vm.run_dir).exists()
        assert not Path(vm.log_dir).exists()
    assert outcomes == {True, False} or rounds(20) < 20, "the removal met the start at every step"
    assert check_node(tmp_root) == {}


def test_start_against_mark_error_never_leaves_an_unmetered_vmm(
    backend: Backend, tmp_root: Path, rounds: Rounds
) -> None:
    for i in range(rounds(10)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        nothing = threading.Event()

        def mark(vm_id: str = vm.id, after: float = 0.02 * i, nothing: threading.Event = nothing) -> None:
            nothing.wait(after)
            backend.mark_error(vm_id)

        started, _ = in_threads(partial(backend.start, vm.id), mark)
        seen = backend.inspect(vm.id)
        assert seen.alive is seen.interval_open, (started, seen)
        backend.delete(vm.id, force=True)
    assert check_node(tmp_root) == {}


def test_stop_against_crash_closes_once(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    for i in range(rounds(10)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        backend.start(vm.id)
        pid = backend.inspect(vm.id).pid
        assert pid is not None
        stopped, _ = in_threads(partial(backend.stop, vm.id, timeout=0), partial(os.kill, pid, signal.SIGKILL))
        assert stopped == [vm.id]
        stops = [line for line in reasons(ledger_lines(tmp_root), vm.id) if line[0] == "vm.compute.stop"]
        assert stops in ([("vm.compute.stop", "stop-crash")], [("vm.compute.stop", "stop-user")])
        backend.delete(vm.id)
    assert check_node(tmp_root) == {}


def test_two_rm_force_of_a_live_guest_have_one_winner(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    for i in range(rounds(5)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        backend.start(vm.id)
        results = in_threads(*[partial(backend.delete, vm.id, force=True)] * 2)
        assert sorted(map(is_ok, results)) == [False, True], results
        assert all(is_ok(r) or isinstance(r, NotFound) for r in results)
    assert vmm_processes(tmp_root) == []
    assert check_node(tmp_root) == {}
    assert count_reasons(ledger_lines(tmp_root))["vm.storage.stop", "vm-rm"] == rounds(5)


def test_two_starts_make_one_vmm(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    for i in range(rounds(5)):
        vm = backend.create(guest_config(f"v{i}", memory="128M"))
        results = in_threads(*[partial(backend.start, vm.id)] * 3)
        assert results == [[vm.id]] * 3
        assert len(vmm_processes(tmp_root)) == 1
        backend.delete(vm.id, force=True)
    assert check_node(tmp_root) == {}


def test_start_stop_storm_across_processes(backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    code = """
import random
rng = random.Random(sys.argv[2])
backend = Node(sys.argv[1]).backend("qemu")
for _ in range(int(sys.argv[3])):
    try:
        match rng.randrange(5):
            case 0: backend.start("web")
            case 1: backend.stop("web", force=True)
            case 2: backend.mark_error("web")
            case 3: backend.node.reconcile(fix=True)
            case 4: backend.restart("web", force=True)
    except (InvalidState, VmmError, Inconclusive):
        pass
"""
    backend.create(guest_config("web", memory="128M"))
    storm = [engine_process(code, tmp_root, seed, rounds(15)) for seed in range(3)]
    for process in storm:
        finish(process, timeout=300)
    assert backend.node.reconcile(fix=True).ok
    seen = backend.inspect("web")
    assert seen.alive is seen.interval_open
    assert len(vmm_processes(tmp_root)) == int(bool(seen.alive))
    check_node(tmp_root)
    backend.delete("web", force=True)
    assert vmm_processes(tmp_root) == []
    assert check_node(tmp_root) == {}
