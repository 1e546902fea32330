"""Reconcile: each way in which ledger, records and processes can differ has its status; the ledger is never edited."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cocoon import Node, VMConfig, VMState
from harness import check_node, guest_config, ledger_lines, proc_gone, vmm_processes, wait_ready

Wait = Callable[..., None]


def ledger_path(root: Path) -> Path:
    return root / "metering" / "ledger.jsonl"


def make(root: Path, *names: str, started: bool = False, stopped: bool = False, removed: bool = False) -> list[str]:
    """VMs whose entries are all in the ledger, and no longer anywhere else."""
    with Node(root) as node:
        backend = node.backend("qemu")
        ids = [backend.create(VMConfig(name, storage=0, machine="q35")).id for name in names]
        if started:
            backend.mark_started(*names)
        if stopped:
            backend.mark_stopped(*names)
        if removed:
            backend.delete(*names)
        node.flush()
    return ids


def cut(root: Path, lines: int) -> None:
    """Somebody takes the last lines away."""
    path = ledger_path(root)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def statuses(node: Node, *, fix: bool = False) -> dict[str, str]:
    return {row["id"]: row["status"] for row in node.reconcile(fix=fix).rows}


def test_all_agree(tmp_root: Path) -> None:
    first, second = make(tmp_root, "a", "b", started=True, stopped=True)
    with Node(tmp_root) as node:
        report = node.reconcile()
        assert report.ok
        assert {row["id"]: row["status"] for row in report.rows} == {first: "ok", second: "ok"}
        assert {(row["record_state"], row["ledger_state"], row["pid"]) for row in report.rows} == {
            ("stopped", "closed", None)
        }


@pytest.mark.parametrize(
    ("state", "lines", "status"),
    [
        ({}, 1, "record-open-ledger-closed"),  # the start of its storage
        ({"started": True, "stopped": True}, 1, "record-closed-ledger-open"),  # the stop of its compute
        ({"removed": True}, 1, "ledger-open-no-record"),  # the stop of its storage
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_ledger_that_was_cut_is_reported_and_not_edited(
    tmp_root: Path, state: dict[str, Any], lines: int, status: str
) -> None:
    make(tmp_root, "kept")
    (vm_id,) = make(tmp_root, "cut", **state)
    cut(tmp_root, lines)
    before = ledger_path(tmp_root).read_bytes()
    with Node(tmp_root) as node:
        for fix in (False, True):
            report = node.reconcile(fix=fix)
            assert not report.ok
            assert {row["id"]: row["status"] for row in report.rows}[vm_id] == status
            assert [row["action"] for row in report.rows if row["id"] == vm_id] == [""]
            assert sum(row["status"] == "ok" for row in report.rows) == 1
    assert ledger_path(tmp_root).read_bytes() == before


def test_a_record_that_the_ledger_never_heard_of(tmp_root: Path) -> None:
    (vm_id,) = make(tmp_root, "a")
    ledger_path(tmp_root).unlink()
    with Node(tmp_root) as node:
        assert node.reconcile().rows[0]["ledger_state"] in {"unknown", "closed"}
        node.backend("qemu").create(VMConfig("b", storage=0, machine="q35"))
        assert statuses(node)[vm_id] == "record-open-ledger-closed"


def test_a_ledger_that_is_no_file_is_not_compared(tmp_root: Path) -> None:
    with Node(tmp_root, recorder=None) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
        (row,) = node.reconcile().rows
        assert (row["status"], row["ledger_state"]) == ("ok", "unknown")


@pytest.mark.guest
@pytest.mark.usefixtures("guest")
def test_a_vmm_without_a_record_is_an_orphan_and_ends(tmp_root: Path, wait_until: Wait) -> None:
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(guest_config("web"))
        backend.start("web")
        vm = backend.inspect("web")
        assert vm.pid is not None
    with closing(sqlite3.connect(tmp_root / "db" / "meta.db")) as connection, connection:
        connection.execute("DELETE FROM vm")
    with Node(tmp_root) as node:
        rows = {row["status"]: row for row in node.reconcile().rows}
        assert rows.keys() == {"orphan-process", "ledger-open-no-record"}
        assert (rows["orphan-process"]["id"], rows["orphan-process"]["pid"]) == (vm.id, vm.pid)
        assert not proc_gone(vm.pid), "a look changes nothing"
        fixed = {row["status"]: row["action"] for row in node.reconcile(fix=True).rows}
        assert fixed == {"orphan-process": "killed", "ledger-open-no-record": ""}
        wait_until(lambda: proc_gone(vm.pid), "the orphan ends")
        assert set(statuses(node).values()) == {"ledger-open-no-record"}
    assert vmm_processes(tmp_root) == []


@pytest.mark.guest
@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("how", ["vmm killed", "vmm and shim killed"])
def test_a_crash_is_closed_at_the_death_if_somebody_saw_it(tmp_root: Path, wait_until: Wait, how: str) -> None:
    from harness import shim_of

    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(guest_config("web"))
        backend.start("web")
        wait_ready(backend, "web")
        pid = backend.inspect("web").pid
        assert pid is not None
        if how == "vmm and shim killed":
            os.kill(shim_of(pid), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: backend.inspect("web").alive is False, "it is seen to be dead")
        assert list(statuses(node).values()) == ["open-but-process-dead"]
        report = node.reconcile(fix=True)
        assert report.ok
        assert [row["action"] for row in report.rows] == ["closed"]
        assert node.find("web").state is VMState.STOPPED
        stop = ledger_lines(tmp_root)[-1]
        assert (stop["kind"], stop["reason"]) == ("vm.compute.stop", "stop-crash")
        assert ("ended_at" in stop, "alive_until" in stop) == ((True, False) if how == "vmm killed" else (False, True))
        assert list(statuses(node).values()) == ["ok"]
        json.dumps(report.rows)
        backend.delete("web")
    check_node(tmp_root)
