"""Snapshot, clone, restore, hibernate and wake: the same on every hypervisor, with the ledger balanced at each step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cocoon import (
    VM,
    AlreadyExists,
    Backend,
    CocoonError,
    CorruptSnapshot,
    InvalidArgument,
    InvalidState,
    Node,
    NotFound,
    VMConfig,
    VMState,
)
from harness import (
    check_node,
    engine_process,
    finish,
    guest_config,
    in_threads,
    ledger_lines,
    proc_gone,
    reasons,
    remove_everything,
    tell,
    wait_ready,
)
from vmms import Console, Vmm, console, find_vmm, processes_below

Wait = Callable[..., None]
Books = list[tuple[str, str | None]]

BOOT: Books = [("vm.storage.start", "boot"), ("vm.compute.start", "boot")]
CLONE: Books = [("vm.storage.start", "clone"), ("vm.compute.start", "clone")]
STOP: Books = [("vm.compute.stop", "stop-user")]
CRASH: Books = [("vm.compute.stop", "stop-crash")]
KILLED: Books = [("vm.compute.stop", "restore")]
RESTORED: Books = [("vm.storage.stop", "restore"), ("vm.storage.start", "restore"), ("vm.compute.start", "restore")]
WOKEN: Books = [("vm.compute.start", "hibernate-wake")]
REMOVE: Books = [("vm.storage.stop", "vm-rm")]


def next_count(guest: Console) -> int:
    guest.wait_for("tick ")
    number = guest.wait_for("\n")
    return int(number)


@dataclass
class Stage:
    """One hypervisor with a guest that counts."""

    vmm: Vmm
    root: Path
    backend: Backend
    linux: bool = False  # QEMU: a real Linux
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return self.backend.node

    def config(self, name: str, **more: Any) -> VMConfig:
        return guest_config(name, memory="128M", **more) if self.linux else self.vmm.config(name, **more)

    def start(self, name: str, **more: Any) -> VM:
        """A VM whose guest counts."""
        vm = self.backend.create(self.config(name, **more))
        self.backend.start(vm.id)
        if self.linux:
            wait_ready(self.backend, vm.id)
            tell(self.backend, vm.id, "ticks on", "TICKS on")
        self.count(vm.id)
        return self.backend.inspect(vm.id)

    def count(self, ref: str) -> int:
        """What the guest counts next: it runs."""
        with console(self.backend, ref) as guest:
            guest.skip()
            return next_count(guest)

    def first_count(self, ref: str) -> int:
        """The first that the guest has counted in the VMM that it is in."""
        with console(self.backend, ref) as guest:
            return next_count(guest)

    def said(self, vm_id: str) -> Books:
        return reasons(ledger_lines(self.root), vm_id)

    def snapshots(self) -> list[str]:
        return [s.id for s in self.node.snapshots.list()]

    def restored_files(self, vm: VM) -> list[str]:
        return [p.name for p in Path(vm.run_dir).iterdir() if ".cocoon-" in p.name]


@pytest.fixture(params=["sim-firecracker", "sim-cloud-hypervisor", "firecracker", "cloud-hypervisor", "qemu"])
def stage(request: pytest.FixtureRequest, tmp_root: Path, tmp_path: Path) -> Iterator[Stage]:
    linux = request.param == "qemu"
    if linux:
        request.getfixturevalue("guest")
        vmm = Vmm("qemu", Path("/usr/bin/qemu-system-x86_64"), Path("/"))
    else:
        vmm = find_vmm(request.param, tmp_path / "vmms")
    with Node(tmp_root, binaries={} if linux else {vmm.hypervisor: vmm.binary}) as node:
        yield Stage(vmm, tmp_root, Backend(node, vmm.hypervisor, socket_timeout=30), linux)
    with Node(tmp_root, binaries={} if linux else {vmm.hypervisor: vmm.binary}) as node:
        remove_everything(node)
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []
    assert not [p for p in (tmp_root / "snapshots").rglob("*") if p.is_file() and p.parent.name != ".locks"]


def kill_behind_the_back(stage: Stage, ref: str, wait_until: Wait) -> None:
    pid = stage.backend.inspect(ref).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.backend.inspect(ref).alive is False, "the killed VMM is seen as dead")


def own_disk(vm: VM) -> Path:
    return Path(vm.run_dir) / "cow.raw"


def write_disk(vm: VM, content: bytes) -> None:
    """As its guest would."""
    with own_disk(vm).open("r+b") as disk:
        disk.write(content)


def read_disk(vm: VM, size: int) -> bytes:
    with own_disk(vm).open("rb") as disk:
        return disk.read(size)


def test_a_snapshot_is_taken_and_the_guest_goes_on(stage: Stage) -> None:
    vm = stage.start("web")
    before = stage.count("web")
    snapshot = stage.backend.snapshot("web", name="one", description="the first")
    assert (snapshot.name, snapshot.description, snapshot.hypervisor) == ("one", "the first", stage.vmm.hypervisor)
    assert (snapshot.vm_id, snapshot.cpu, snapshot.memory) == (vm.id, vm.shape.cpu, vm.shape.mem_bytes)
    assert snapshot.storage == vm.shape.storage_bytes
    assert stage.count("web") > before
    after = stage.backend.inspect("web")
    assert (after.pid, after.state, after.interval_open) == (vm.pid, VMState.RUNNING, True)
    assert after.snapshot_ids == [snapshot.id]
    line = ledger_lines(stage.root)[-1]
    assert (line["kind"], line["snapshot_id"]) == ("snap.storage.start", snapshot.id)
    files = list(Path(stage.node.snapshots.data_dir("one")).iterdir())
    assert line["shape"]["storage_bytes"] == snapshot.size_bytes == sum(f.stat().st_size for f in files)
    assert not (Path(vm.run_dir) / "saving").exists()
    assert (snapshot.id, "snap.storage") in check_node(stage.root)
    with pytest.raises(AlreadyExists, match="one"):
        stage.backend.snapshot("web", name="one")
    second = stage.backend.snapshot("web")
    assert stage.backend.inspect("web").snapshot_ids == [snapshot.id, second.id]
    stage.node.snapshots.delete("one")
    assert stage.backend.inspect("web").snapshot_ids == [second.id]
    assert stage.said(vm.id) == BOOT
    check_node(stage.root)


def test_only_a_running_guest_can_be_saved(stage: Stage, wait_until: Wait) -> None:
    stage.backend.create(stage.config("web"))
    for verb in (stage.backend.snapshot, stage.backend.hibernate):
        with pytest.raises(InvalidState):
            verb("web")
    with pytest.raises(InvalidState, match="hibernated"):
        stage.backend.wake("web")
    stage.backend.start("web")
    kill_behind_the_back(stage, "web", wait_until)
    for verb in (stage.backend.snapshot, stage.backend.hibernate):
        with pytest.raises(InvalidState):
            verb("web")
    assert stage.snapshots() == []
    check_node(stage.root)


def test_a_paused_guest_stays_paused_after_its_snapshot(stage: Stage) -> None:
    stage.start("web")
    stage.backend.pause("web")
    stage.backend.snapshot("web", name="one")
    stage.backend.clone("one", VMConfig("c1"))
    stage.count("c1")
    log = stage.backend.console_path("web")
    assert log.exists()
    stage.backend.resume("web")
    stage.count("web")


@pytest.mark.parametrize("stage", ["firecracker", "cloud-hypervisor"], indirect=True)
def test_memory_above_the_hole_below_4_gib_is_mapped_too(stage: Stage) -> None:
    """A guest's memory has a hole there, for devices: the file is mapped in two pieces, privately, and not read."""
    stage.start("web", memory="5G")
    before = stage.count("web")
    stage.backend.snapshot("web", name="one")
    clone = stage.backend.clone("one", VMConfig("c1"))
    assert stage.count("c1") > before
    maps = [line.split() for line in Path(f"/proc/{clone.pid}/maps").read_text().splitlines()]
    mapped = [line for line in maps if Path(line[-1]).name.startswith("memory")]
    assert [line[1] for line in mapped] == ["rw-p", "rw-p"]
    sizes = [int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in mapped)]
    assert sum(sizes) == 5 << 30
    stage.backend.restore("web", "one")
    assert stage.count("web") > before
    check_node(stage.root)


def test_three_clones_at_once_go_on_from_the_snapshot(stage: Stage) -> None:
    vm = stage.start("web", labels={"tenant": "a"})
    write_disk(vm, b"of the source")
    before = stage.count("web")
    snapshot = stage.backend.snapshot("web", name="one")
    after = stage.count("web")
    write_disk(vm, b"changed since")
    clones = in_threads(
        *(
            lambda name=name: stage.backend.clone("one", VMConfig(name, labels={"n": name}))
            for name in ("c1", "c2", "c3")
        )
    )
    for name, clone in zip(("c1", "c2", "c3"), clones, strict=True):
        assert isinstance(clone, VM), clone
        assert (clone.name, clone.state, clone.alive, clone.interval_open) == (name, VMState.RUNNING, True, True)
        assert clone.config.labels == {"n": name}, "labels are the clone's own"
        assert clone.shape == vm.shape
        assert read_disk(clone, 13) == b"of the source"
        assert clone.run_dir != vm.run_dir
        assert before < stage.first_count(name) <= after
        assert stage.said(clone.id) == CLONE
        starts = [line for line in ledger_lines(stage.root) if line.get("vm_id") == clone.id]
        assert {line["source_snapshot_id"] for line in starts} == {snapshot.id}
        assert {line["emitted_at"] for line in starts} == {starts[0]["emitted_at"]}
        assert clone.started_at_ns == clone.updated_at_ns
    assert stage.count("web") > after
    first, second, _ = (stage.backend.inspect(name) for name in ("c1", "c2", "c3"))
    write_disk(first, b"of the clone ")
    assert read_disk(second, 13) == b"of the source"
    check_node(stage.root)
    # A snapshot may go while its clones run, and a clone be stopped, started and saved as any VM.
    stage.node.snapshots.delete("one")
    stage.count("c1")
    again = stage.backend.snapshot("c1")
    stage.backend.clone(again.id, VMConfig("c4"))
    stage.count("c4")
    stage.backend.restart("c2", force=True)
    stage.backend.delete("web", force=True)
    stage.count("c3")
    check_node(stage.root)


def test_clones_by_several_processes(stage: Stage) -> None:
    stage.start("web")
    stage.backend.snapshot("web", name="one")
    code = (
        "Node(sys.argv[1], binaries=json.loads(sys.argv[3])).backend(sys.argv[2]).clone('one', VMConfig(sys.argv[4]))"
    )
    binaries = json.dumps({} if stage.linux else {stage.vmm.hypervisor: str(stage.vmm.binary)})
    makers = [engine_process(code, stage.root, stage.vmm.hypervisor, binaries, f"c{n}") for n in range(3)]
    for maker in makers:
        finish(maker)
    for n in range(3):
        stage.count(f"c{n}")
    assert len(check_node(stage.root)) == 2 * 4 + 1


def test_clones_of_an_imported_snapshot_go_on_from_it(stage: Stage, tmp_path: Path) -> None:
    vm = stage.start("web", labels={"tenant": "a"})
    write_disk(vm, b"of the source")
    before = stage.count("web")
    first = stage.backend.snapshot("web", name="one", description="the first")
    after = stage.count("web")
    stage.node.snapshots.export("one", tmp_path / "one.tar.zst", compression="zstd")
    stage.node.snapshots.delete("one")
    stage.backend.delete("web", force=True)
    assert check_node(stage.root) == {}

    imported = stage.node.snapshots.import_(tmp_path / "one.tar.zst")
    assert (imported.name, imported.description, imported.vm_id) == ("one", "the first", "")
    assert imported.id != first.id
    assert (imported.hypervisor, imported.cpu, imported.memory) == (stage.vmm.hypervisor, first.cpu, first.memory)
    with pytest.raises(InvalidArgument, match="kernel: not given, and the snapshot was imported"):
        stage.backend.clone("one", VMConfig("c1"))
    assert stage.node.vms() == []
    files = stage.config("files")
    clones = in_threads(
        *(
            partial(stage.backend.clone, "one", VMConfig(name, kernel=files.kernel, initrd=files.initrd))
            for name in ("c1", "c2")
        )
    )
    for clone in clones:
        assert isinstance(clone, VM), clone
        assert before < stage.first_count(clone.name) <= after
        assert read_disk(clone, 13) == b"of the source"
        assert (clone.shape, clone.config.labels) == (vm.shape, {})
        starts = [line for line in ledger_lines(stage.root) if line.get("vm_id") == clone.id]
        assert [(line["kind"], line["reason"], line["source_snapshot_id"]) for line in starts] == [
            (kind, reason, imported.id) for kind, reason in CLONE
        ]
    # Nothing of it is needed once they run.
    stage.node.snapshots.delete("one")
    stage.count("c1")
    check_node(stage.root)


def test_a_clone_that_is_refused_leaves_nothing(stage: Stage) -> None:
    vm = stage.start("web")
    stage.backend.snapshot("web", name="one")
    lines = len(ledger_lines(stage.root))
    for config, said in [
        (VMConfig("c1", cpu=2), "cpu: 2.*the snapshot's, 1"),
        (VMConfig("c1", memory="1G"), "memory: 1073741824 bytes"),
        (VMConfig("c1", storage="2G"), "storage: 2147483648 bytes"),
        (VMConfig("c1", disks=[own_disk_as_layer(vm)]), "disks: 1"),
    ]:
        with pytest.raises(InvalidArgument, match=said):
            stage.backend.clone("one", config)
    with pytest.raises(AlreadyExists, match="web"):
        stage.backend.clone("one", VMConfig("web"))
    with pytest.raises(NotFound):
        stage.backend.clone("two", VMConfig("c1"))
    assert [v.id for v in stage.node.vms()] == [vm.id]
    assert len(ledger_lines(stage.root)) == lines
    assert len(list((stage.root / "run" / stage.vmm.hypervisor).iterdir())) == 1
    assert len(processes_below(stage.root)) == 1
    stage.backend.clone("one", VMConfig("c1", cpu=1, memory=vm.shape.mem_bytes, storage=vm.shape.storage_bytes))


def own_disk_as_layer(vm: VM) -> Any:
    from cocoon import Disk

    return Disk(own_disk(vm), role="layer")


def test_restore_takes_a_vm_back_whatever_it_does(stage: Stage, wait_until: Wait) -> None:
    vm = stage.start("web")
    write_disk(vm, b"old")
    before = stage.count("web")
    snapshot = stage.backend.snapshot("web", name="one")
    after = stage.count("web")
    write_disk(vm, b"new")
    restored = stage.backend.restore("web", "one")
    assert (restored.id, restored.name, restored.state, restored.alive) == (vm.id, "web", VMState.RUNNING, True)
    assert restored.pid != vm.pid
    assert before < stage.first_count("web") <= after, "the guest goes on from the snapshot"
    assert read_disk(vm, 3) == b"old"
    assert stage.restored_files(vm) == []
    books = [*BOOT, *KILLED, *RESTORED]
    assert stage.said(vm.id) == books
    lines = [line for line in ledger_lines(stage.root) if line.get("reason") == "restore"]
    assert {line["source_snapshot_id"] for line in lines} == {snapshot.id}
    check_node(stage.root)

    stage.backend.stop("web", force=True)
    stage.backend.restore("web", "one")
    stage.count("web")
    books += [*STOP, *RESTORED]
    assert stage.said(vm.id) == books

    kill_behind_the_back(stage, "web", wait_until)
    stage.backend.restore("web", "one")
    stage.count("web")
    books += [*CRASH, *RESTORED]
    assert stage.said(vm.id) == books

    stage.backend.mark_error("web")
    stage.backend.restore("web", "one")
    stage.count("web")
    books += [*KILLED, *RESTORED]
    assert stage.said(vm.id) == books
    check_node(stage.root)


@pytest.mark.parametrize("damage", ["short", "gone", "version", "cpu", "disk", "garbage", "escape"])
def test_what_cannot_be_loaded_is_refused_before_anything_is_touched(stage: Stage, damage: str) -> None:
    vm = stage.start("web")
    snapshot = stage.backend.snapshot("web", name="one")
    folder = Path(stage.node.snapshots.data_dir("one"))
    about = json.loads((folder / "vm.json").read_text())
    memory = folder / max(about["state_files"], key=lambda f: f["size_bytes"])["name"]
    expected: type[CocoonError] = CorruptSnapshot
    if damage == "short":
        os.truncate(memory, memory.stat().st_size - 4096)
    elif damage == "gone":
        memory.unlink()
    elif damage == "garbage":
        (folder / "vm.json").write_text("{")
    else:
        if damage == "version":
            about["vmm_version"] = "0.1.2"
            expected = InvalidArgument
        elif damage == "cpu":
            about["config"]["cpu"] = 7
        elif damage == "disk":
            about["config"]["disks"][0]["size_bytes"] += 512
            about["config"]["storage_bytes"] += 512
        elif damage == "escape":
            about["state_files"][0]["name"] = "../../../etc/passwd"
        (folder / "vm.json").write_text(json.dumps(about))
    lines = len(ledger_lines(stage.root))
    with pytest.raises(expected, match="one|" + snapshot.id):
        stage.backend.restore("web", "one")
    with pytest.raises(expected):
        stage.backend.clone("one", VMConfig("c1"))
    after = stage.backend.inspect("web")
    assert (after.pid, after.state) == (vm.pid, VMState.RUNNING)
    stage.count("web")
    assert len(ledger_lines(stage.root)) == lines
    assert [v.name for v in stage.node.vms()] == ["web"]
    assert stage.restored_files(vm) == []


def test_a_hibernated_vm_goes_on_when_it_is_woken(stage: Stage) -> None:
    vm = stage.start("web")
    at = stage.count("web")
    asleep = stage.backend.hibernate("web")
    assert (asleep.state, asleep.alive, asleep.interval_open) == (VMState.HIBERNATED, False, False)
    assert asleep.pid is None
    assert proc_gone(vm.pid or 0)
    (kept,) = stage.snapshots()
    assert stage.said(vm.id) == [*BOOT, *STOP]
    assert {dimension for _, dimension in check_node(stage.root)} == {"vm.storage", "snap.storage"}
    two = ledger_lines(stage.root)[-2:]
    assert [line["kind"] for line in two] == ["vm.compute.stop", "snap.storage.start"]
    assert two[0]["emitted_at"] == two[1]["emitted_at"], "one transaction"
    with pytest.raises(InvalidState, match="hibernated"):
        stage.backend.start("web")
    with pytest.raises(InvalidState, match="hibernated"):
        stage.backend.restore("web", kept)
    with pytest.raises(InvalidState, match="hibernated"):
        stage.node.snapshots.delete(kept)
    stage.backend.stop("web")
    assert stage.backend.inspect("web").state == VMState.HIBERNATED, "it is stopped already, and keeps its memory"

    awake = stage.backend.wake("web")
    assert (awake.state, awake.alive, awake.interval_open) == (VMState.RUNNING, True, True)
    assert at < stage.first_count("web") <= at + 5
    assert stage.snapshots() == []
    assert stage.said(vm.id) == [*BOOT, *STOP, *WOKEN]
    assert not (Path(vm.run_dir) / "waking").exists()
    check_node(stage.root)

    stage.backend.hibernate("web")
    stage.backend.delete("web")
    assert stage.snapshots() == []
    assert stage.said(vm.id) == [*BOOT, *STOP, *WOKEN, *STOP, *REMOVE]
    stops = [line for line in ledger_lines(stage.root) if line["kind"] == "snap.storage.stop"]
    assert len(stops) == 2
    assert check_node(stage.root) == {}


def test_a_hibernated_vm_outlives_its_run_dir(stage: Stage) -> None:
    """Below /run it goes when the host is started anew, which is when one hibernates."""
    vm = stage.start("web")
    write_disk(vm, b"saved")
    at = stage.count("web")
    stage.backend.hibernate("web")
    shutil.rmtree(vm.run_dir)
    shutil.rmtree(vm.log_dir)
    stage.backend.wake("web")
    assert at < stage.first_count("web") <= at + 5
    if not stage.linux:  # which may write there itself
        assert read_disk(vm, 5) == b"saved"
    assert stage.said(vm.id) == [*BOOT, *STOP, *WOKEN]
    check_node(stage.root)


def test_a_wake_that_fails_leaves_it_hibernated(stage: Stage, tmp_path: Path) -> None:
    vm = stage.start("web")
    stage.backend.hibernate("web")
    broken = tmp_path / stage.vmm.binary.name
    broken.write_text(f'#!/bin/sh\n[ "$1" != --version ] || exec {stage.vmm.binary} --version\nexit 3\n')
    broken.chmod(0o755)
    lines = len(ledger_lines(stage.root))
    with pytest.raises(CocoonError):
        Backend(stage.node, stage.vmm.hypervisor, binary=broken).wake("web")
    after = stage.backend.inspect("web")
    assert (after.state, after.alive) == (VMState.HIBERNATED, False)
    assert len(ledger_lines(stage.root)) == lines
    # The guest of the failed wake may have written to its disk: the next one takes it from the snapshot again.
    write_disk(vm, b"of a guest that nobody keeps")
    stage.backend.wake("web")
    stage.count("web")
    assert read_disk(vm, 4) == bytes(4)
    assert stage.restored_files(vm) == []
    check_node(stage.root)


def test_a_restore_that_fails_after_the_kill_brings_the_old_disks_back(stage: Stage, tmp_path: Path) -> None:
    vm = stage.start("web")
    write_disk(vm, b"saved")
    stage.backend.snapshot("web", name="one")
    write_disk(vm, b"later")
    broken = tmp_path / stage.vmm.binary.name
    broken.write_text(f'#!/bin/sh\n[ "$1" != --version ] || exec {stage.vmm.binary} --version\nexit 3\n')
    broken.chmod(0o755)
    with pytest.raises(CocoonError, match="restore web"):
        Backend(stage.node, stage.vmm.hypervisor, binary=broken).restore("web", "one")
    after = stage.backend.inspect("web")
    assert (after.state, after.alive, after.interval_open) == (VMState.ERROR, False, False)
    assert read_disk(vm, 5) == b"later"
    assert stage.restored_files(vm) == []
    assert stage.said(vm.id) == [*BOOT, *KILLED]
    check_node(stage.root)
    stage.backend.start("web")
    stage.backend.restore("web", "one")
    stage.count("web")
    assert read_disk(vm, 5) == b"saved"
    check_node(stage.root)


def test_a_guest_that_its_saver_left_paused_goes_on(stage: Stage) -> None:
    vm = stage.start("web")
    stage.backend.pause("web")
    (Path(vm.run_dir) / "saving").touch()  # as an engine that died in the pause leaves it
    report = stage.node.reconcile()
    assert [row["status"] for row in report.rows] == ["left-paused"]
    report = stage.node.reconcile(fix=True)
    assert [row["action"] for row in report.rows] == ["resumed"]
    stage.count("web")
    assert stage.node.reconcile().ok


@pytest.mark.parametrize("verb", ["snapshot", "clone", "restore", "hibernate", "wake"])
def test_removal_with_force_wins_every_race(stage: Stage, verb: str, rounds: Callable[[int], int]) -> None:
    delays = iter([0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
    for turn in range(2 if stage.linux else rounds(6)):  # a Linux takes its time to boot
        vm = stage.start("web")
        stage.backend.snapshot("web", name="one")
        if verb == "wake":
            stage.backend.hibernate("web")
        calls: dict[str, Callable[[], object]] = {
            "snapshot": lambda: stage.backend.snapshot("web"),
            "clone": lambda: stage.backend.clone("one", VMConfig("c1")),
            "restore": lambda: stage.backend.restore("web", "one"),
            "hibernate": lambda: stage.backend.hibernate("web"),
            "wake": lambda: stage.backend.wake("web"),
        }
        delay = next(delays)

        def remove(delay: float = delay, vm_id: str = vm.id) -> None:
            threading.Event().wait(delay)
            if verb != "clone":
                stage.backend.delete(vm_id, force=True)
                return
            for _ in range(1000):
                with suppress(NotFound):
                    stage.backend.delete("c1", force=True)
                    return
                threading.Event().wait(0.001)

        done, removed = in_threads(calls[verb], remove)
        assert removed is None, removed
        assert isinstance(done, CocoonError) or done is not None
        gone = "c1" if verb == "clone" else "web"
        left = [v.name for v in stage.node.vms()]
        assert gone not in left or (verb == "clone" and not isinstance(done, CocoonError)), f"round {turn}: {done}"
        report = stage.node.reconcile(fix=True)
        assert report.ok, report.rows
        check_node(stage.root)
        remove_everything(stage.node)
        assert processes_below(stage.root) == []
        assert check_node(stage.root) == {}
