"""`cocoon vm snapshot`, `clone`, `restore`, `hibernate`, `wake` on a simulated VMM: what they print and exit with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_harness import Cli
from cocoon import Node, VMConfig
from cocoon.testing import Fault, SimulatedVmms
from harness import check_node, ledger_lines, reasons, remove_everything
from test_sequences import BOOT, CLONE, KILLED, RESTORED, STOP, WOKEN
from vmms import processes_below

ID = "([a-z2-7]{26})"


class Host(Cli):
    """The command on a node whose VMMs are simulated; the VM `web` runs on it."""

    def __init__(self, root: Path, vmms: SimulatedVmms) -> None:
        super().__init__(root)
        self.vmms = vmms
        binary = json.dumps(str(vmms.binaries["firecracker"]))
        (root / "config.toml").write_text(f"[binaries]\nfirecracker = {binary}\n")
        self.web = self.create("web", start=True)

    def node(self) -> Node:
        return Node(self.root, binaries=self.vmms.binaries)

    def create(self, name: str, *, start: bool = False) -> str:
        with self.node() as node:
            backend = node.backend("firecracker")
            vm = backend.create(VMConfig(name, memory="64M", storage="1M", kernel=self.vmms.kernel))
            if start:
                backend.start(name)
            return vm.id

    def save(self, name: str) -> str:
        with self.node() as node:
            return node.backend("firecracker").snapshot("web", name=name).id

    def vm(self, name: str = "web") -> dict[str, Any]:
        with self.node() as node:
            return node.find(name).to_dict()

    def snapshots(self) -> list[dict[str, Any]]:
        with self.node() as node:
            return [snapshot.to_dict() for snapshot in node.snapshots.list()]

    def said(self, vm_id: str) -> list[tuple[str, str | None]]:
        return reasons(ledger_lines(self.root), vm_id)

    def refused(self, code: int, *args: str) -> list[str]:
        """Lines on stderr of a run that fails so and prints nothing else."""
        ran = self(*args)
        assert (ran.code, ran.out) == (code, ""), (args, ran)
        error, *hints = ran.err.splitlines()
        assert error.startswith("error: ")
        assert all(hint.startswith("hint: ") for hint in hints), ran.err
        return [error.removeprefix("error: "), *(hint.removeprefix("hint: ") for hint in hints)]


@pytest.fixture
def host(tmp_root: Path, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_root, SimulatedVmms(tmp_path / "vmms"))
    yield host
    with host.node() as node:
        remove_everything(node)
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []


def test_snapshot(host: Host) -> None:
    said = host.ok("vm", "snapshot", "web", "--name", "one", "--description", "a test's").out
    found = re.fullmatch(rf"snapshot one \({ID}\) of web: 6\d(\.\d)?M\n", said)
    assert found is not None, said
    assert [(s["id"], s["name"], s["description"]) for s in host.snapshots()] == [(found[1], "one", "a test's")]
    nameless = host.ok("vm", "snapshot", host.web[:6]).out
    assert re.fullmatch(rf"snapshot {ID} of web: .*M\n", nameless), nameless
    made = host.ok("vm", "snapshot", "web", "--name", "two", "--json").json()
    assert made == host.snapshots()[0]
    assert (made["name"], made["vm_id"], made["memory"], made["kept"]) == ("two", host.web, 64 << 20, False)
    quiet = host.ok("vm", "snapshot", "web", "-q").out
    assert re.fullmatch(f"{ID}\n", quiet)
    assert len(host.vm()["snapshot_ids"]) == 4
    assert host.said(host.web) == BOOT


def test_clone_makes_one_for_each_name(host: Host) -> None:
    source = host.save("one")
    said = host.ok("vm", "clone", "one", "c1", "c2", "c1", "--label", "tenant=a").out
    assert re.fullmatch(rf"cloned c1 \({ID}\)\ncloned c2 \({ID}\)\n", said), said
    for name in ("c1", "c2"):
        vm = host.vm(name)
        assert (vm["state"], vm["alive"], vm["config"]["labels"]) == ("running", True, {"tenant": "a"})
        assert host.said(vm["id"]) == CLONE
    document = host.ok("vm", "clone", source[:8], "c3", "--json").json()
    assert document == {"clones": [host.vm("c3")], "errors": {}}
    assert host.ok("vm", "clone", "one", "c4", "-q").out == host.vm("c4")["id"] + "\n"
    # Some of several: those that could be made are, and are printed.
    ran = host("vm", "clone", "one", "c1", "c5")
    assert ran.code == 5
    assert re.fullmatch(rf"cloned c5 \({ID}\)\n", ran.out)
    assert "c1" in ran.err.splitlines()[0]
    ran = host("vm", "clone", "one", "c1", "c6", "--json")
    assert ran.code == 5
    assert [vm["name"] for vm in ran.json()["clones"]] == ["c6"]
    assert list(ran.json()["errors"]) == ["c1"]


def test_clone_of_an_imported_snapshot_needs_its_kernel(host: Host, tmp_path: Path) -> None:
    host.save("one")
    with host.node() as node:
        node.snapshots.export("one", tmp_path / "one.tar")
        node.snapshots.import_(tmp_path / "one.tar", name="two")
    assert "kernel: not given, and the snapshot was imported" in host.refused(2, "vm", "clone", "two", "c1")[0]
    kernel = ("--kernel", str(host.vmms.kernel))
    assert "initrd" in host.refused(2, "vm", "clone", "two", "c1", *kernel, "--initrd", "/x")[0]
    host.ok("vm", "clone", "two", "c1", *kernel)
    assert host.vm("c1")["alive"] is True


def test_restore(host: Host) -> None:
    host.save("one")
    assert host.ok("vm", "restore", "web", "one").out == f"restored web ({host.web})\n"
    before = host.vm()
    document = host.ok("vm", "restore", "web", "one", "--json").json()
    assert document == host.vm()
    assert (document["state"], document["pid"] == before["pid"]) == ("running", False)
    assert host.said(host.web) == [*BOOT, *KILLED, *RESTORED, *KILLED, *RESTORED]


def test_a_restore_that_fails_says_what_is_left(host: Host) -> None:
    host.save("one")
    host.vmms.plan(Fault("answer", on="PUT /snapshot/load", status=500))
    error, hint = host.refused(1, "vm", "restore", "web", "one")
    assert "PUT /snapshot/load: refused with 500" in error
    assert hint == "`cocoon vm logs web` shows what the VMM said"
    assert host.vm()["state"] == "error"
    host.vmms.plan()
    host.ok("vm", "start", "web")


def test_hibernate_and_wake(host: Host) -> None:
    other = host.create("other", start=True)
    said = host.ok("vm", "hibernate", "web", "other").out
    assert said == f"hibernated web ({host.web})\nhibernated other ({other})\n"
    assert (host.vm()["state"], host.vm()["alive"]) == ("hibernated", False)
    assert [snapshot["kept"] for snapshot in host.snapshots()] == [True, True]
    assert host.ok("vm", "wake", "web", "other").out == f"woken web ({host.web})\nwoken other ({other})\n"
    assert (host.vm()["state"], host.vm()["alive"]) == ("running", True)
    assert host.snapshots() == []
    assert host.ok("vm", "hibernate", "web", "--json").json() == {"succeeded": [host.web], "errors": {}}
    assert host.ok("vm", "wake", host.web, "--json").json() == {"succeeded": [host.web], "errors": {}}
    assert host.ok("vm", "hibernate", "web", "-q").out == host.web + "\n"
    # Some of several.
    ran = host("vm", "wake", "other", "web", "nobody")
    assert (ran.code, ran.out) == (5, f"woken web ({host.web})\n")
    assert [line.startswith("error: ") for line in ran.err.splitlines()].count(True) == 2
    ran = host("vm", "hibernate", "nobody", "web", "--json")
    assert (ran.code, ran.json()["succeeded"], list(ran.json()["errors"])) == (5, [host.web], ["nobody"])
    assert host.said(host.web) == [*BOOT, *STOP, *WOKEN, *STOP, *WOKEN, *STOP, *WOKEN, *STOP]


def test_what_the_state_refuses_exits_with_4_and_says_what_to_do(host: Host) -> None:
    host.save("one")
    host.create("new")
    for verb in ("snapshot", "hibernate"):
        error, hint = host.refused(4, "vm", verb, "new")
        assert "new" in error
        assert hint == "`cocoon vm start new` first"
    assert "taken" in " ".join(host.refused(4, "vm", "snapshot", "web", "--name", "one"))
    assert "cocoon vm rm" in host.refused(4, "vm", "clone", "one", "web")[1]
    assert "allowed: hibernated" in host.refused(4, "vm", "wake", "web")[0]
    with host.node() as node:
        node.backend("firecracker").hibernate("web")
    for args in (("start", "web"), ("restore", "web", "one")):
        assert host.refused(4, "vm", *args)[1] == "`cocoon vm wake web`"
    (kept,) = (snapshot["id"] for snapshot in host.snapshots() if snapshot["kept"])
    assert "hibernated" in host.refused(4, "snapshot", "rm", kept)[0]


def test_what_is_not_there_exits_with_3(host: Host) -> None:
    for args in (("snapshot", "nobody"), ("restore", "nobody", "one"), ("hibernate", "nobody"), ("wake", "nobody")):
        assert host.refused(3, "vm", *args)[1] == "`cocoon vm list` shows what there is", args
    for args in (("clone", "nothing", "c1"), ("restore", "web", "nothing")):
        error, hint = host.refused(3, "vm", *args)
        assert "nothing" in error
        assert hint == "`cocoon snapshot list` shows what there is", args
    for verb in ("hibernate", "wake"):
        ran = host("vm", verb, "nobody", "--json")
        assert (ran.code, ran.json()["succeeded"], list(ran.json()["errors"])) == (3, [], ["nobody"])
    assert host.vm()["alive"] is True


def test_wrong_command_lines_exit_with_2_and_change_nothing(host: Host) -> None:
    host.save("one")
    with Node(host.root) as node:
        node.backend("qemu").create(VMConfig("bare", storage=0, machine="q35"))
    lines = len(ledger_lines(host.root))
    for args in (
        ("snapshot", "web", "--name", "-bad-"),
        ("clone", "one"),
        ("clone", "one", "../x"),
        ("clone", "one", "c1", "--label", "k"),
        ("clone", "one", "c1", "--kernel", "/no/such/kernel"),
        ("restore", "bare", "one"),  # another hypervisor's
        ("wake", "--force"),
    ):
        host.refused(2, "vm", *args)
    assert len(ledger_lines(host.root)) == lines
    with host.node() as node:
        assert [vm.name for vm in node.vms()] == ["web", "bare"]
    assert len(host.snapshots()) == 1
