"""Rotation: a rename under the lock, packing after it; what dies where, nothing is lost and nothing is there twice."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon import Ledger, LedgerError, Node, VMConfig
from harness import kill_at
from test_syscall_kills import kill_points

Rounds = Callable[[int], int]


def transitions(node: Node, count: int) -> None:
    backend = node.backend("qemu")
    for _ in range(count):
        backend.mark_started("web")
        backend.mark_stopped("web")


def make(root: Path, *, rotate_bytes: int = 0) -> Node:
    node = Node(root, rotate_bytes=rotate_bytes)
    node.backend("qemu").create(VMConfig("web", storage="1M"))
    return node


def seqs(node: Node) -> list[int | None]:
    return [entry.seq for entry in node.ledger]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "metering").iterdir())


def test_rotation_packs_what_there_is_and_goes_on(tmp_root: Path) -> None:
    with make(tmp_root) as node:
        transitions(node, 10)
        before = node.ledger.intervals().to_pylist()
        part = node.rotate_ledger()
        assert part == tmp_root / "metering" / "ledger.1-21.jsonl.zst"
        assert part.stat().st_mode & 0o777 == 0o600
        assert names(tmp_root) == ["ledger.1-21.jsonl.zst", "ledger.jsonl"]
        assert [row["start_seq"] for row in node.ledger.intervals().to_pylist()] == [row["start_seq"] for row in before]
        assert node.rotate_ledger() is None, "there is nothing new"
        transitions(node, 1)
        assert seqs(node) == list(range(1, 24))
        assert node.ledger.audit().ok
        assert node.rotate_ledger() == tmp_root / "metering" / "ledger.22-23.jsonl.zst"
        assert node.reconcile().ok
    with Node(tmp_root) as node:
        transitions(node, 1)
        assert seqs(node) == list(range(1, 26))
        assert Ledger(tmp_root / "metering").audit().ok


def test_another_opener_notices(tmp_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with make(tmp_root) as one, Node(tmp_root) as other:
        for _ in range(4):
            transitions(other, 2)
            assert one.rotate_ledger() is not None
            transitions(one, 1)
            transitions(other, 1)
        assert one.pending == other.pending == 0
        assert seqs(one) == list(range(1, 34))
        assert one.ledger.audit().ok
    assert caplog.records == []


def test_a_ledger_that_is_long_enough_is_rotated_by_itself(tmp_root: Path) -> None:
    with make(tmp_root, rotate_bytes=4000) as node:
        transitions(node, 30)
        assert seqs(node) == list(range(1, 62))
        assert node.ledger.audit().ok
    assert sum(name.endswith(".jsonl.zst") for name in names(tmp_root)) >= 3
    assert (tmp_root / "metering" / "ledger.jsonl").stat().st_size < 4000


def test_following_goes_on_across_rotations(tmp_root: Path) -> None:
    with make(tmp_root) as node:
        iterator = node.ledger.follow(poll=0.001)
        for _ in range(3):
            transitions(node, 2)
            node.rotate_ledger()
        transitions(node, 1)
        assert [next(iterator).seq for _ in range(14)] == list(range(2, 16))
        all_of_it = node.ledger.follow(poll=0.001, from_start=True)
        assert [next(all_of_it).seq for _ in range(15)] == list(range(1, 16))


def test_a_ledger_that_was_cut_is_missed(tmp_root: Path) -> None:
    with make(tmp_root) as node:
        transitions(node, 5)
        node.flush()
        path = tmp_root / "metering" / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:4]))
        (finding,) = node.ledger.audit().findings
        assert (finding.code, finding.seq, finding.line) == ("seq-gap", 5, None)
        assert "seq 5 to 11 are missing" in finding.message


def test_there_must_be_a_ledger(tmp_root: Path) -> None:
    with Node(tmp_root, recorder=None) as node, pytest.raises(LedgerError, match="no"):
        node.rotate_ledger()


def test_killed_at_every_system_call_of_a_rotation(tmp_root: Path, tmp_path: Path, rounds: Rounds) -> None:
    trace = tmp_path / "trace"
    code = (
        "import sys, os; from cocoon import Node; node = Node(sys.argv[1]); "
        "os.getppid(); node.rotate_ledger(); os.getppid()"
    )

    def prepare(root: Path) -> list[str]:
        with make(root) as node:
            transitions(node, 3)
        return [sys.executable, "-c", code, str(root)]

    left = set()
    points = kill_points(prepare(tmp_root / "0"), trace, rounds(60))
    for at, (call, when) in enumerate(points, start=1):
        root = tmp_root / str(at)
        assert kill_at(prepare(root), call, when, trace), f"it ran to its end, past {call} number {when}"
        left.add(tuple(names(root)))
        assert [entry.seq for entry in Ledger(root / "metering")] == list(range(1, 8)), names(root)
        with Node(root) as node:
            transitions(node, 1)
            assert seqs(node) == list(range(1, 10)), names(root)
            assert node.ledger.audit().ok
            node.rotate_ledger()
            assert seqs(node) == list(range(1, 10))
        assert all(name == "ledger.jsonl" or name.endswith(".jsonl.zst") for name in names(root))
        shutil.rmtree(root)
    if len(points) > 20:
        assert len(left) >= 4, "before the rename, after it, while it was packed, and after that"
