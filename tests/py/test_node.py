"""Node, Backend and their values, as far as no VMM is needed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest

import cocoon
from cocoon import (
    AlreadyExists,
    AmbiguousRef,
    Backend,
    BulkError,
    Disk,
    InvalidArgument,
    InvalidState,
    Node,
    NotFound,
    StoreError,
    VMConfig,
    VmmError,
    VMState,
)
from harness import check_node, engine_process, finish, ledger_lines, reasons


@pytest.fixture
def backend(tmp_root: Path) -> Iterator[Backend]:
    with Node(tmp_root) as node:
        yield node.backend("qemu")


# ------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"cpu": 0}, "cpu"),
        ({"cpu": -1}, "cpu"),
        ({"cpu": 2**70}, "cpu"),
        ({"cpu": 1.5}, "cpu"),
        ({"cpu": True}, "cpu"),
        ({"memory": "512X"}, "memory"),
        ({"memory": "lots"}, "memory"),
        ({"memory": ""}, "memory"),
        ({"memory": "0x10M"}, "memory"),
        ({"memory": "nan"}, "memory"),
        ({"memory": "1.0000000001K"}, "memory"),
        ({"memory": -1}, "memory"),
        ({"memory": 0}, "memory"),
        ({"memory": 2**80}, "memory"),
        ({"memory": [1]}, "memory"),
        ({"storage": "-1G"}, "storage"),
        ({"storage": 3.5}, "storage"),
        ({"kernel": "a\0b"}, "kernel"),
        ({"kernel": 7}, "kernel"),
        ({"cmdline": "a\nb"}, "cmdline"),
        ({"labels": {"": "x"}}, "label"),
        ({"labels": {"k" * 64: "x"}}, "label"),
        ({"labels": {"k": "v" * 257}}, "label"),
        ({"labels": {"k": "a\x01b"}}, "label"),
        ({"labels": {"k": 1}}, "labels"),
        ({"labels": ["k"]}, "labels"),
        ({"labels": {f"k{i}": "" for i in range(65)}}, "label"),
        ({"disks": ["a.img"]}, "disks"),
    ],
)
def test_a_wrong_configuration_names_the_argument(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        VMConfig(**({"name": "web"} | arguments))
    assert "allowed" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"path": ""}, "path"),
        ({"path": "a", "format": "vmdk"}, "format"),
        ({"path": "a", "role": "boot"}, "role"),
        ({"path": "a", "role": "cow", "readonly": True}, "cow"),
        ({"path": "a", "serial": "x" * 21}, "serial"),
        ({"path": "a", "serial": "a b"}, "serial"),
    ],
)
def test_a_wrong_disk_names_the_argument(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Disk(**arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("10GiB", 10 << 30),
        ("2GB", 2 << 30),
        ("1.5G", 3 << 29),
        (4096 << 10, 4 << 20),
        ("4096K", 4 << 20),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert VMConfig("web", memory=text).memory == size


def test_what_is_left_out_of_a_new_vm(backend: Backend) -> None:
    config = VMConfig("web")
    assert (config.cpu, config.memory, config.storage) == (None, None, None)
    made = backend.create(VMConfig("web", kernel=__file__)).config
    assert (made.cpu, made.memory, made.storage) == (1, 512 << 20, 10 << 30)
    assert made.kernel == Path(__file__)


def test_the_own_disk_and_what_is_billed(backend: Backend, tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"system" + bytes(2 << 20))
    data = tmp_path / "data.img"
    data.write_bytes(bytes(1 << 20))
    layer = tmp_path / "layer.img"
    layer.write_bytes(bytes(512))
    disks = [Disk(layer, role="layer"), Disk(base, role="cow"), Disk(data)]
    vm = backend.create(VMConfig("web", storage="4M", disks=disks))
    own = Path(vm.run_dir) / "cow.raw"
    assert own.stat().st_size == 4 << 20
    assert own.read_bytes().startswith(b"system")
    assert own.stat().st_mode & 0o777 == 0o600
    assert [(d.role, d.readonly, d.path) for d in vm.config.disks] == [
        ("layer", True, layer),
        ("cow", False, own),
        ("data", False, data),
    ]
    assert vm.shape.storage_bytes == (4 << 20) + (1 << 20), "its own disk and the data disk"
    with pytest.raises(InvalidArgument, match="storage"):
        backend.create(VMConfig("small", storage="1M", disks=[Disk(base, role="cow")]))
    with pytest.raises(InvalidArgument, match="no-such"):
        backend.create(VMConfig("lost", disks=[Disk(tmp_path / "no-such.img")]))
    with pytest.raises(InvalidArgument, match="qcow2"):
        backend.create(VMConfig("lost", disks=[Disk(base, format="qcow2")]))
    backend.delete("web")
    assert base.exists()
    assert data.exists()
    assert [vm.name for vm in backend.list()] == []


def test_a_create_that_fails_leaves_nothing(backend: Backend, tmp_root: Path) -> None:
    (tmp_root / "log").write_text("a file where a folder must go")
    with pytest.raises(StoreError) as caught:
        backend.create(VMConfig("web", storage="1M"))
    assert str(tmp_root / "log") in str(caught.value)
    assert backend.list() == []
    assert ledger_lines(tmp_root) == []
    assert not list((tmp_root / "run" / "qemu").iterdir())
    assert not list((tmp_root / "locks").iterdir())
    (tmp_root / "log").unlink()
    backend.create(VMConfig("web", storage="1M"))
    check_node(tmp_root)


# ------------------------------------------------------------------ references and values


def test_references(backend: Backend) -> None:
    one = backend.create(VMConfig("web-1", storage=0))
    two = backend.create(VMConfig("web-2", storage=0))
    assert len(one.id) == 26
    assert set(one.id) <= set("abcdefghijklmnopqrstuvwxyz234567")
    for ref in (one.id, "web-1", one.id[:12]):
        assert backend.inspect(ref).id == one.id
        assert backend.node.find(ref).id == one.id
    for ref in ("web", one.id[:2], "", "nobody", "%", "_" * 26):
        with pytest.raises(NotFound) as caught:
            backend.inspect(ref)
        assert caught.value.ref == ref
        assert isinstance(caught.value, LookupError)
    named_like_an_id = backend.create(VMConfig(two.id[:5], storage=0))
    assert backend.inspect(two.id[:5]).id == named_like_an_id.id, "an exact name comes before a prefix"
    with pytest.raises(AlreadyExists) as taken:
        backend.create(VMConfig("web-1", storage=0))
    assert (taken.value.name, taken.value.id) == ("web-1", one.id)


def test_an_ambiguous_prefix_names_the_candidates(backend: Backend) -> None:
    prefixes: dict[str, list[str]] = {}
    for i in range(400):
        vm_id = backend.create(VMConfig(f"v{i}", storage=0)).id
        same = prefixes.setdefault(vm_id[:3], [])
        same.append(vm_id)
        if len(same) == 2:
            with pytest.raises(AmbiguousRef) as caught:
                backend.inspect(vm_id[:3])
            assert set(caught.value.candidates) == set(same)
            return
    pytest.skip("400 random ids without two of one prefix: less likely than one in ten")


def test_vm_is_a_value(backend: Backend) -> None:
    vm = backend.create(VMConfig("web", storage=0, labels={"team": "a"}))
    backend.mark_started("web")
    assert vm.state == "created"
    now = backend.inspect("web")
    assert now.state is VMState.RUNNING
    assert now.started_at is not None
    assert now.started_at.tzinfo is UTC
    assert now.started_at_ns is not None
    assert now.started_at == cocoon.Entry("vm.storage.start", vm_id="x", emitted_at=now.started_at_ns).emitted_at
    document = json.loads(json.dumps(now.to_dict()))
    assert document["id"] == vm.id
    assert document["config"]["labels"] == {"team": "a"}
    assert document["alive"] is False
    assert document["started_at"].endswith("Z")


def test_list_filters(backend: Backend) -> None:
    for name, team in (("a", "x"), ("b", "y"), ("c", "x")):
        backend.create(VMConfig(name, storage=0, labels={"team": team}))
    backend.mark_started("c")
    assert [vm.name for vm in backend.list()] == ["a", "b", "c"]
    assert [vm.name for vm in backend.list(labels={"team": "x"})] == ["a", "c"]
    assert [vm.name for vm in backend.list(state="running")] == ["c"]
    assert [vm.name for vm in backend.list(state=VMState.CREATED, labels={"team": "x"})] == ["a"]
    with pytest.raises(InvalidArgument, match="asleep"):
        backend.list(state="asleep")


# ------------------------------------------------------------------ the state machine


def test_transitions_by_hand(backend: Backend, tmp_root: Path) -> None:
    vm = backend.create(VMConfig("web", storage=0))
    backend.mark_stopped("web")
    assert backend.inspect("web").stopped_at is None, "it never ran"
    backend.mark_started("web")
    backend.mark_error("web")
    assert backend.inspect("web").interval_open, "nobody proved the process dead"
    backend.mark_started("web")
    backend.mark_stopped("web", "web")
    backend.mark_stopped("web")
    backend.delete("web")
    assert reasons(ledger_lines(tmp_root), vm.id) == [
        ("vm.storage.start", "boot"),
        ("vm.compute.start", "boot"),
        ("vm.compute.stop", "stop-crash"),
        ("vm.compute.start", "restart"),
        ("vm.compute.stop", "stop-user"),
        ("vm.storage.stop", "vm-rm"),
    ]
    check_node(tmp_root)


def test_state_verbs_need_no_binary(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(VMConfig("web", storage=0, kernel=__file__))
        backend.mark_started("web")
        backend.stop("web")
        with pytest.raises(VmmError, match="qemu-system-x86_64"):
            backend.start("web")
        assert backend.inspect("web").state == "stopped"
        with pytest.raises(VmmError, match="no-such-binary"):
            _ = Node(tmp_root, binaries={"qemu": "/no-such-binary"}).backend("qemu").binary
        backend.delete("web")
    with pytest.raises(InvalidArgument, match="xen"):
        Node(tmp_root, binaries={"xen": "/bin/true"})
    with pytest.raises(InvalidArgument, match="qemu"):
        Node(tmp_root).backend("xen")
    check_node(tmp_root)


def test_several_references(backend: Backend) -> None:
    ids = [backend.create(VMConfig(f"v{i}", storage=0)).id for i in range(40)]
    backend.mark_started(*ids)
    assert backend.stop(*ids) == ids
    with pytest.raises(BulkError, match="nobody") as caught:
        backend.delete("v0", "nobody", "v1")
    assert caught.value.succeeded == ids[:2]
    assert isinstance(caught.value.errors["nobody"], NotFound)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.succeeded == ids[:2]
    assert again.errors["nobody"].ref == "nobody"
    with pytest.raises(InvalidArgument, match="refs"):
        backend.start()


def test_relabel(backend: Backend) -> None:
    backend.create(VMConfig("web", storage=0, labels={"a": "1", "b": "2"}))
    assert backend.relabel("web", {"b": None, "c": "3"}).config.labels == {"a": "1", "c": "3"}
    with pytest.raises(InvalidArgument):
        backend.relabel("web", {"x" * 64: "1"})


def test_a_placeholder_whose_creator_died_is_removed(tmp_root: Path, tmp_path: Path) -> None:
    # The creator is killed while it copies a base that never ends: a fifo would be refused, so a huge sparse file.
    base = tmp_path / "base.img"
    with base.open("wb") as file:
        file.truncate(1 << 40)
    code = (
        "node = Node(sys.argv[1]); os.close(1); "
        "node.backend('qemu').create(VMConfig('web', disks=[Disk(sys.argv[2], role='cow')]))"
    )
    creator = engine_process(code, tmp_root, base)
    with Node(tmp_root) as node:
        deadline = time.monotonic() + 30
        disks = tmp_root / "run" / "qemu"
        while not list(disks.glob("*/cow.raw")) and creator.poll() is None and time.monotonic() < deadline:
            pass
        creator.kill()
        creator.communicate()
        if not node.vms() or node.find("web").state != "creating":
            pytest.skip("this file system copied a terabyte of nothing before the creator could be killed")
        with pytest.raises(InvalidState):
            node.backend("qemu").start("web")
        (row,) = node.reconcile().rows
        assert row["status"] == "stale-placeholder"
        assert node.reconcile(fix=True).ok
        assert node.vms() == []
    assert ledger_lines(tmp_root) == []
    assert not list(disks.iterdir())


def test_reconcile_closes_what_is_dead(backend: Backend, tmp_root: Path) -> None:
    backend.create(VMConfig("web", storage=0))
    backend.create(VMConfig("idle", storage=0))
    backend.mark_started("web")
    report = backend.node.reconcile()
    assert not report.ok
    assert {row["name"]: row["status"] for row in report.rows} == {"web": "open-but-process-dead", "idle": "ok"}
    assert len(ledger_lines(tmp_root)) == 3, "a look changes nothing"
    report = backend.node.reconcile(fix=True)
    assert report.ok
    assert {row["name"]: row["action"] for row in report.rows} == {"web": "closed", "idle": ""}
    assert "<script>" not in report._repr_html_()
    assert backend.node.reconcile().ok
    check_node(tmp_root)


# ------------------------------------------------------------------ nodes


def test_node_is_a_context_manager(tmp_root: Path) -> None:
    with Node(tmp_root) as node:
        node_id = node.id
        assert node.root == tmp_root
        assert isinstance(node.recorder, cocoon.FileRecorder)
        assert node.recorder.path == tmp_root / "metering" / "ledger.jsonl"
        backend = node.backend("qemu")
    with pytest.raises(StoreError, match="closed"):
        backend.create(VMConfig("web"))
    with Node(tmp_root) as node:
        assert node.id == node_id
    for path in (tmp_root / "db", tmp_root / "db" / "meta.db", tmp_root / "locks"):
        assert path.stat().st_mode & 0o077 == 0


def test_own_folders(tmp_root: Path) -> None:
    with Node(tmp_root / "root", run_dir=tmp_root / "run", log_dir=tmp_root / "log") as node:
        vm = node.backend("qemu").create(VMConfig("web", storage=0))
        assert Path(vm.run_dir).is_relative_to(tmp_root / "run")
        assert node.backend("qemu").log_path("web").is_relative_to(tmp_root / "log")
    with Node(tmp_root / "root") as node:
        assert node.find("web").run_dir == vm.run_dir, "where it was made"


def test_ledger_labels_stay_with_the_node(tmp_root: Path) -> None:
    with Node(tmp_root, ledger_labels=["team"]):
        pass
    with Node(tmp_root) as node:
        node.backend("qemu").create(VMConfig("web", storage=0, labels={"team": "a", "secret": "b"}))
    assert ledger_lines(tmp_root)[0]["labels"] == {"team": "a"}
    with pytest.raises(InvalidArgument):
        Node(tmp_root, ledger_labels=[f"k{i}" for i in range(17)])
    with pytest.raises(InvalidArgument):
        Node(tmp_root, ledger_labels="team")


def test_durations(tmp_root: Path) -> None:
    node = Node(tmp_root)
    Backend(node, "qemu", socket_timeout=0.5, stop_timeout=timedelta(seconds=3), terminate_grace=0)
    for wrong in (-1, float("nan"), "5", True, 1e12):
        with pytest.raises(InvalidArgument, match="stop_timeout"):
            Backend(node, "qemu", stop_timeout=wrong)  # type: ignore[arg-type]


def _use_inherited(node: Node) -> None:
    try:
        node.vms()
    except StoreError:
        os._exit(7)
    os._exit(0)


def test_a_forked_child_must_open_its_own_node(tmp_root: Path) -> None:
    node = Node(tmp_root)
    child = multiprocessing.get_context("fork").Process(target=_use_inherited, args=(node,))
    child.start()
    child.join(30)
    assert child.exitcode == 7
    node.backend("qemu").create(VMConfig("web", storage=0))
    check_node(tmp_root)


def test_other_threads_run_while_a_call_waits(tmp_root: Path, wait_until: Callable[..., None]) -> None:
    """A call that waits for another engine's op lock holds neither the GIL nor, after Ctrl-C, its caller."""
    holder = """
import fcntl
node = Node(sys.argv[1])
vm = node.backend("qemu").create(VMConfig("web", storage=0))
lock = open(os.path.join(sys.argv[1], "locks", vm.id), "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
    waiter = """
import threading, time
node = Node(sys.argv[1])
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
print("waiting", flush=True)
try:
    node.backend("qemu").stop("web")
except KeyboardInterrupt:
    print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), ticks)
"""
    first = engine_process(holder, tmp_root)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = engine_process(waiter, tmp_root)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting\n"
    threading.Event().wait(0.5)
    sent = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    second.send_signal(signal.SIGINT)
    returned, ticks = map(int, finish(second).split())
    assert ticks > 20, "the GIL was held"
    assert returned - sent < 500_000_000, "it is 100 ms on a quiet machine"
    first.communicate("\n", timeout=30)
    check_node(tmp_root)
