"""`cocoon ledger` and `cocoon reconcile`: tables and documents of the node's own ledger and of files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli_harness import Cli
from cocoon import Entry, FileRecorder, Node, Shape, VMConfig

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
VM = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def cli(tmp_root: Path) -> Cli:
    return Cli(tmp_root)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Two vCPUs and 1 GiB for an hour, of which the last 10 minutes came after a crash."""
    path = tmp_path / "ledger.jsonl"
    recorder = FileRecorder(path)
    shape = Shape(cpu=2, mem_bytes=1 << 30, storage_bytes=2 << 30)
    script = [
        ("vm.storage.start", "boot", 0),
        ("vm.compute.start", "boot", 0),
        ("vm.compute.stop", "stop-crash", 50),
        ("vm.compute.start", "restart", 50),
        ("vm.compute.stop", "stop-user", 60),
    ]
    for kind, reason, minute in script:
        recorder.emit(
            Entry(kind, vm_id=VM, reason=reason, hypervisor="qemu", shape=shape,
                  emitted_at=BEGIN + timedelta(minutes=minute))
        )  # fmt: skip
    recorder.close()
    return path


def test_show_lists_entries_as_they_were_written(cli: Cli, ledger: Path) -> None:
    rows = cli.ok("ledger", "show", ledger, "--json").json()
    assert [row["kind"] for row in rows] == [
        "vm.storage.start", "vm.compute.start", "vm.compute.stop", "vm.compute.start", "vm.compute.stop",
    ]  # fmt: skip
    assert rows[2]["reason"] == "stop-crash"
    human = cli.ok("ledger", "show", ledger).out.splitlines()
    assert len(human) == 1 + 5
    assert re.search(r"vm\.compute\.stop +stop-crash +abcdefghijkl +2 +1G +2G", human[3])


def test_show_is_cut_by_time(cli: Cli, ledger: Path) -> None:
    def reasons(*options: str) -> list[str]:
        return [row["reason"] for row in cli.ok("ledger", "show", ledger, "--json", *options).json()]

    assert reasons("--since", "2026-03-01T12:50:00Z") == ["stop-crash", "restart", "stop-user"]
    assert reasons("--until", "2026-03-01T12:50:00Z") == ["boot", "boot"]
    assert reasons("--since", "1s") == []
    assert cli("ledger", "show", ledger, "--since", "never").code == 2


def test_intervals(cli: Cli, ledger: Path) -> None:
    rows = cli.ok("ledger", "intervals", ledger, "--json").json()
    compute = [row for row in rows if row["kind"] == "vm.compute"]
    assert [(row["start_reason"], row["stop_reason"], row["length_ns"]) for row in compute] == [
        ("boot", "stop-crash", 50 * 60 * 10**9),
        ("restart", "stop-user", 10 * 60 * 10**9),
    ]
    assert compute[0]["start"] == "2026-03-01T12:00:00Z"
    human = cli.ok("ledger", "intervals", ledger).out
    assert "boot … stop-crash" in human
    assert "boot … (open)" in human, "the storage"
    assert "50m00s" in human


def test_usage_is_summed_by_what_was_asked_for(cli: Cli, ledger: Path) -> None:
    (row,) = cli.ok("ledger", "usage", ledger, "--until", "2026-03-01T13:00:00Z", "--json").json()
    assert row["vm_id"] == VM
    assert row["vcpu_seconds"] == pytest.approx(2 * 3600)
    assert row["mem_byte_seconds"] == pytest.approx(3600 * (1 << 30))
    assert row["storage_byte_seconds"] == pytest.approx(3600 * (2 << 30))
    human = cli.ok("ledger", "usage", ledger, "--until", "2026-03-01T13:00:00Z", "--by", "hypervisor").out
    heading, values = human.splitlines()
    assert heading.split()[0] == "HYPERVISOR"
    assert values.split()[:4] == ["qemu", "7200.000", "3600.000", "7200.000"]
    assert cli("ledger", "usage", ledger, "--by", "colour").code == 2
    assert cli("ledger", "usage", ledger, "--crash", "never").code == 2


def test_audit_exits_with_1_on_findings(cli: Cli, ledger: Path) -> None:
    clean = cli.ok("ledger", "audit", ledger, "--json").json()
    assert (clean["ok"], clean["entries"], clean["findings"]) == (True, 5, [])
    assert cli.ok("ledger", "audit", ledger).out == "5 entries: nothing found\n"
    with ledger.open("a") as file:
        file.write("garbage\n")
    found = cli("ledger", "audit", ledger, "--json")
    assert found.code == 1
    (finding,) = found.json()["findings"]
    assert (finding["code"], finding["line"]) == ("bad-json", 6)
    human = cli("ledger", "audit", ledger)
    assert human.code == 1
    assert re.search(r"^bad-json +6 ", human.out, re.MULTILINE)


def test_a_ledger_that_cannot_be_read_exits_with_1(cli: Cli, ledger: Path, tmp_path: Path) -> None:
    with ledger.open("a") as file:
        file.write("garbage\n")
    ran = cli("ledger", "show", ledger)
    assert ran.code == 1
    assert "cocoon ledger audit" in ran.err
    assert cli("ledger", "show", tmp_path / "none.jsonl").code == 1


def test_the_nodes_own_ledger(cli: Cli) -> None:
    assert cli("ledger", "show").code == 1, "there is no node"
    assert not cli.root.joinpath("db").exists(), "and reading made none"
    with Node(cli.root) as node:
        vm_id = node.backend("qemu").create(VMConfig("a", storage=0, machine="q35")).id
    rows = cli.ok("ledger", "show", "--json").json()
    assert [(row["kind"], row["vm_id"], row["seq"]) for row in rows] == [("vm.storage.start", vm_id, 1)]
    assert cli.ok("ledger", "audit").out == "1 entries: nothing found\n"


def test_reconcile_promises_only_what_it_does(cli: Cli) -> None:
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
    ledger = cli.root / "metering" / "ledger.jsonl"
    ledger.write_bytes(b"")
    cut = cli("reconcile")
    assert cut.code == 1
    assert "record-open-ledger-closed" in cut.out
    assert "--fix" not in cut.err
    assert "is not edited" in cut.err
    ledger.unlink()
    ledger.mkdir()
    unread = cli("reconcile")
    assert unread.code == 1
    assert "inconclusive" in unread.out
    assert "--fix" not in unread.err
    ledger.rmdir()


def test_reconcile_reports_and_fixes(cli: Cli) -> None:
    with Node(cli.root) as node:
        backend = node.backend("qemu")
        backend.create(VMConfig("a", storage=0, machine="q35"))
        vm_id = backend.create(VMConfig("b", storage=0, machine="q35")).id
        backend.mark_started("b")
    found = cli("reconcile", "--json")
    assert (found.code, found.json()["ok"]) == (1, False)
    assert [row["status"] for row in found.json()["rows"] if row["id"] == vm_id] == ["open-but-process-dead"]
    human = cli("reconcile")
    assert human.code == 1
    assert "open-but-process-dead" in human.out
    assert "cocoon reconcile --fix" in human.err
    fixed = cli.ok("reconcile", "--fix", "--json").json()
    assert fixed["ok"] is True
    assert [row["action"] != "" for row in fixed["rows"] if row["id"] == vm_id] == [True]
    assert cli.ok("reconcile", "--json").json()["ok"] is True
    assert [row["reason"] for row in cli.ok("ledger", "show", "--json").json()][-1] == "stop-crash"
