"""The ledger cannot be written, is cut, deleted or torn: operations go on, entries arrive later, exactly once."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon import CaptureRecorder, Entry, LedgerError, Node, Recorder, StoreError, VMConfig
from harness import check_books, check_node, engine_process, finish, ledger_lines


def make_vms(node: Node, *names: str) -> None:
    for name in names:
        node.backend("qemu").create(VMConfig(name, storage=0))


def test_a_folder_in_place_of_the_ledger(tmp_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_root / "metering" / "ledger.jsonl"
    path.mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "cocoon"), Node(tmp_root) as node:
        make_vms(node, "a", "b", "c")
        assert node.pending == 3
        warnings = [record for record in caplog.records if record.name.startswith("cocoon")]
        assert len(warnings) == 1, "one warning, not one for each entry"
        assert str(path) in warnings[0].getMessage()
        with pytest.raises(LedgerError) as caught:
            node.flush()
        assert caught.value.path == str(path)
        path.rmdir()
        make_vms(node, "d")
        assert node.pending == 0
        assert [vm.name for vm in node.vms()] == ["a", "b", "c", "d"]
    check_books(ledger_lines(tmp_root))
    assert len(ledger_lines(tmp_root)) == 4
    check_node(tmp_root)


def test_a_folder_of_the_ledger_that_may_not_be_written(tmp_root: Path) -> None:
    if os.geteuid() == 0:
        folder = tmp_root / "metering"
        make_immutable = shutil.which("chattr")
        folder.mkdir()
        if (
            make_immutable is None
            or subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode
        ):
            pytest.skip("root writes everywhere, and chattr +i does not work on this file system")
        restore = ["chattr", "-i", str(folder)]
    else:
        folder = tmp_root / "metering"
        folder.mkdir(mode=0o500)
        restore = ["chmod", "700", str(folder)]
    try:
        with Node(tmp_root) as node:
            make_vms(node, "a", "b")
            assert node.pending == 2
            subprocess.run(restore, check=True)
            node.flush()
            assert node.pending == 0
    finally:
        subprocess.run(restore, check=True)
    check_books(ledger_lines(tmp_root))
    check_node(tmp_root)


@pytest.fixture
def tiny_disk(tmp_root: Path) -> Iterator[Path]:
    """64 KiB of tmpfs where the ledger is to go."""
    folder = tmp_root / "metering"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(tmp_root: Path, tiny_disk: Path) -> None:
    (tiny_disk / "ballast").write_bytes(bytes(56 * 1024))
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        make_vms(node, "web")
        for i in range(100):
            (backend.mark_stopped if i % 2 else backend.mark_started)("web")
        assert node.pending > 0, "the disk is full"
        torn = (tiny_disk / "ledger.jsonl").read_bytes()
        assert torn.endswith(b"\n") or not torn
        (tiny_disk / "ballast").unlink()
        backend.delete("web", force=True)
        assert node.pending == 0
        lines = ledger_lines(tmp_root)
        assert len(lines) == 102
        assert check_books(lines) == {}
    check_node(tmp_root)


def test_torn_last_line_is_cut_and_written_again(tmp_root: Path) -> None:
    path = tmp_root / "metering" / "ledger.jsonl"
    code = (
        "node = Node(sys.argv[1]); "
        "[node.backend('qemu').create(VMConfig(f'v{i}', storage=0)) for i in range(5)]; "
        "os.kill(os.getpid(), 9)"
    )
    process = engine_process(code, tmp_root)
    process.communicate(timeout=60)
    whole = path.read_bytes()
    assert whole.count(b"\n") == 5
    for cut in (1, 2, 37, 100, len(whole.splitlines()[-1]), len(whole.splitlines()[-1]) + 1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with Node(tmp_root):
            pass
        assert path.read_bytes() == whole
        # Closing pruned what is on the disk; from here on a cut is somebody's vandalism, and the last test below.
        break
    check_node(tmp_root)


@pytest.mark.parametrize("tail", [b'{"kind":"vm.storage.st', b"\0" * 4096, b"garbage without an end"])
def test_rubbish_behind_the_last_line_is_cut(tmp_root: Path, tail: bytes) -> None:
    path = tmp_root / "metering" / "ledger.jsonl"
    with Node(tmp_root) as node:
        make_vms(node, "a")
        with path.open("ab") as file:
            file.write(tail)
        make_vms(node, "b")
        assert len(path.read_bytes().splitlines()) == 2
        check_books(ledger_lines(tmp_root))
    check_node(tmp_root)


def test_a_deleted_ledger_is_begun_again_without_inventing(tmp_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_root / "metering" / "ledger.jsonl"
    with Node(tmp_root) as node:
        make_vms(node, "a", "b")
    path.unlink()
    with caplog.at_level(logging.WARNING, "cocoon"), Node(tmp_root) as node:
        make_vms(node, "c")
        assert [line["seq"] for line in ledger_lines(tmp_root)] == [3]
        assert any("entries up to 2 were in it" in record.getMessage() for record in caplog.records)
        findings = node.ledger.audit().findings
        assert [finding.code for finding in findings] == ["seq-gap"]


def test_a_python_recorder_gets_every_entry_in_order(tmp_root: Path) -> None:
    class Mine(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Entry] = []

        def emit(self, entry: Entry) -> None:
            self.seen.append(entry)

    mine = Mine()
    with Node(tmp_root, recorder=mine) as node:
        backend = node.backend("qemu")
        make_vms(node, "web")
        backend.mark_started("web")
        backend.delete("web", force=True)
        assert node.pending == 0
        assert node.recorder is mine
    assert [entry.seq for entry in mine.seen] == [1, 2, 3, 4]
    assert [str(entry.kind) for entry in mine.seen] == [
        "vm.storage.start",
        "vm.compute.start",
        "vm.compute.stop",
        "vm.storage.stop",
    ]
    assert not (tmp_root / "metering").exists()


def test_a_recorder_that_raises_is_asked_again(tmp_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.broken = True
            self.seen: list[int | None] = []

        def emit(self, entry: Entry) -> None:
            if self.broken:
                raise RuntimeError("not in the mood")
            self.seen.append(entry.seq)

    moody = Moody()
    with caplog.at_level(logging.WARNING, "cocoon"), Node(tmp_root, recorder=moody) as node:
        make_vms(node, "a", "b")
        assert node.pending == 2
        assert any("not in the mood" in record.getMessage() for record in caplog.records)
        assert {record.name for record in caplog.records} == {"cocoon.metering"}
        moody.broken = False
        make_vms(node, "c")
        assert moody.seen == [1, 2, 3]
        assert node.pending == 0


def test_a_recorder_may_use_the_node_it_records(tmp_root: Path) -> None:
    class Nosy(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.node: Node | None = None
            self.seen: list[str] = []

        def emit(self, entry: Entry) -> None:
            assert self.node is not None
            self.seen.append(str(entry.kind))
            if entry.kind == "vm.storage.start" and len(self.node.vms()) == 1:
                self.node.backend("qemu").create(VMConfig("from-inside", storage=0))

    nosy = Nosy()
    with Node(tmp_root, recorder=nosy) as node:
        nosy.node = node
        make_vms(node, "a")
        assert nosy.seen == ["vm.storage.start", "vm.storage.start"]
        nosy.node = None


def test_capture_and_no_recorder(tmp_root: Path) -> None:
    capture = CaptureRecorder()
    with Node(tmp_root / "a", recorder=capture) as node:
        make_vms(node, "a", "b")
        assert [entry.seq for entry in capture.entries()] == [1, 2]
        with pytest.raises(LedgerError):
            _ = node.ledger
    with Node(tmp_root / "b", recorder=None) as node:
        make_vms(node, "a")
        assert node.pending == 0
    assert not (tmp_root / "b" / "metering").exists()


def test_entries_of_a_killed_engine_are_drained_by_the_next(tmp_root: Path) -> None:
    path = tmp_root / "metering" / "ledger.jsonl"
    path.mkdir(parents=True)
    code = (
        "node = Node(sys.argv[1]); node.backend('qemu').create(VMConfig('a', storage=0)); "
        "print(node.pending, flush=True); os.kill(os.getpid(), 9)"
    )
    process = engine_process(code, tmp_root)
    out, _ = process.communicate(timeout=60)
    assert out == "1\n"
    path.rmdir()
    assert ledger_lines(tmp_root) == []
    finish(engine_process("Node(sys.argv[1])", tmp_root))
    assert len(ledger_lines(tmp_root)) == 1
    check_node(tmp_root)


def test_roots_that_cannot_be_used(tmp_root: Path) -> None:
    file = tmp_root / "file"
    file.write_text("")
    with pytest.raises(StoreError) as caught:
        Node(file)
    assert str(file) in str(caught.value)
    foreign = tmp_root / "foreign"
    (foreign / "db").mkdir(parents=True)
    (foreign / "db" / "meta.db").write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(StoreError, match=r"meta\.db"):
        Node(foreign)
