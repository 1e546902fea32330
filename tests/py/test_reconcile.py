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

from cocoon import Backend, Node, VMConfig, VMState
from cocoon.testing import HYPERVISORS, SimulatedVmms
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


def test_a_ledger_that_cannot_be_read_is_no_agreement(tmp_root: Path) -> None:
    (vm_id,) = make(tmp_root, "a")
    ledger_path(tmp_root).rename(tmp_root / "aside")
    ledger_path(tmp_root).mkdir()
    with Node(tmp_root) as node:
        report = node.reconcile(fix=True)
        assert not report.ok
        about_ledger, about_vm = report.rows
        assert (about_ledger["kind"], about_ledger["id"], about_ledger["ledger_state"]) == ("ledger", "", "unknown")
        assert about_ledger["status"].startswith("inconclusive: ")
        assert str(ledger_path(tmp_root)) in about_ledger["status"]
        assert (about_vm["id"], about_vm["status"], about_vm["ledger_state"]) == (vm_id, "ok", "unknown")
        assert "inconclusive" in report._repr_html_()


# ------------------------------------------------------------------ snapshots


def keep(root: Path, *names: str, removed: bool = False) -> list[str]:
    """Snapshots whose entries are all in the ledger, and no longer anywhere else."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    (data / "disk.raw").write_bytes(b"x" * 4096)
    with Node(root) as node:
        ids = [node.snapshots.create(data, name=name).id for name in names]
        if removed:
            node.snapshots.delete(*names)
        node.flush()
    return ids


def forget(root: Path, table: str) -> None:
    """Somebody takes the records away."""
    with closing(sqlite3.connect(root / "db" / "meta.db")) as connection, connection:
        connection.execute(f"DELETE FROM {table}")


def test_snapshots_that_agree_have_no_row(tmp_root: Path) -> None:
    keep(tmp_root, "a", "b")
    keep(tmp_root, "gone", removed=True)
    with Node(tmp_root) as node:
        report = node.reconcile()
        assert (report.ok, report.rows) == (True, [])


def test_a_snapshot_that_the_ledger_does_not_know(tmp_root: Path) -> None:
    (vm_id,) = make(tmp_root, "vm")
    keep(tmp_root, "kept")
    (lost,) = keep(tmp_root, "lost")
    cut(tmp_root, 1)
    before = ledger_path(tmp_root).read_bytes()
    with Node(tmp_root) as node:
        for fix in (False, True):
            report = node.reconcile(fix=fix)
            assert not report.ok
            rows = {row["id"]: row for row in report.rows}
            assert {row["kind"]: row["id"] for row in report.rows} == {"vm": vm_id, "snapshot": lost}
            assert rows[vm_id]["status"] == "ok"
            assert (rows[lost]["name"], rows[lost]["status"], rows[lost]["action"]) == (
                "lost", "record-open-ledger-closed", "",
            )  # fmt: skip
            assert (rows[lost]["record_state"], rows[lost]["ledger_state"]) == ("ready", "closed")
        assert {s.name for s in node.snapshots.list()} == {"kept", "lost"}
    assert ledger_path(tmp_root).read_bytes() == before


@pytest.mark.parametrize("how", ["the stop was cut off", "the record was taken away"])
def test_a_snapshot_without_a_record(tmp_root: Path, how: str) -> None:
    by_cut = how == "the stop was cut off"
    (lost,) = keep(tmp_root, "lost", removed=by_cut)
    if by_cut:
        cut(tmp_root, 1)
    else:
        forget(tmp_root, "snapshot")
    before = ledger_path(tmp_root).read_bytes()
    with Node(tmp_root) as node:
        for fix in (False, True):
            report = node.reconcile(fix=fix)
            assert not report.ok
            assert [
                (row["kind"], row["id"], row["status"], row["ledger_state"], row["action"]) for row in report.rows
            ] == [("snapshot", lost, "ledger-open-no-record", "open", "")]
    assert ledger_path(tmp_root).read_bytes() == before


def test_snapshots_are_not_compared_with_a_ledger_that_is_no_file(tmp_root: Path) -> None:
    keep(tmp_root, "a")
    with Node(tmp_root, recorder=None) as node:
        assert node.reconcile().rows == []


# ------------------------------------------------------------------ processes


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_vmms_of_another_node_in_a_shared_run_dir_are_not_touched(
    tmp_root: Path, tmp_path: Path, hypervisor: str
) -> None:
    vmms = SimulatedVmms(tmp_path / "vmms")

    def node_of(name: str) -> Node:
        return Node(tmp_root / name, run_dir=tmp_root / "run", log_dir=tmp_root / "log", binaries=vmms.binaries)

    with node_of("first") as first, node_of("second") as second, node_of("third") as third:
        config = VMConfig("web", storage="1M", memory="64M", kernel=vmms.kernel)
        backends = [Backend(node, hypervisor, stop_timeout=0) for node in (first, second)]
        for backend in backends:
            backend.create(config)
            backend.start("web")
        for node in (first, second, third):
            report = node.reconcile(fix=True)
            assert report.ok
            assert {row["status"] for row in report.rows} <= {"ok"}
            assert node.gc().removed == []
        for backend in backends:
            assert backend.inspect("web").alive
            backend.delete("web", force=True)
    check_node(tmp_root / "first")
    check_node(tmp_root / "second")


def test_an_orphan_in_a_run_dir_outside_of_the_root_ends_only_where_no_other_node_has_vms(
    tmp_root: Path, tmp_path: Path, wait_until: Wait
) -> None:
    vmms = SimulatedVmms(tmp_path / "vmms")
    outside: dict[str, Any] = {"run_dir": tmp_root / "run", "log_dir": tmp_root / "log", "binaries": vmms.binaries}
    with Node(tmp_root / "a", **outside) as node:
        backend = node.backend("firecracker")
        backend.create(VMConfig("web", storage="1M", memory="64M", kernel=vmms.kernel))
        backend.start("web")
        pid = backend.inspect("web").pid
        assert pid is not None
    forget(tmp_root / "a", "vm")
    owners = tmp_root / "run" / ".cocoon-node"
    alone = owners.read_text()
    with Node(tmp_root / "a", **outside) as node:
        assert alone == f"{node.id}\n"
        owners.write_text(f"{alone}another\n")
        assert [row["status"] for row in node.reconcile(fix=True).rows] == ["ledger-open-no-record"]
        assert not proc_gone(pid), "it may be the other's"
        owners.write_text(alone)
        assert {row["status"] for row in node.reconcile(fix=True).rows} == {"orphan-process", "ledger-open-no-record"}
        wait_until(lambda: proc_gone(pid), "the orphan ends")
        assert not any((tmp_root / "run" / "firecracker").iterdir())
        assert not any((tmp_root / "log" / "firecracker").iterdir())


@pytest.mark.guest
@pytest.mark.usefixtures("guest")
def test_a_vmm_without_a_record_is_an_orphan_and_ends(tmp_root: Path, wait_until: Wait) -> None:
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(guest_config("web"))
        backend.start("web")
        vm = backend.inspect("web")
        assert vm.pid is not None
    forget(tmp_root, "vm")
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
