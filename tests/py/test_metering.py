"""Entries and recorders in Python."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from cocoon import (
    CaptureRecorder,
    CocoonError,
    Entry,
    FileRecorder,
    InvalidArgument,
    Kind,
    LedgerError,
    NopRecorder,
    Reason,
    Recorder,
    Shape,
)

DATA = Path(__file__).parents[1] / "data" / "go-engine"
AT = datetime(2026, 11, 23, 9, 0, 35, 819597, tzinfo=UTC)
AT_NS = 1_795_424_435_819_597_000
BIGGEST = 2**63 - 1


def an_entry(seq: int | None = None) -> Entry:
    return Entry(Kind.VM_COMPUTE_START, vm_id="v1", reason=Reason.BOOT, hypervisor="qemu",
                 shape=Shape(cpu=2, mem_bytes=1 << 29), emitted_at=AT, seq=seq)  # fmt: skip


# ---------------------------------------------------------------- values


def test_kinds_and_reasons_are_strings() -> None:
    entry = an_entry()
    assert entry.kind is Kind.VM_COMPUTE_START
    assert str(entry.kind) == "vm.compute.start"
    assert entry.reason is Reason.BOOT
    for kind in Kind:
        owner = {"snapshot_id": "s"} if kind.startswith("snap.") else {"vm_id": "v"}
        for reason in (*Reason, None):
            made = Entry(kind, reason=reason, **owner)  # type: ignore[arg-type]
            assert (made.kind, made.reason) == (kind, reason)
            assert made == Entry(str(kind), reason=reason and str(reason), emitted_at=made.emitted_at_ns, **owner)  # type: ignore[arg-type]


def test_an_entry_is_its_line() -> None:
    line = (
        '{"kind":"vm.compute.start","vm_id":"v1","reason":"boot","hypervisor":"qemu",'
        '"shape":{"cpu":2,"mem_bytes":536870912},"emitted_at":"2026-11-23T09:00:35.819597Z","seq":7}'
    )
    entry = an_entry(7)
    assert entry.to_json() == line
    assert Entry.from_json(line) == entry
    assert Entry.from_json(line.encode()) == entry
    assert Entry.from_json(" " + line + "\n") == entry


def test_every_field_is_there() -> None:
    entry = Entry(
        "vm.compute.stop", vm_id="v", source_snapshot_id="s", reason="stop-crash", hypervisor="qemu",
        shape=Shape(cpu=1), emitted_at=AT_NS + 123, seq=9, interval=8, labels={"b": "2", "a": "é"},
        ended_at=AT, ended_uptime_ns=5, evidence="shim", alive_until=AT - timedelta(seconds=1),
        boot_id="0a1b2c3d", uptime_ns=6,
    )  # fmt: skip
    assert entry.emitted_at == AT
    assert entry.emitted_at.tzinfo is UTC
    assert entry.emitted_at_ns == AT_NS + 123
    assert (entry.seq, entry.interval) == (9, 8)
    assert dict(entry.labels) == {"a": "é", "b": "2"}
    assert (entry.ended_at, entry.ended_uptime_ns, entry.evidence) == (AT, 5, "shim")
    assert entry.alive_until == AT - timedelta(seconds=1)
    assert (entry.boot_id, entry.uptime_ns) == ("0a1b2c3d", 6)
    assert (entry.source_snapshot_id, entry.snapshot_id) == ("s", "")
    assert Entry.from_json(entry.to_json()) == entry
    bare = Entry("vm.storage.start", vm_id="v")
    assert (bare.seq, bare.interval, bare.reason, bare.ended_at, bare.alive_until, bare.uptime_ns) == (None,) * 6
    assert bare.shape == Shape()
    assert dict(bare.labels) == {}


def test_values_are_immutable_and_hashable() -> None:
    entry = an_entry(1)
    for name in ("vm_id", "seq", "shape", "emitted_at", "anything"):
        with pytest.raises(AttributeError):
            setattr(entry, name, "x")
    with pytest.raises(AttributeError):
        entry.shape.cpu = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        entry.labels["a"] = "b"  # type: ignore[index]
    assert len({entry, an_entry(1), an_entry(2)}) == 2
    assert entry != an_entry(2)
    assert entry != "entry"
    assert len({Shape(cpu=1), Shape(cpu=1), Shape(mem_bytes=1)}) == 2
    value: Any
    for value in (entry, entry.shape):
        assert copy.copy(value) == value
        assert copy.deepcopy(value) == value
        assert pickle.loads(pickle.dumps(value)) == value
        assert eval(repr(value), {"Entry": Entry, "Shape": Shape}) == value


def test_now_is_the_default_time() -> None:
    before = time.time_ns()
    entry = Entry("vm.storage.start", vm_id="v")
    assert before <= entry.emitted_at_ns <= time.time_ns()


def test_times_of_any_zone_are_exact() -> None:
    there = AT.astimezone(timezone(timedelta(hours=8)))
    assert Entry("vm.storage.start", vm_id="v", emitted_at=there).emitted_at_ns == AT_NS
    old = Entry("vm.storage.start", vm_id="v", emitted_at=-1)
    assert old.to_json().count("1969-12-31T23:59:59.999999999Z") == 1
    assert old.emitted_at == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    for ns in (-(2**63), BIGGEST):
        extreme = Entry("vm.storage.start", vm_id="v", emitted_at=ns)
        assert extreme.emitted_at_ns == ns
        assert extreme.emitted_at.year in {1677, 2262}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "vm.compute.begin"}, "kind"),
        ({"kind": 3}, "kind"),
        ({"vm_id": ""}, "vm_id"),
        ({"vm_id": None}, "vm_id"),
        ({"vm_id": "\ud800"}, "vm_id"),
        ({"snapshot_id": "s"}, "snapshot_id"),
        ({"kind": "snap.storage.start"}, "snapshot_id"),
        ({"reason": "because"}, "because"),
        ({"reason": ""}, "reason"),
        ({"seq": 0}, "seq"),
        ({"seq": -1}, "seq"),
        ({"seq": BIGGEST + 1}, "seq"),
        ({"seq": True}, "seq"),
        ({"seq": 1.0}, "seq"),
        ({"seq": "1"}, "seq"),
        ({"interval": 0}, "interval"),
        ({"emitted_at": "now"}, "emitted_at"),
        ({"emitted_at": 1.5}, "emitted_at"),
        ({"emitted_at": datetime(2026, 1, 1)}, "timezone-aware"),  # noqa: DTZ001 - that is the mistake
        ({"emitted_at": datetime(9999, 1, 1, tzinfo=UTC)}, "2262"),
        ({"emitted_at": 2**63}, "emitted_at"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": ["a"]}, "labels"),
        ({"uptime_ns": -1}, "uptime_ns"),
        ({"ended_at": 5}, "ended_at"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], says: str) -> None:
    given = {"kind": "vm.compute.start", "vm_id": "v", **arguments}
    with pytest.raises(InvalidArgument, match=says) as caught:
        Entry(given.pop("kind"), **given)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CocoonError)


@pytest.mark.parametrize("field", ["cpu", "mem_bytes", "storage_bytes"])
@pytest.mark.parametrize("value", [-1, BIGGEST + 1, 10**30, 1.5, "1", None, True])
def test_a_shape_takes_only_numbers_that_fit(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=field):
        Shape(**{field: value})
    assert getattr(Shape(**{field: BIGGEST}), field) == BIGGEST


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "not JSON"),
        ("garbage", "garbage"),
        ("[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        ("\ud800", "surrogates"),
        (5, "str or bytes"),
        (None, "str or bytes"),
        ('{"kind":"vm.gpu.start","vm_id":"v","shape":{},"emitted_at":"2026-01-01T00:00:00Z"}', "vm.gpu.start"),
        ('{"kind":"vm.compute.start","vm_id":"v","shape":{"cpu":-1},"emitted_at":"2026-01-01T00:00:00Z"}', "shape.cpu"),
        ('{"kind":"vm.compute.start","vm_id":"v","shape":{},"emitted_at":"yesterday"}', "emitted_at"),
    ],
)
def test_a_line_that_is_none_is_refused(line: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Entry.from_json(line)


def test_the_go_engines_lines_are_read_as_they_are() -> None:
    for path in DATA.glob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            entry, raw = Entry.from_json(line), json.loads(line)
            assert entry.kind == raw["kind"]
            assert (entry.vm_id or entry.snapshot_id) == (raw.get("vm_id") or raw.get("snapshot_id"))
            assert entry.shape == Shape(**raw["shape"])
            # Python 3.11 cuts what is below a microsecond, as the datetime does.
            assert entry.emitted_at == datetime.fromisoformat(raw["emitted_at"])
            ours = json.loads(entry.to_json())
            assert {**ours, "emitted_at": raw["emitted_at"]} == raw
            assert list(ours) == list(raw)


# ---------------------------------------------------------------- recorders


def test_a_file_recorder_writes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    recorder = FileRecorder(path)
    assert recorder.path == path
    assert not path.exists()
    recorder.emit(an_entry())
    assert path.read_text() == an_entry().to_json() + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    recorder.emit(an_entry(2))
    recorder.flush()
    recorder.close()
    assert [Entry.from_json(line).seq for line in path.read_text().splitlines()] == [None, 2]
    FileRecorder(str(path)).emit(an_entry(3))
    assert path.read_text().count("\n") == 3


def test_a_file_that_cannot_be_written_keeps_its_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.jsonl"
    path.mkdir()
    recorder = FileRecorder(path)
    with caplog.at_level(logging.WARNING, "cocoon"):
        recorder.emit(an_entry(1))
        recorder.emit(an_entry(2))
    assert [record.name for record in caplog.records] == ["cocoon.metering"], "one warning"
    assert str(path) in caplog.text
    with pytest.raises(LedgerError) as caught:
        recorder.flush()
    assert caught.value.path == str(path)
    with pytest.raises(LedgerError):
        recorder.close()
    path.rmdir()
    recorder.emit(an_entry(3))
    assert [Entry.from_json(line).seq for line in path.read_text().splitlines()] == [1, 2, 3]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_emits_of_many_threads_are_whole_lines(tmp_path: Path) -> None:
    recorder, capture = FileRecorder(tmp_path / "ledger.jsonl"), CaptureRecorder()

    def work(i: int) -> None:
        for j in range(25):
            recorder.emit(an_entry(1 + i * 25 + j))
            capture.emit(an_entry(1 + i * 25 + j))

    in_threads(8, work)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert sorted(Entry.from_json(line).seq or 0 for line in lines) == list(range(1, 201))
    assert sorted(entry.seq or 0 for entry in capture.entries()) == list(range(1, 201))


def test_a_capture_recorder_gives_copies() -> None:
    recorder = CaptureRecorder()
    recorder.emit(an_entry(1))
    entries = recorder.entries()
    entries.clear()
    assert recorder.entries() == [an_entry(1)]
    recorder.reset()
    assert recorder.entries() == []


def test_a_nop_recorder_drops() -> None:
    NopRecorder().emit(an_entry())


def test_all_are_recorders() -> None:
    for kind in (FileRecorder, CaptureRecorder, NopRecorder):
        assert issubclass(kind, Recorder)


def test_emit_is_to_be_overridden() -> None:
    with pytest.raises(NotImplementedError):
        Recorder().emit(an_entry())

    class Forgetful(Recorder):
        pass

    with pytest.raises(NotImplementedError):
        Forgetful().emit(an_entry())


@pytest.mark.parametrize("wrong", [None, "entry", {}, 5])
def test_only_entries_are_emitted(tmp_path: Path, wrong: Any) -> None:
    for recorder in (FileRecorder(tmp_path / "ledger.jsonl"), CaptureRecorder(), NopRecorder()):
        with pytest.raises(TypeError):
            recorder.emit(wrong)
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize("wrong", [None, "", 5, "a\0b"])
def test_a_path_is_needed(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="path"):
        FileRecorder(wrong)


def test_a_recorder_that_only_the_node_holds_stays_alive(tmp_root: Path) -> None:
    from cocoon import Node, VMConfig

    seen: list[Entry] = []

    class Mine(Recorder):
        def emit(self, entry: Entry) -> None:
            seen.append(entry)

    with Node(tmp_root, recorder=Mine()) as node:
        gc.collect()
        node.backend("qemu").create(VMConfig("a", storage=0))
        assert isinstance(node.recorder, Mine)
    assert [entry.seq for entry in seen] == [1]
    assert isinstance(seen[0], Entry)
