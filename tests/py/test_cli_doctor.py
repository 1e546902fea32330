"""`cocoon doctor`: every check says ok, warn or fail of what is really there, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cli_harness import BARE, Cli, Ran
from cocoon import Node, VMConfig
from cocoon.cli import checks
from cocoon.cli.session import Session


@pytest.fixture
def cli(tmp_root: Path) -> Cli:
    return Cli(tmp_root / "root")


@pytest.fixture
def path_with_qemu(tmp_path: Path) -> str:
    """A PATH in which there is a QEMU that says its version, whatever this host has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 99.1'\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def by_name(ran: Ran) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in ran.json()["checks"]}


def test_a_host_without_a_node_is_fit_and_stays_so(cli: Cli, path_with_qemu: str) -> None:
    ran = cli("doctor", "--json", env={"PATH": path_with_qemu})
    found = by_name(ran)
    assert ran.json()["ok"] is True, ran.out
    assert ran.code == 0
    assert ran.err == ""
    assert "99.1" in found["qemu"]["detail"]
    assert found["clock"]["status"] == "ok"
    assert not cli.root.exists(), "looking makes nothing"
    for check in found.values():
        assert check["status"] == "ok" or check["hint"], f"what to do: {check}"


def test_a_node_is_looked_into(cli: Cli, path_with_qemu: str) -> None:
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
        node_id = node.id
    found = by_name(cli("doctor", "--json", env={"PATH": path_with_qemu}))
    assert found["store"]["detail"] == f"node {node_id}, 1 VM"
    assert {found[name]["status"] for name in ("root folder", "store", "ledger", "pending", "audit", "records")} == {
        "ok"
    }


def test_every_trouble_is_found_and_exits_with_1(cli: Cli, tmp_path: Path) -> None:
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
        node.backend("qemu").mark_started("a")
    ledger = cli.root / "metering" / "ledger.jsonl"
    ledger.write_text(ledger.read_text() + "garbage\n")
    cli.root.chmod(0o755)
    ran = cli("doctor", "--json", env={"PATH": str(tmp_path)})
    found = by_name(ran)
    assert ran.code == 1
    assert ran.json()["ok"] is False
    assert found["qemu"]["status"] == "fail"
    assert "apt-get install" in found["qemu"]["hint"]
    assert found["root folder"]["status"] == "warn"
    assert found["audit"]["status"] == "fail"
    assert "bad-json" in found["audit"]["detail"]
    assert found["records"]["status"] == "warn"


def test_a_ledger_that_cannot_be_written(cli: Cli, path_with_qemu: str) -> None:
    ledger = cli.root / "metering" / "ledger.jsonl"
    ledger.mkdir(parents=True)
    cli("vm", "create", "a", *BARE)
    ran = cli("doctor", "--json", env={"PATH": path_with_qemu})
    found = by_name(ran)
    assert ran.code == 1
    assert found["ledger"]["status"] == "fail"
    assert str(ledger) in found["ledger"]["detail"]
    assert found["pending"]["status"] == "warn"
    assert found["pending"]["detail"].startswith("1 committed")


def test_a_store_that_does_not_open(cli: Cli, path_with_qemu: str) -> None:
    (cli.root / "db").mkdir(parents=True)
    (cli.root / "db" / "meta.db").write_bytes(b"no database" * 1000)
    ran = cli("doctor", "--json", env={"PATH": path_with_qemu})
    assert ran.code == 1
    assert by_name(ran)["store"]["status"] == "fail"


def test_a_vmm_that_does_not_work(cli: Cli, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    ran = cli("doctor", "--json", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert ran.code == 1
    assert by_name(ran)["qemu"]["status"] == "fail"


def test_the_table_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    ran = cli("doctor", env={"PATH": str(tmp_path)})
    assert ran.code == 1
    lines = ran.out.splitlines()
    at, *others = [i for i, line in enumerate(lines) if line.startswith("fail")]
    assert len(others) == 2, "no VMM at all is worse than one that is missing"
    assert "qemu-system-x86_64: not in PATH" in lines[at]
    assert lines[at + 1].strip() == "→ apt-get install qemu-system-x86"
    assert "\x1b" not in ran.out


def test_a_check_that_cannot_be_made_is_a_failed_one(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_check(_session: Session) -> Any:
        raise OSError(5, "Input/output error", "/dev/thing")

    monkeypatch.setattr(checks, "_CHECKS", (broken_check,))
    (result,) = checks.run(Session(str(tmp_root)))
    assert result.to_dict() == {
        "name": "broken check", "status": "fail", "detail": "/dev/thing: Input/output error", "hint": "",
    }  # fmt: skip


def test_a_full_disk_and_few_descriptors_are_said(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_root)
    nearly_full = os.statvfs_result([*real[:4], (1 << 20) // real.f_frsize, *real[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _path: nearly_full)
    monkeypatch.setattr("resource.getrlimit", lambda _which: (256, 4096))
    found = {result.name: result for result in checks.run(Session(str(tmp_root)))}
    assert found["disk"].status == checks.FAIL
    assert found["open files"].status == checks.WARN
