"""gc: takes what dead processes left, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cocoon import VM, Backend, InvalidArgument, Node, VMConfig
from cocoon.testing import HYPERVISORS, SimulatedVmms
from harness import check_node, engine_process, finish, in_threads, ledger_lines, reasons
from snapshot_support import check_store, data_folder
from vmms import console, processes_below

ID = "a" * 26


@pytest.fixture
def node(tmp_root: Path) -> Iterator[Node]:
    with Node(tmp_root) as node:
        yield node


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data")


def found(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((row["module"], row["what"]) for row in rows)


def die(root: Path, statements: str, *args: object) -> None:
    """An engine that is killed in the middle of its work."""
    code = f"import signal\nnode = Node(sys.argv[1])\n{statements}\nos.kill(os.getpid(), signal.SIGKILL)\n"
    process = engine_process(code, root, *args)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


DIE_IN_IMPORT = """
class Source:
    first = True
    def read(self, size):
        if Source.first:
            Source.first = False
            return open(sys.argv[2], "rb").read()[:-10240]
        os.kill(os.getpid(), signal.SIGKILL)
node.snapshots.import_(Source(), name="half")
"""


def half_import(node: Node, data: Path, folder: Path) -> None:
    made = node.snapshots.create(data, name="source")
    (data / "large").write_bytes(os.urandom(1 << 20))
    node.snapshots.export(made.id, folder / "a.tar")
    node.snapshots.delete("source")
    die(node.root, DIE_IN_IMPORT, folder / "a.tar")


def test_an_empty_node_has_no_garbage(node: Node) -> None:
    report = node.gc()
    assert (report.removed, report.failed, report.kept, report.dry_run) == ([], [], 0, False)
    assert "gc: 0 removed" in report._repr_html_()


def test_an_abandoned_import_is_collected_once(node: Node, data: Path, tmp_path: Path, tmp_root: Path) -> None:
    half_import(node, data, tmp_path)
    before = sorted(tmp_root.rglob("*"))
    dry = node.gc(dry_run=True)
    assert dry.dry_run
    assert sorted(tmp_root.rglob("*")) == before
    (row,) = dry.removed
    assert (row["module"], row["what"], row["bytes"] > 100_000) == ("snapshots", "pending", True)
    assert "dead" in row["reason"]
    assert node.gc().removed == dry.removed
    assert node.gc().removed == []
    check_store(tmp_root)


def test_folders_that_no_record_speaks_for_are_collected(node: Node, tmp_root: Path) -> None:
    snapshots = tmp_root / "snapshots"
    for folder in (
        snapshots / ID,
        snapshots / ".staging" / ("b" * 26),
        tmp_root / "run" / "qemu" / ID,
        tmp_root / "log" / "qemu" / ID,
    ):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 10_000)
    (snapshots / ".locks" / ("c" * 26)).touch()
    (tmp_root / "locks" / ("d" * 26)).touch()
    kept = [snapshots / "notes", tmp_root / "run" / "qemu" / "mine", tmp_root / "run" / "qemu" / "UPPER"]
    for other in kept:
        other.mkdir()
    dry, report = node.gc(dry_run=True), node.gc()
    assert dry.removed == report.removed
    assert found(report.removed) == [
        ("locks", "lock"), ("locks", "lock"), ("logs", "log-dir"), ("snapshots", "folder"), ("staging", "folder"),
        ("vms", "run-dir"),
    ]  # fmt: skip
    assert all(row["bytes"] >= 10_000 for row in report.removed if row["module"] != "locks")
    assert all(not Path(row["path"]).exists() for row in report.removed)
    assert all(other.is_dir() for other in kept), "what is no id is not ours"
    assert node.gc().removed == []
    assert ledger_lines(tmp_root) == []


def test_stale_placeholders_and_dead_vms(node: Node, tmp_root: Path) -> None:
    backend = node.backend("qemu")
    alive = backend.create(VMConfig("created", storage="1M"))
    dead = backend.create(VMConfig("dead", storage="1M"))
    backend.mark_started("dead")  # of a process that never was
    die(tmp_root, "import cocoon\n" + HOLD_CREATE)
    dry, report = node.gc(dry_run=True), node.gc()
    assert dry.removed == report.removed
    assert {("vms", "interval"), ("vms", "placeholder")} <= set(found(report.removed))
    assert report.kept == 2
    assert reasons(ledger_lines(tmp_root), dead.id)[-1] == ("vm.compute.stop", "stop-crash")
    assert [vm.name for vm in node.vms()] == ["created", "dead"]
    assert (alive.run_dir / "cow.raw").exists()
    assert node.gc().removed == []
    assert check_node(tmp_root).keys() == {(alive.id, "vm.storage"), (dead.id, "vm.storage")}


# Dies when its disk is made: a fifo in the way makes the copy fail late enough; the record is there by then.
HOLD_CREATE = """
import threading, time
def watch():
    while not any(vm.state == "creating" for vm in other.vms()):
        time.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)
other = Node(sys.argv[1])
big = sys.argv[1] + "/big.raw"
with open(big, "wb") as file:
    for _ in range(256):
        file.write(os.urandom(1 << 20))
threading.Thread(target=watch, daemon=True).start()
node.backend("qemu").create(VMConfig("half", disks=[Disk(big, role="cow")]))
"""


def test_what_is_being_made_stays(node: Node, data: Path, tmp_root: Path) -> None:
    code = """
class Source:
    def read(self, size):
        print("up", flush=True)
        sys.stdin.readline()
        return b""
node = Node(sys.argv[1])
try:
    node.snapshots.create(Source(), name="slow")
except CorruptSnapshot:
    print("refused")
node.close()
"""
    maker = engine_process(code, tmp_root)
    assert maker.stdout is not None
    assert maker.stdin is not None
    assert maker.stdout.readline() == "up\n"
    assert node.gc(keep_last=0).removed == []
    assert node.gc(dry_run=True, keep_last=0).removed == []
    maker.stdin.write("go\n")
    assert finish(maker).splitlines()[-1] == "refused"
    check_store(tmp_root)


def test_a_half_removed_snapshot_is_finished(node: Node, data: Path, tmp_root: Path) -> None:
    made = node.snapshots.create(data)
    shutil.move(node.snapshots.data_dir(made.id), tmp_root / "snapshots" / ".staging" / made.id)
    assert node.gc(dry_run=True).removed == node.gc().removed
    assert ledger_lines(tmp_root)[-1]["reason"] == "snap-rm"
    check_store(tmp_root)


def make_several(node: Node, data: Path, count: int = 5) -> list[str]:
    """Ids, the oldest first; each unused for a day more than the next."""
    ids = [node.snapshots.create(data, name=f"s{i}").id for i in range(count)]
    for i, snapshot_id in enumerate(ids):
        when = (node.snapshots.inspect(snapshot_id).created_at + timedelta(days=10 - i)).timestamp()
        os.utime(node.root / "snapshots" / ".locks" / snapshot_id, (when, when))
    return ids


def test_eviction_by_number_keeps_the_newest(node: Node, data: Path, tmp_root: Path) -> None:
    ids = make_several(node, data)
    dry = node.gc(dry_run=True, keep_last=2)
    assert [row["id"] for row in dry.removed] == ids[:3]
    assert dry.kept == 2
    report = node.gc(keep_last=2)
    assert report.removed == dry.removed
    assert report.kept == 2
    assert all(row["reason"] == "beyond the newest 2" for row in report.removed)
    assert [line["reason"] for line in ledger_lines(tmp_root)[5:]] == ["snap-rm"] * 3
    check_store(tmp_root, *ids[3:])


def test_eviction_by_size_takes_the_longest_unused(node: Node, data: Path, tmp_root: Path) -> None:
    ids = make_several(node, data)
    size = node.snapshots.inspect(ids[0]).size_bytes
    # The first was used last, the last one the longest ago.
    assert [row["id"] for row in node.gc(dry_run=True, max_bytes=3 * size).removed] == [ids[3], ids[4]]
    node.snapshots.export(ids[4], tmp_root / "a.tar")
    os.utime(tmp_root / "snapshots" / ".locks" / ids[4], (9e9, 9e9))
    report = node.gc(max_bytes=3 * size + 1)
    assert {row["id"] for row in report.removed} == {ids[2], ids[3]}
    check_store(tmp_root, ids[0], ids[1], ids[4])


def test_eviction_by_age_and_the_union_of_all(node: Node, data: Path, tmp_root: Path) -> None:
    ids = make_several(node, data, 3)
    assert node.gc(max_age=3600).removed == [], "used in the future, as it seems: young"
    for i, snapshot_id in enumerate(ids):
        os.utime(tmp_root / "snapshots" / ".locks" / snapshot_id, (1, 1))
        assert i < 3
    assert node.gc(max_age=timedelta(hours=1)).removed == [], "made just now, whatever the lock's time is"
    report = node.gc(dry_run=True, max_age=0, keep_last=2, max_bytes=0)
    assert {row["id"] for row in report.removed} == set(ids)
    both = next(row for row in report.removed if row["id"] == ids[0])
    assert both["reason"].count(";") == 2
    check_store(tmp_root, *ids)


def test_what_is_in_use_is_not_evicted(node: Node, data: Path, tmp_root: Path) -> None:
    made = node.snapshots.create(data)
    (data / "large").write_bytes(os.urandom(3 << 20))
    other = node.snapshots.create(data)

    class Sink:
        report: Any = None

        def write(self, block: bytes) -> int:
            if Sink.report is None:
                Sink.report = node.gc(keep_last=0)
            return len(block)

    node.snapshots.export(other.id, Sink())  # type: ignore[arg-type]
    assert [row["id"] for row in Sink.report.removed] == [made.id]
    assert Sink.report.failed == []
    check_store(tmp_root, other.id)


def test_wrong_policies_are_named(node: Node) -> None:
    for wrong in ({"keep_last": -1}, {"max_age": -1}, {"max_bytes": "lots"}, {"keep_last": "2"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            node.gc(**wrong)


def test_what_cannot_be_removed_is_reported_and_the_rest_goes_on(node: Node, data: Path, tmp_root: Path) -> None:
    made = node.snapshots.create(data)
    orphan = tmp_root / "run" / "qemu" / ID
    orphan.mkdir(parents=True)
    (tmp_root / "snapshots" / ".staging" / made.id / "in the way").mkdir(parents=True)
    report = node.gc(keep_last=0)
    assert ("vms", "run-dir") in found(report.removed)
    (failed,) = report.failed
    assert failed["id"] == made.id
    assert "Directory not empty" in failed["error"]
    assert node.snapshots.inspect(made.id) == made
    assert len(ledger_lines(tmp_root)) == 1
    shutil.rmtree(tmp_root / "snapshots" / ".staging" / made.id)


def test_another_nodes_folders_in_a_shared_run_dir_stay(tmp_root: Path) -> None:
    shared = tmp_root / "run"
    with Node(tmp_root / "a", run_dir=shared, log_dir=tmp_root / "log") as first:
        theirs = first.backend("qemu").create(VMConfig("web", storage="1M"))
        with Node(tmp_root / "b", run_dir=shared, log_dir=tmp_root / "log") as second:
            second.backend("qemu").create(VMConfig("other", storage="1M"))
            ours = second.backend("qemu").inspect("other")
            assert first.gc().removed == second.gc().removed == []
            assert (theirs.run_dir / "cow.raw").exists()
            assert (ours.run_dir / "cow.raw").exists()
        (shared / "qemu" / ID).mkdir()
        with Node(tmp_root / "c", run_dir=shared, log_dir=tmp_root / "log") as third:
            assert third.gc().removed == [], "it has never made a VM there"


def test_a_shared_run_dir_that_a_reboot_has_emptied_is_still_shared(tmp_root: Path, tmp_path: Path) -> None:
    vmms = SimulatedVmms(tmp_path / "vmms")

    def node(name: str) -> Node:
        return Node(tmp_root / name, run_dir=tmp_root / "run", log_dir=tmp_root / "log", binaries=vmms.binaries)

    def config(name: str) -> VMConfig:
        return VMConfig(name, memory="64M", storage=0, kernel=vmms.kernel)

    with node("a") as first, node("b") as second:
        first.backend("firecracker").create(config("mine"))
        theirs = second.backend("firecracker")
        theirs.create(config("runs"))
        stopped = theirs.create(config("stopped"))
        shutil.rmtree(tmp_root / "run")
        shutil.rmtree(tmp_root / "log")
        theirs.start("runs", "stopped")
        theirs.stop("stopped", force=True)
        first.backend("firecracker").create(config("more"))
        assert first.gc().removed == []
        assert {row["status"] for row in first.reconcile(fix=True).rows} == {"ok"}
        assert theirs.inspect("runs").alive
        assert stopped.run_dir.exists()
        theirs.delete("runs", force=True)


def test_a_vm_that_its_removal_has_killed_is_no_crash(
    tmp_root: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    vmms = SimulatedVmms(tmp_path / "vmms")
    with Node(tmp_root, binaries=vmms.binaries) as node, ThreadPoolExecutor(1) as pool:
        backend = node.backend("firecracker")
        vm = backend.create(VMConfig("web", memory="64M", storage="1M", kernel=vmms.kernel))
        backend.start("web")
        pid = backend.inspect("web").pid
        # Its folder takes long to remove.
        many = vm.run_dir / "many"
        many.mkdir()
        for number in range(5_000):
            (many / str(number)).touch()
        removal = pool.submit(backend.delete, "web", force=True)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the VMM is killed and reaped")
        report = node.gc()
        assert report.removed == report.failed == []
        assert removal.result() == [vm.id]
    said = reasons(ledger_lines(tmp_root), vm.id)
    assert said[2:] == [("vm.compute.stop", "stop-user"), ("vm.storage.stop", "vm-rm")]
    assert check_node(tmp_root) == {}


# Until it is told to stop; how often it has collected. What it finds would be in use.
COLLECT = """
with Node(sys.argv[1], binaries=json.loads(sys.argv[2])) as node:
    print("up", flush=True)
    runs = 0
    while not os.path.exists(sys.argv[3]):
        report = node.gc()
        runs += 1
        # Of a VM that is being removed the lock's file may come back for a moment, by who looks whether it is locked.
        taken = [row for row in report.removed if row["module"] != "locks"]
        assert taken == report.failed == [], (taken, report.failed)
    print(runs)
"""


def test_gc_beside_sequences_takes_nothing_from_them(
    tmp_root: Path, tmp_path: Path, rounds: Callable[[int], int]
) -> None:
    """Two processes collect without a pause while VMs are saved, cloned, put back, put to sleep, woken and removed."""
    vmms = SimulatedVmms(tmp_path / "vmms", tick_ms=50)
    count = rounds(4)
    with Node(tmp_root, binaries=vmms.binaries) as node:

        def live(hypervisor: str) -> None:
            backend = Backend(node, hypervisor, socket_timeout=30)
            web, base = f"web-{hypervisor}", f"base-{hypervisor}"
            clones = [f"{web}-{n}" for n in range(3)]
            for _ in range(count):
                vm = backend.create(VMConfig(web, memory="64M", storage="1M", kernel=vmms.kernel))
                backend.start(web)
                backend.snapshot(web, name=base)
                made = in_threads(*(partial(backend.clone, base, VMConfig(name)) for name in clones))
                assert all(isinstance(clone, VM) for clone in made), made
                backend.restore(web, base)
                for name in (web, clones[0]):
                    backend.hibernate(name)
                for name in (web, clones[0]):
                    backend.wake(name)
                for name in (web, *clones):
                    assert backend.inspect(name).alive
                    with console(backend, name) as guest:
                        guest.skip()
                        guest.wait_for("tick ")
                node.snapshots.delete(base)
                backend.stop(web, *clones, force=True)
                backend.delete(web, *clones)
                assert [reason for kind, reason in reasons(ledger_lines(tmp_root), vm.id) if "compute" in kind] == [
                    "boot", "restore", "restore", "stop-user", "hibernate-wake", "stop-user"
                ]  # fmt: skip

        binaries = json.dumps({name: str(path) for name, path in vmms.binaries.items()})
        collectors = [engine_process(COLLECT, tmp_root, binaries, tmp_path / "done") for _ in range(2)]
        for collector in collectors:
            assert collector.stdout is not None
            assert collector.stdout.readline() == "up\n"
        try:
            assert in_threads(*(partial(live, name) for name in HYPERVISORS)) == [None, None]
        finally:
            (tmp_path / "done").touch()
        for collector in collectors:
            assert int(finish(collector)) > count
        assert node.gc().removed == []
        assert node.reconcile().rows == []
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []


def test_a_folder_outside_of_the_root_is_collected_by_its_only_node(tmp_root: Path) -> None:
    with Node(tmp_root / "a", run_dir=tmp_root / "run") as node:
        node.backend("qemu").create(VMConfig("web", storage="1M"))
        (tmp_root / "run" / "qemu" / ID).mkdir()
        assert found(node.gc().removed) == [("vms", "run-dir")]


def test_many_at_once_collect_each_thing_once(node: Node, data: Path, tmp_path: Path, tmp_root: Path) -> None:
    ids = [node.snapshots.create(data).id for _ in range(10)]
    half_import(node, data, tmp_path)
    reports = in_threads(*(lambda: node.gc(keep_last=2) for _ in range(4)))
    removed = [row["id"] for report in reports for row in report.removed if row["what"] == "snapshot"]  # type: ignore[attr-defined]
    assert sorted(removed) == sorted(ids[:8])
    check_store(tmp_root, *ids[8:])
