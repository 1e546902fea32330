"""Snapshots in the store, and their way in and out of it."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import cocoon
from cocoon import AlreadyExists, BulkError, CorruptSnapshot, InvalidArgument, InvalidState, LocalFile, Node, NotFound
from harness import ledger_lines
from snapshot_support import GOLDEN, allocated, archive, check_store, contents, data_folder, envelope, member

COMPRESSIONS = ("none", "gzip", "zstd")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data")


@pytest.fixture
def store(tmp_root: Path) -> Iterator[LocalFile]:
    with Node(tmp_root) as node:
        yield node.snapshots


def names_in(packed: io.BytesIO) -> list[str]:
    with tarfile.open(fileobj=packed) as tar:
        return tar.getnames()


def make(store: LocalFile, data: Path, name: str = "base") -> cocoon.Snapshot:
    return store.create(
        data, name=name, description="of a test", hypervisor="firecracker", cpu=2, memory="512M", storage="1G"
    )


def test_create_from_a_folder(store: LocalFile, data: Path, tmp_root: Path) -> None:
    before = datetime.now(UTC)
    made = make(store, data)
    assert (made.name, made.description, made.hypervisor, made.vm_id) == ("base", "of a test", "firecracker", "")
    assert (made.cpu, made.memory, made.storage, made.kept) == (2, 512 << 20, 1 << 30, False)
    assert made.size_bytes == (12 << 20) + 500
    assert before - timedelta(seconds=1) <= made.created_at <= datetime.now(UTC)
    assert made.to_dict()["size_bytes"] == made.size_bytes
    assert made == store.inspect(made.id) == store.inspect("base") == store.inspect(made.id[:5])
    assert store.list() == [made]
    folder = store.data_dir("base")
    assert contents(folder) == contents(data)
    assert allocated(folder) <= allocated(data) + 8192
    assert os.stat(folder).st_mode & 0o777 == 0o700
    (line,) = ledger_lines(tmp_root)
    assert (line["kind"], line["snapshot_id"], line["hypervisor"]) == ("snap.storage.start", made.id, "firecracker")
    assert line["shape"] == {"storage_bytes": made.size_bytes}
    assert "reason" not in line
    check_store(tmp_root, made.id)


@pytest.mark.parametrize("compression", ["", "gz"])
def test_create_from_a_stream_and_from_a_file(store: LocalFile, tmp_path: Path, compression: Any) -> None:
    packed = archive(("memory", b"m" * 5000), ("vmstate", b"s"), compression=compression)
    made = store.create(io.BytesIO(packed), name="streamed")
    assert contents(store.data_dir(made.id)) == {"memory": b"m" * 5000, "vmstate": b"s"}
    (tmp_path / "a.tar").write_bytes(packed)
    assert contents(store.data_dir(store.create(tmp_path / "a.tar").id)) == contents(store.data_dir(made.id))


def test_an_empty_archive_makes_an_empty_snapshot(store: LocalFile, tmp_root: Path) -> None:
    made = store.create(io.BytesIO(archive()))
    assert made.size_bytes == 0
    assert ledger_lines(tmp_root)[0]["shape"] == {}
    check_store(tmp_root, made.id)


def test_newest_first_and_names_are_free_again(store: LocalFile, data: Path, tmp_root: Path) -> None:
    first, second = make(store, data, "a"), make(store, data, "b")
    assert store.list() == [second, first]
    assert store.delete("a") == [first.id]
    third = make(store, data, "a")
    assert third.id != first.id
    assert store.list() == [third, second]
    check_store(tmp_root, second.id, third.id)


def test_a_taken_name_is_refused_and_names_its_holder(store: LocalFile, data: Path, tmp_root: Path) -> None:
    made = make(store, data)
    with pytest.raises(AlreadyExists, match="base") as caught:
        make(store, data)
    assert (caught.value.name, caught.value.id) == ("base", made.id)
    check_store(tmp_root, made.id)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "../x"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"cpu": -1}, "cpu"),
        ({"memory": "lots"}, "memory"),
        ({"storage": -5}, "storage"),
        ({"description": "x" * 5000}, "description"),
        ({"hypervisor": "a b"}, "hypervisor"),
        ({"allow_paths": "x"}, "allow_paths"),
        ({"progress": 5}, "progress"),
    ],
)
def test_wrong_arguments_are_named(
    store: LocalFile, data: Path, tmp_root: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        store.create(data, **arguments)
    check_store(tmp_root)


def test_a_folder_with_more_than_plain_files_is_refused(store: LocalFile, data: Path, tmp_root: Path) -> None:
    (data / "link").symlink_to("/etc/passwd")
    with pytest.raises(CorruptSnapshot, match="link") as caught:
        make(store, data)
    assert caught.value.member == "link"
    (data / "link").unlink()
    (data / "sub").mkdir()
    with pytest.raises(CorruptSnapshot, match="sub"):
        make(store, data)
    check_store(tmp_root)


def test_delete_takes_each_once_and_stops_with_the_starts_shape(store: LocalFile, data: Path, tmp_root: Path) -> None:
    first, second = make(store, data, "a"), make(store, data, "b")
    with pytest.raises(NotFound, match="unknown"):
        store.delete("a", "unknown")
    check_store(tmp_root, first.id, second.id)
    assert store.delete("a", first.id, "b") == [first.id, second.id]
    starts, stops = ledger_lines(tmp_root)[:2], ledger_lines(tmp_root)[2:]
    assert [line["reason"] for line in stops] == ["snap-rm", "snap-rm"]
    assert [line["shape"] for line in stops] == [line["shape"] for line in starts]
    with pytest.raises(NotFound):
        store.inspect("a")
    with pytest.raises(InvalidArgument, match="refs"):
        store.delete()
    check_store(tmp_root)


def test_one_that_is_exported_is_not_deleted(store: LocalFile, data: Path, tmp_root: Path) -> None:
    (data / "large").write_bytes(os.urandom(3 << 20))
    first, second = make(store, data, "a"), make(store, data, "b")
    tried: list[BaseException] = []

    class Sink(io.BytesIO):
        def write(self, block: Any, /) -> int:
            if not tried:
                with pytest.raises(InvalidState, match="in use") as alone:
                    store.delete("a")
                tried.append(alone.value)
                with pytest.raises(BulkError) as several:
                    store.delete("a", "b")
                assert several.value.succeeded == [second.id]
                assert list(several.value.errors) == ["a"]
            return super().write(block)

    sink = Sink()
    store.export("a", sink)
    assert len(tried) == 1
    assert names_in(io.BytesIO(sink.getvalue()))[0] == "snapshot.json"
    store.delete("a")
    check_store(tmp_root)
    assert first.id != second.id


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("records", ["gnu", "cocoon"])
def test_export_and_import_give_the_same_bytes(
    store: LocalFile, data: Path, tmp_path: Path, compression: Any, records: Any
) -> None:
    made = make(store, data)
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "a.archive"
    written = store.export(
        "base", path, compression=compression, sparse_records=records, progress=lambda *a: told.append(a)
    )
    assert path.stat().st_size == written < 1 << 20
    assert path.stat().st_mode & 0o777 == 0o600
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    heard: list[tuple[int, int | None]] = []
    again = store.import_(path, name="again", progress=lambda *a: heard.append(a))
    assert heard[-1] == (written, written)
    assert contents(store.data_dir("again")) == contents(data)
    assert allocated(store.data_dir("again")) <= allocated(data) + 8192
    assert (again.description, again.hypervisor, again.cpu, again.memory, again.storage, again.size_bytes) == (
        made.description, made.hypervisor, made.cpu, made.memory, made.storage, made.size_bytes
    )  # fmt: skip
    assert (again.vm_id, again.id == made.id) == ("", False)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tar_restores_what_was_exported(store: LocalFile, data: Path, tmp_path: Path, compression: Any) -> None:
    if compression == "zstd" and shutil.which("zstd") is None:
        pytest.skip("tar needs the program zstd to read zstd")
    make(store, data)
    path = tmp_path / {"none": "a.tar", "gzip": "a.tar.gz", "zstd": "a.tar.zst"}[compression]
    store.export("base", path, compression=compression)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-C", out, "-xf", path], check=True)
    restored = contents(out)
    assert b'"name": "base"' in restored.pop("snapshot.json")
    assert restored == contents(data)
    assert allocated(out) <= allocated(data) + 16384


@pytest.mark.parametrize("how", ["--sparse", "--sparse --format=posix", "--format=ustar", "--sparse -z"])
def test_what_tar_packs_is_imported(store: LocalFile, data: Path, tmp_path: Path, how: str) -> None:
    (data / "snapshot.json").write_bytes(envelope("packed", cpu=3))
    subprocess.run(["tar", "-C", data, "-cf", tmp_path / "a.tar", *how.split(), "."], check=True)
    made = store.import_(tmp_path / "a.tar")
    (data / "snapshot.json").unlink()
    assert (made.name, made.cpu) == ("packed", 3)
    assert contents(store.data_dir("packed")) == contents(data)
    assert allocated(store.data_dir("packed")) <= allocated(data) + 8192


def test_the_go_engines_archives_are_imported_to_the_same_bytes(store: LocalFile, tmp_path: Path) -> None:
    plain = store.import_(GOLDEN / "golden.tar")
    assert (plain.name, plain.description, plain.hypervisor) == ("golden", "fixture", "cloud-hypervisor")
    assert (plain.cpu, plain.memory, plain.storage) == (2, 1 << 30, 10 << 30)
    assert plain.size_bytes == 12582961  # what that engine billed
    with (GOLDEN / "golden.tar.gz").open("rb") as stream:
        packed = store.import_(stream, name="", description="mine")
    assert (packed.name, packed.description) == ("", "mine")
    files = contents(store.data_dir(plain.id))
    assert files == contents(store.data_dir(packed.id))
    assert {name: len(body) for name, body in files.items()} == {
        "cocoon.json": 23, "config.json": 26, "data-a.raw": 4 << 20, "memory-ranges": 8 << 20
    }  # fmt: skip
    assert allocated(store.data_dir(plain.id)) < 200_000
    # The folder form is made of the same files.
    store.export_dir("golden", tmp_path / "dir")
    assert {name for name in contents(tmp_path / "dir") if name != "snapshot.json"} == set(files)


def test_a_folder_goes_out_and_in(store: LocalFile, data: Path, tmp_path: Path, tmp_root: Path) -> None:
    made = make(store, data)
    out = tmp_path / "a" / "out"
    store.export_dir("base", out)
    assert set(contents(out)) == {"snapshot.json", *contents(data)}
    assert allocated(out) <= allocated(data) + 16384
    with pytest.raises(InvalidArgument, match="not empty"):
        store.export_dir("base", out)
    with pytest.raises(AlreadyExists):
        store.import_(out)
    again = store.import_(out, name="again")
    assert contents(store.data_dir("again")) == contents(data)
    (out / "snapshot.json").unlink()
    with pytest.raises(CorruptSnapshot, match="unfinished"):
        store.import_(out)
    check_store(tmp_root, made.id, again.id)


def test_streams_that_take_and_give_little_at_a_time(store: LocalFile, data: Path) -> None:
    class Slow(io.RawIOBase):
        def __init__(self, content: bytes = b"") -> None:
            self.content = content

        def write(self, block: Any, /) -> int:
            self.content += bytes(block[:1000])
            return min(1000, len(block))

        def read(self, _size: int = -1, /) -> bytes:
            block, self.content = self.content[:777], self.content[777:]
            return block

    make(store, data)
    sink = Slow()
    assert store.export("base", sink, compression="gzip") == len(sink.content)  # type: ignore[arg-type]
    store.import_(Slow(sink.content), name="again")  # type: ignore[arg-type]
    assert contents(store.data_dir("again")) == contents(data)


def test_a_pipe_is_read_as_it_comes(store: LocalFile, data: Path, tmp_path: Path) -> None:
    make(store, data)
    store.export("base", tmp_path / "a.tar", compression="zstd")
    with subprocess.Popen(["cat", tmp_path / "a.tar"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        store.import_(cat.stdout, name="again")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        threading.Thread(target=store.export, args=("base", fifo)).start()
        store.import_(cat.stdout, name="third")
    assert contents(store.data_dir("again")) == contents(store.data_dir("third")) == contents(data)


def test_errors_of_streams_and_callbacks_come_through(store: LocalFile, data: Path, tmp_root: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError("the tape is torn")

        def write(self, _block: Any, /) -> int:
            raise OSError("the tape is full")

    class Text(io.StringIO):
        pass

    def stop(_done: int, _total: int | None) -> None:
        raise RuntimeError("enough")

    made = make(store, data)
    with pytest.raises(OSError, match="torn"):
        store.import_(Broken())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="full"):
        store.export("base", Broken())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="stream of bytes"):
        store.import_(Text("x"))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="enough"):
        store.export("base", io.BytesIO(), progress=stop)
    with pytest.raises(RuntimeError, match="enough"):
        store.import_(GOLDEN / "golden.tar", progress=stop)
    with pytest.raises(InvalidArgument, match="compression: 'xz'"):
        store.export("base", io.BytesIO(), compression="xz")
    check_store(tmp_root, made.id)


def test_a_failed_export_leaves_the_old_file(store: LocalFile, data: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int | None) -> None:
        raise RuntimeError("enough")

    make(store, data)
    target = tmp_path / "out" / "a.tar"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        store.export("base", target, progress=stop)
    assert contents(target.parent) == {"a.tar": b"old"}
    store.export("base", target)
    assert [path.name for path in target.parent.iterdir()] == ["a.tar"]
    assert names_in(io.BytesIO(target.read_bytes()))[0] == "snapshot.json"


# ------------------------------------------------------------------ archives of enemies


def evil(*entries: Any) -> bytes:
    return archive(("snapshot.json", envelope("evil")), *entries)


DEEP = b'{"config":' * 2000
SIDECAR = b'{"storage_configs":[{"path":"%s","role":"layer","ro":true}]}'
HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute path": (evil(("/etc/cron.d/x", b"x")), "etc"),
    "way out": (evil(("../../x", b"x")), "x"),
    "way out inside": (evil(("a/../../x", b"x")), "x"),
    "folder in the name": (evil(("a/b", b"x")), "a"),
    "folder": (evil(member("sub", tarfile.DIRTYPE)), "sub"),
    "symbolic link": (evil(member("l", tarfile.SYMTYPE, link="/etc/passwd")), "l"),
    "symbolic link, then its name": (evil(member("l", tarfile.SYMTYPE, link="/tmp/x"), ("l", b"x")), "l"),
    "hard link": (evil(("a", b"x"), member("l", tarfile.LNKTYPE, link="a")), "l"),
    "hard link out": (evil(member("l", tarfile.LNKTYPE, link="/etc/passwd")), "l"),
    "character device": (evil(member("d", tarfile.CHRTYPE)), "d"),
    "block device": (evil(member("d", tarfile.BLKTYPE)), "d"),
    "fifo": (evil(member("f", tarfile.FIFOTYPE)), "f"),
    "duplicate": (evil(("a", b"x"), ("a", b"y")), "a"),
    "duplicate by another name": (evil(("a", b"x"), ("./a", b"y")), "a"),
    "two envelopes": (evil(("snapshot.json", envelope("other"))), "snapshot.json"),
    "no envelope": (archive(("a", b"x")), "snapshot.json"),
    "envelope is no JSON": (archive(("snapshot.json", b"{")), "snapshot.json"),
    "envelope is deep": (archive(("snapshot.json", DEEP)), "snapshot.json"),
    "envelope of another version": (archive(("snapshot.json", b'{"config":{"name":""},"version":2}')), "snapshot.json"),
    "envelope with a path as a name": (archive(("snapshot.json", envelope("../x"))), "snapshot.json"),
    "envelope with huge numbers": (archive(("snapshot.json", envelope("x", memory=1 << 63))), "snapshot.json"),
    "envelope is large": (archive(("snapshot.json", b" " * (2 << 20))), "snapshot.json"),
    "too many members": (evil(*((f"f{i}", b"") for i in range(1100))), "f1023"),
    "sidecar names a file outside": (evil(("cocoon.json", SIDECAR % b"/etc/shadow")), "cocoon.json"),
    "sidecar names a way out": (evil(("cocoon.json", SIDECAR % b"../../x")), "cocoon.json"),
    "sidecar names what is not there": (evil(("cocoon.json", SIDECAR % b"cow.raw")), "cocoon.json"),
    "description of the VM is no JSON": (evil(("vm.json", b"nonsense")), "vm.json"),
    "description of the VM is large": (evil(("vm.json", b" " * (2 << 20))), "vm.json"),
    "sidecar is no JSON": (evil(("cocoon.json", b"nonsense")), "cocoon.json"),
    "map beyond the size": (
        evil(member("m", size=3, COCOON_sparse_map='[{"o":98,"l":3}]', COCOON_sparse_size="100")), "m"),
    "map out of order": (
        evil(member("m", size=4, COCOON_sparse_map='[{"o":9,"l":2},{"o":0,"l":2}]', COCOON_sparse_size="100")), "m"),
    "map of more than there is": (
        evil(member("m", size=3, COCOON_sparse_map='[{"o":0,"l":9}]', COCOON_sparse_size="100")), "m"),
    "map without a size": (evil(member("m", size=3, COCOON_sparse_map="[]")), "m"),
    "size beyond all bounds": (evil(member("m", COCOON_sparse_map="[]", COCOON_sparse_size=str(1 << 62))), "m"),
    "negative size": (evil(member("m", COCOON_sparse_map="[]", COCOON_sparse_size="-1")), "m"),
    "cut in the middle": (evil(("a", b"x" * 100_000))[:50_000], ""),
    "cut at the end": (evil(("a", b"x"))[:2560], ""),
    "cut gzip": (archive(("snapshot.json", envelope()), compression="gz")[:-9], ""),
    "gzip with a wrong checksum": (
        archive(("snapshot.json", envelope()), compression="gz")[:-8] + b"12345678", ""),
    "no archive": (b"x" * 10_000, ""),
    "nothing": (b"", ""),
    "one byte": (b"x", ""),
    "gzip of nothing": (b"\x1f\x8b", ""),
    "xz": (b"\xfd7zXZ\x00" + b"\0" * 1000, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    store: LocalFile, tmp_root: Path, tmp_path: Path, what: str
) -> None:
    packed, guilty = HOSTILE[what]
    path = tmp_path / "evil.tar"
    path.write_bytes(packed)
    outside = sorted(tmp_root.rglob("*"))
    for source in (path, io.BytesIO(packed)):
        with pytest.raises(CorruptSnapshot) as caught:
            store.import_(source)
        assert caught.value.member == guilty or guilty in caught.value.member
        assert caught.value.path == (str(path) if source is path else "<stream>")
    assert sorted(tmp_root.rglob("*")) == outside
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar"]
    check_store(tmp_root)
    assert ledger_lines(tmp_root) == []


def test_a_bomb_is_refused_by_its_ratio_and_by_its_size(store: LocalFile, tmp_root: Path) -> None:
    bomb = archive(("snapshot.json", envelope()), ("zeros", bytes(32 << 20)), compression="gz")
    assert len(bomb) < 100_000
    with pytest.raises(CorruptSnapshot, match="more than 100 times"):
        store.import_(io.BytesIO(bomb), max_ratio=100)
    with pytest.raises(CorruptSnapshot, match=r"zeros: .* allowed: 1048576"):
        store.import_(io.BytesIO(bomb), max_bytes="1M")
    with pytest.raises(CorruptSnapshot, match="allowed: 1"):
        store.import_(io.BytesIO(bomb), max_members=1)
    check_store(tmp_root)
    made = store.import_(io.BytesIO(bomb))
    assert allocated(store.data_dir(made.id)) == 0  # zeros are holes


def test_a_bomb_is_refused_by_default(store: LocalFile, tmp_root: Path) -> None:
    """Two gigabytes of zeros in two megabytes, as gzip streams one after the other."""
    head = archive(("snapshot.json", envelope()))[:1024] + member("zeros", size=2 << 30).tobuf()
    packed = gzip.compress(head) + gzip.compress(bytes(1 << 20)) * 2100
    assert len(packed) < 4 << 20
    with pytest.raises(CorruptSnapshot, match="more than 200 times"):
        store.import_(io.BytesIO(packed))
    check_store(tmp_root)


def test_paths_are_trusted_where_the_node_has_files_and_where_one_says(
    store: LocalFile, tmp_root: Path, tmp_path: Path
) -> None:
    def packed(path: Path) -> io.BytesIO:
        return io.BytesIO(archive(("snapshot.json", envelope()), ("cocoon.json", SIDECAR % str(path).encode())))

    store.import_(packed(tmp_root / "images" / "base.raw"))
    for refused in (tmp_root / "db" / "meta.db", tmp_root / "run" / "qemu" / "x" / "cow.raw", tmp_path / "base.raw"):
        with pytest.raises(CorruptSnapshot, match=r"cocoon\.json"):
            store.import_(packed(refused))
    store.import_(packed(tmp_path / "base.raw"), allow_paths=[tmp_path])


def test_an_exported_one_is_no_source_of_data_files(store: LocalFile, data: Path, tmp_root: Path) -> None:
    with pytest.raises(CorruptSnapshot, match="is imported"):
        store.create(GOLDEN / "golden.tar")
    (data / "snapshot.json").write_bytes(envelope())
    with pytest.raises(InvalidArgument, match="is imported"):
        store.create(data)
    check_store(tmp_root)


def test_localfile_of_a_node_and_after_its_end(tmp_root: Path, data: Path, wait_until: Callable[..., None]) -> None:
    node = Node(tmp_root)
    store = LocalFile(node)
    made = store.create(data)
    assert node.snapshots.list() == [made]
    assert {made: 1}[store.inspect(made.id)] == 1
    assert made.id in repr(made)
    node.close()
    with pytest.raises(cocoon.StoreError, match="closed"):
        store.list()
