"""Snapshots when something goes wrong: full disks, Ctrl-C, kills at each system call, processes that race."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cocoon import InvalidState, Node, NotFound, StoreError
from harness import check_books, engine_process, finish, kill_at, ledger_lines, race
from snapshot_support import check_store, contents, data_folder, sparse_file
from test_syscall_kills import kill_points, scenario

Rounds = Callable[[int], int]


def test_processes_that_delete_one_stop_it_once(tmp_root: Path, tmp_path: Path, rounds: Rounds) -> None:
    total = rounds(100)
    data = tmp_path / "data"
    data.mkdir()
    (data / "memory").write_bytes(b"x")
    with Node(tmp_root) as node:
        for i in range(total):
            node.snapshots.create(data, name=f"s{i}")
    code = """
with Node(sys.argv[1]) as node:
    print("up", flush=True)
    sys.stdin.readline()
    won = 0
    for i in range(int(sys.argv[2])):
        try:
            node.snapshots.delete(f"s{i}")
            won += 1
        except NotFound:
            pass
    print(won)
"""
    racers = [engine_process(code, tmp_root, total) for _ in range(3)]
    assert sum(map(int, race(*racers))) == total
    assert len(ledger_lines(tmp_root)) == 2 * total
    check_store(tmp_root)


def test_a_name_that_many_want_goes_to_one(tmp_root: Path, tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    code = """
with Node(sys.argv[1]) as node:
    try:
        print(node.snapshots.create(sys.argv[2], name="base").id)
    except AlreadyExists as error:
        print(error.name)
"""
    said = [finish(racer).strip() for racer in [engine_process(code, tmp_root, data) for _ in range(4)]]
    (winner,) = (text for text in said if text != "base")
    check_store(tmp_root, winner)


def test_gc_beside_everything_takes_nothing_from_the_living(tmp_root: Path, tmp_path: Path, rounds: Rounds) -> None:
    data = data_folder(tmp_path / "data")
    Node(tmp_root).close()
    collect = "\nwith Node(sys.argv[1]) as node:\n while not os.path.exists(sys.argv[2]): node.gc()\n"
    work = """
with Node(sys.argv[1]) as node:
    for i in range(int(sys.argv[3])):
        made = node.snapshots.create(sys.argv[2])
        node.snapshots.export(made.id, sys.argv[2] + f".{os.getpid()}.tar")
        again = node.snapshots.import_(sys.argv[2] + f".{os.getpid()}.tar")
        node.snapshots.delete(made.id)
    os.unlink(sys.argv[2] + f".{os.getpid()}.tar")
"""
    collectors = [engine_process(collect, tmp_root, tmp_path / "done") for _ in range(2)]
    count = rounds(15)
    for worker in [engine_process(work, tmp_root, data, count) for _ in range(2)]:
        finish(worker)
    (tmp_path / "done").touch()
    for collector in collectors:
        finish(collector)
    with Node(tmp_root) as node:
        left = node.snapshots.list()
        assert len(left) == 2 * count
        for snapshot in left:
            assert contents(node.snapshots.data_dir(snapshot.id)) == contents(data)
    check_store(tmp_root, *(s.id for s in left))


# ------------------------------------------------------------------ full disks


@pytest.fixture
def small_disk(tmp_root: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_root / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "cocoon-test", folder], capture_output=True, check=False, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_no_trace(small_disk: Path, tmp_path: Path) -> None:
    root = small_disk / "node"
    data = tmp_path / "data"
    data.mkdir()
    (data / "memory").write_bytes(os.urandom(30 << 20))
    (data / "vmstate").write_bytes(b"x")
    with Node(tmp_path / "other") as other:
        made = other.snapshots.create(data, name="big")
        for compression in ("none", "zstd"):
            with pytest.raises(StoreError, match="No space left") as caught:
                other.snapshots.export("big", small_disk / "a.tar", compression=compression)
            assert str(small_disk) in str(caught.value.path)
        with pytest.raises(StoreError, match="No space left"):
            other.snapshots.export_dir("big", small_disk / "dir")
        assert list(small_disk.iterdir()) == []
        other.snapshots.export("big", tmp_path / "a.tar.gz", compression="gzip")
        other.snapshots.export_dir("big", tmp_path / "dir")
    check_store(tmp_path / "other", made.id)

    with Node(root) as node:
        attempts: list[Callable[[], object]] = [
            lambda: node.snapshots.import_(tmp_path / "a.tar.gz"),
            lambda: node.snapshots.import_(tmp_path / "dir"),
            lambda: node.snapshots.create(data, name="big"),
        ]
        for attempt in attempts:
            with pytest.raises(StoreError, match="No space left"):
                attempt()
    check_store(root)
    with Node(root) as node:
        (data / "memory").write_bytes(b"small")
        made = node.snapshots.create(data, name="big")
    check_store(root, made.id)


# ------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("what", ["export", "export to a full pipe", "import", "import of a silent pipe", "create"])
def test_ctrl_c_acts_at_once_and_undoes(tmp_root: Path, tmp_path: Path, what: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    sparse_file(data / "memory", 256 << 20, {i << 20: os.urandom(1 << 20) for i in range(256)})
    with Node(tmp_root) as node:
        made = node.snapshots.create(data, name="base")
        if what == "import":
            node.snapshots.export("base", tmp_path / "a.tar.gz", compression="gzip")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    calls = {
        "export": "s.export('base', path + '/out.tar', compression='zstd', progress=tell)",
        "export to a full pipe": "os.open(path + '/fifo', os.O_RDWR); tell(); s.export('base', path + '/fifo')",
        "import": "s.import_(path + '/a.tar.gz', name='x', progress=tell)",
        "import of a silent pipe": "tell(); s.import_(path + '/fifo')",
        "create": "tell(); s.create(path + '/data')",
    }
    code = f"""
import time
path = sys.argv[2]
def tell(*_):
    if os.environ.pop("QUIET", ""):
        print("up", flush=True)
os.environ["QUIET"] = "1"
node = Node(sys.argv[1])
s = node.snapshots
try:
    {calls[what]}
    print("came to its end")
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
node.close()
"""
    keep_open = os.open(fifo, os.O_RDWR) if what == "import of a silent pipe" else -1
    process = engine_process(code, tmp_root, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = finish(process).strip()
    if keep_open >= 0:
        os.close(keep_open)
    if said != "came to its end":  # a fast disk may have been done before
        assert float(said) - sent < 2.0, "the engine asks every 40 ms; the rest is a loaded machine"
        assert not (tmp_path / "out.tar").exists()
        check_store(tmp_root, made.id)


# ------------------------------------------------------------------ kills


VERBS = {
    "create": "node.snapshots.create(sys.argv[2], name='new')",
    "import": "node.snapshots.import_(sys.argv[3], name='new')",
    "delete": "node.snapshots.delete('old')",
    "export": "node.snapshots.export('old', sys.argv[1] + '/out.tar')",
    "gc": "node.gc(keep_last=0)",
}


@pytest.mark.parametrize("verb", VERBS)
def test_engine_killed_at_every_system_call(tmp_root: Path, tmp_path: Path, rounds: Rounds, verb: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "vmstate").write_bytes(b"state")
    sparse_file(data / "memory", 1 << 20, {4096: b"x" * 5000})
    trace = tmp_path / "trace"
    with Node(tmp_path / "source") as node:
        node.snapshots.create(data, name="source")
        node.snapshots.export("source", tmp_path / "a.tar.zst", compression="zstd")

    def fresh(at: int) -> Path:
        root = tmp_root / str(at)
        with Node(root) as node:
            node.snapshots.create(data, name="old")
        return root

    def command(root: Path) -> list[str]:
        return [*scenario(VERBS[verb]), str(root), str(data), str(tmp_path / "a.tar.zst")]

    points = kill_points(command(fresh(0)), trace, rounds(40))
    done = 0
    for at, (call, when) in enumerate(points, start=1):
        root = fresh(at)
        assert kill_at(command(root), call, when, trace), f"it ran to its end, past {call} number {when}"
        with Node(root) as node:
            assert node.pending == 0, "opening drains what was left"
            opened = {who for who, _ in check_books(ledger_lines(root))}
            names = {s.name: s.id for s in node.snapshots.list()}
            assert opened == set(names.values()), "ledger and records agree before anything is put right"
            for name in names:
                try:
                    folder = node.snapshots.data_dir(name)
                except InvalidState:  # half removed
                    assert verb in ("delete", "gc")
                else:
                    assert contents(folder) == contents(data)
            done += ("new" in names) if verb in ("create", "import") else ("old" not in names)
            if verb in ("create", "import"):
                assert names.keys() - {"new"} == {"old"}
                # What the dead one wanted can be done at once, whatever it left.
                if "new" not in names:
                    node.snapshots.create(data, name="new")
            elif verb in ("delete", "gc"):
                try:
                    node.snapshots.delete("old")
                except NotFound:
                    assert "old" not in names
            else:
                assert names.keys() == {"old"}
            node.gc()
            assert node.gc().removed == []
            left = [s.id for s in node.snapshots.list()]
        check_store(root, *left)
        shutil.rmtree(root)
    if len(points) > 20 and verb != "export":
        assert 0 < done < len(points), "some kills fell before the commit and some after it"


def test_a_forked_child_takes_nothing_along(tmp_root: Path, tmp_path: Path) -> None:
    """multiprocessing with fork, in the middle of an export: the child ends, and the parent's lock stays."""
    data = data_folder(tmp_path / "data")
    (data / "more").write_bytes(os.urandom(4 << 20))  # the archive does not fit into what is packed ahead
    code = """
node = Node(sys.argv[1])
node.snapshots.create(sys.argv[2], name="base")
class Sink:
    forked = False
    def write(self, block):
        if not Sink.forked:
            Sink.forked = True
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            try:
                node.snapshots.delete("base")
            except InvalidState:
                print("in use")
        return len(block)
node.snapshots.export("base", Sink())
node.snapshots.delete("base")
node.close()
"""
    assert finish(engine_process(code, tmp_root, data)) == "in use\n"
    check_store(tmp_root)
