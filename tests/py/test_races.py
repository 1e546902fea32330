"""Races on the state machine, without a VMM: exactly one wins, and the books say so."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cocoon import CocoonError, InvalidState, Node, NotFound, VMConfig
from harness import (
    check_books,
    check_node,
    count_reasons,
    engine_process,
    finish,
    in_threads,
    ledger_lines,
    race,
    reasons,
)

Rounds = Callable[[int], int]


def is_ok(result: object) -> bool:
    return not isinstance(result, Exception)


def test_rm_force_beats_mark_error_in_threads(tmp_root: Path, rounds: Rounds) -> None:
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        for i in range(rounds(500)):
            vm = backend.create(VMConfig(f"v{i}", storage=0))
            backend.mark_started(vm.id)
            marked, removed = in_threads(partial(backend.mark_error, vm.id), partial(backend.delete, vm.id, force=True))
            assert removed == [vm.id]
            assert is_ok(marked) or isinstance(marked, NotFound)
            with pytest.raises(NotFound):
                backend.inspect(vm.id)
            assert reasons(ledger_lines(tmp_root)[-4:], vm.id) == [
                ("vm.storage.start", "boot"),
                ("vm.compute.start", "boot"),
                ("vm.compute.stop", "stop-crash"),
                ("vm.storage.stop", "vm-rm"),
            ]
    assert check_node(tmp_root) == {}


def test_rm_force_beats_mark_error_in_processes(tmp_root: Path, rounds: Rounds) -> None:
    total = rounds(500)
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        for i in range(total):
            backend.create(VMConfig(f"v{i}", storage=0))
            backend.mark_started(f"v{i}")
    loop = """
with Node(sys.argv[1]) as node:
    backend = node.backend("qemu")
    print("up", flush=True)
    sys.stdin.readline()
    won = 0
    for i in range(int(sys.argv[2])):
        try:
            if sys.argv[3] == "rm":
                backend.delete(f"v{i}", force=True)
            else:
                backend.mark_error(f"v{i}")
            won += 1
        except NotFound:
            pass
    print(won)
"""
    racers = [engine_process(loop, tmp_root, total, verb) for verb in ("rm", "err", "rm")]
    first, _, second = map(int, race(*racers))
    assert first + second == total, "each VM is removed by exactly one of the two"
    assert check_node(tmp_root) == {}
    counts = count_reasons(ledger_lines(tmp_root))
    assert counts["vm.storage.stop", "vm-rm"] == total
    assert counts["vm.compute.stop", "stop-crash"] == total


def test_two_rm_force_have_one_winner(tmp_root: Path, rounds: Rounds) -> None:
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        for i in range(rounds(200)):
            vm = backend.create(VMConfig(f"v{i}", storage=0))
            results = in_threads(*[partial(backend.delete, vm.id, force=True)] * 3)
            assert sorted(map(is_ok, results)) == [False, False, True]
            assert all(is_ok(r) or isinstance(r, NotFound) for r in results)
    assert check_node(tmp_root) == {}


def test_loser_of_a_create_race_for_a_name_leaves_nothing(tmp_root: Path, rounds: Rounds) -> None:
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        for i in range(rounds(100)):
            results = in_threads(*[lambda i=i: backend.create(VMConfig(f"v{i}", storage="1M"))] * 3)
            assert sorted(map(is_ok, results)) == [False, False, True]
        assert len(list((tmp_root / "run" / "qemu").iterdir())) == len(node.vms())
        assert len(list((tmp_root / "locks").iterdir())) == len(node.vms())
    check_node(tmp_root)


def test_storm_of_verbs_keeps_the_books(tmp_root: Path, rounds: Rounds) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with Node(tmp_root, ledger_labels=["team"]) as node:
        backend = node.backend("qemu")

        def storm(rng: random.Random) -> None:
            for _ in range(rounds(150)):
                name = f"v{rng.randrange(3)}"
                verb = rng.choice(["create", "started", "stopped", "error", "rm", "rm", "relabel", "reconcile", "stop"])
                try:
                    match verb:
                        case "create":
                            backend.create(VMConfig(name, storage=0))
                        case "started":
                            backend.mark_started(name)
                        case "stopped":
                            backend.mark_stopped(name)
                        case "error":
                            backend.mark_error(name)
                        case "rm":
                            backend.delete(name, force=rng.random() < 0.5)
                        case "relabel":
                            backend.relabel(name, {"team": rng.choice(["a", "b", None])})
                        case "reconcile":
                            node.reconcile(fix=True)
                        case "stop":
                            backend.stop(name)
                except (NotFound, InvalidState):
                    pass
                except CocoonError as error:
                    assert "already" in str(error) or "taken" in str(error), error  # noqa: PT017 - one of several races

        generators = [random.Random(f"{seed}-{i}") for i in range(6)]
        in_threads(*[lambda rng=rng: storm(rng) for rng in generators])
        lines = ledger_lines(tmp_root)
        check_books(lines)
    check_node(tmp_root)


def test_eight_processes_share_one_gapless_sequence(tmp_root: Path, rounds: Rounds) -> None:
    transitions = rounds(200)
    code = """
with Node(sys.argv[1]) as node:
    backend = node.backend("qemu")
    backend.create(VMConfig(sys.argv[2], storage=0))
    for i in range(int(sys.argv[3]) - 1):
        (backend.mark_stopped if i % 2 else backend.mark_started)(sys.argv[2])
"""
    workers = [engine_process(code, tmp_root, f"v{i}", transitions) for i in range(8)]
    for worker in workers:
        finish(worker)
    lines = ledger_lines(tmp_root)
    assert len(lines) == 8 * transitions
    check_books(lines)
    check_node(tmp_root)
