"""Reading ledgers in Python: iteration, tables, usage, audit, following."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cocoon import AuditReport, Entry, FileRecorder, InvalidArgument, Ledger, LedgerError, Shape, Table

DATA = Path(__file__).parents[1] / "data" / "go-engine"
BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHAPE = Shape(cpu=2, mem_bytes=1 << 30, storage_bytes=2 << 30)


def entry(kind: str, minute: float, *, vm_id: str = "v1", seq: int | None = None, **more: Any) -> Entry:
    return Entry(kind, vm_id=vm_id, hypervisor="qemu", shape=SHAPE, emitted_at=BEGIN + timedelta(minutes=minute),
                 seq=seq, **more)  # fmt: skip


def write(path: Path, *entries: Entry) -> Path:
    path.write_text("".join(one.to_json() + "\n" for one in entries))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """v1 for an hour, crashed and seen dead after 40 of its first 50 minutes; v2, of tenant blue, open since 30."""
    dead = BEGIN + timedelta(minutes=40)
    return write(
        tmp_path / "ledger.jsonl",
        entry("vm.storage.start", 0, reason="boot", seq=1, interval=1),
        entry("vm.compute.start", 0, reason="boot", seq=2, interval=2),
        entry("vm.storage.start", 30, vm_id="v2", reason="boot", seq=3, interval=3, labels={"tenant": "blue"}),
        entry("vm.compute.start", 30, vm_id="v2", reason="boot", seq=4, interval=4, labels={"tenant": "blue"}),
        entry("vm.compute.stop", 50, reason="stop-crash", seq=5, interval=2, ended_at=dead, evidence="shim"),
        entry("vm.compute.start", 50, reason="restart", seq=6, interval=6),
        entry("vm.compute.stop", 60, reason="stop-user", seq=7, interval=6),
        entry("vm.storage.stop", 60, reason="vm-rm", seq=8, interval=1),
    )


def test_iterates_over_entries_again_and_again(path: Path) -> None:
    ledger = Ledger(path)
    assert [one.seq for one in ledger] == list(range(1, 9))
    assert [one.seq for one in ledger] == list(range(1, 9))
    iterator = iter(ledger)
    assert iter(iterator) is iterator
    assert isinstance(next(iterator), Entry)


def test_files_folders_and_globs(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.jsonl", entry("vm.storage.start", 0, vm_id="x"))
    assert len(list(Ledger(tmp_path))) == 9
    assert len(list(Ledger(str(tmp_path / "*.jsonl")))) == 9
    assert len(list(Ledger(path, tmp_path))) == 9
    assert len(list(Ledger(os.fsencode(path).decode()))) == 8
    for nothing in (tmp_path / "none.jsonl", tmp_path / "none*"):
        with pytest.raises(LedgerError) as caught:
            list(Ledger(nothing))
        assert caught.value.path == str(nothing)
        assert isinstance(caught.value, OSError)
    with pytest.raises(InvalidArgument):
        Ledger()
    with pytest.raises(InvalidArgument):
        Ledger(None)  # type: ignore[arg-type]


def test_garbage_raises_where_it_stands_and_reading_goes_on(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[3:], b'{"kind"']))
    iterator = iter(Ledger(path))
    assert [next(iterator).seq for _ in range(3)] == [1, 2, 3]
    offset = sum(len(line) for line in lines[:3])
    with pytest.raises(LedgerError, match=rf"line 4, byte {offset}: .*garbage") as caught:
        next(iterator)
    assert caught.value.path == str(path)
    assert [next(iterator).seq for _ in range(5)] == [4, 5, 6, 7, 8]
    with pytest.raises(LedgerError, match="torn"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_tables_pass_garbage_over_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("a") as file:
        file.write("garbage\n")
    assert len(Ledger(path).entries()) == 8
    assert [record.name for record in caplog.records] == ["cocoon.ledger"]
    assert "line 9" in caplog.text


# ---------------------------------------------------------------- tables


def test_entries_are_a_table(path: Path) -> None:
    table = Ledger(path).entries()
    assert isinstance(table, Table)
    assert len(table) == 8
    rows = table.to_pylist()
    assert list(rows[0]) == table.column_names
    for row, one in zip(rows, Ledger(path), strict=True):
        assert row["kind"] == one.kind
        assert row["vm_id"] == one.vm_id
        assert row["snapshot_id"] is None
        assert row["emitted_at"] == one.emitted_at
        assert row["emitted_at_ns"] == one.emitted_at_ns
        assert row["labels"] == (dict(one.labels) or None)
        assert row["ended_at"] == one.ended_at
        assert (row["seq"], row["interval"]) == (one.seq, one.interval)
        assert (row["cpu"], row["mem_bytes"]) == (SHAPE.cpu, SHAPE.mem_bytes)


def test_intervals(path: Path) -> None:
    table = Ledger(path).intervals(until=BEGIN + timedelta(minutes=90))
    assert table.column_names == [
        "id", "kind", "hypervisor", "cpu", "mem_bytes", "storage_bytes", "start", "stop", "start_reason",
        "stop_reason", "source_snapshot_id", "length_ns", "open", "length_from", "start_seq", "stop_seq", "ended_at",
        "alive_until", "evidence", "labels",
    ]  # fmt: skip
    rows = table.to_pylist()
    minutes = [
        (row["id"], row["kind"], row["length_ns"] / 60e9, row["open"], row["start_reason"], row["stop_reason"])
        for row in rows
    ]
    assert minutes == [
        ("v1", "vm.storage", 60, False, "boot", "vm-rm"),
        ("v1", "vm.compute", 40, False, "boot", "stop-crash"),
        ("v2", "vm.storage", 60, True, "boot", None),
        ("v2", "vm.compute", 60, True, "boot", None),
        ("v1", "vm.compute", 10, False, "restart", "stop-user"),
    ]
    assert rows[0]["start"] == BEGIN
    assert rows[0]["start"].tzinfo is UTC
    assert rows[2]["stop"] is None
    assert {row["length_from"] for row in rows} == {"wall"}


def test_open_intervals_count_up_to_now(path: Path) -> None:
    before = time.time_ns()
    rows = Ledger(path).intervals().to_pylist()
    start_ns = round(rows[3]["start"].timestamp()) * 10**9
    assert before - start_ns <= rows[3]["length_ns"] <= time.time_ns() - start_ns


def test_uptime_beats_the_wall_clock(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ledger.jsonl",
        entry("vm.compute.start", 0, boot_id="0a1b2c3d", uptime_ns=10**9),
        entry("vm.compute.stop", -60, boot_id="0a1b2c3d", uptime_ns=6 * 10**9),
    )
    (row,) = Ledger(path).intervals().to_pylist()
    assert (row["length_ns"], row["length_from"]) == (5 * 10**9, "uptime")


def usage(path: Path, **options: Any) -> list[dict[str, Any]]:
    options.setdefault("until", BEGIN + timedelta(minutes=90))
    return Ledger(path).usage(**options).to_pylist()


def test_usage_by_vm(path: Path) -> None:
    first, second = usage(path)
    assert list(first) == ["vm_id", "vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds", "intervals", "open"]
    assert first["vm_id"] == "v1"
    assert first["vcpu_seconds"] == 2 * 50 * 60
    assert first["mem_byte_seconds"] == (1 << 30) * 50 * 60
    assert first["storage_byte_seconds"] == (2 << 30) * 60 * 60
    assert (first["intervals"], first["open"]) == (3, 0)
    assert (second["vm_id"], second["vcpu_seconds"], second["open"]) == ("v2", 2 * 60 * 60, 2)


def test_usage_by_label_sums_to_usage_without(path: Path) -> None:
    (whole,) = usage(path, by=())
    parts = usage(path, by=["label:tenant"])
    assert [row["label:tenant"] for row in parts] == [None, "blue"]
    for name in ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds", "intervals", "open"):
        assert sum(row[name] for row in parts) == whole[name]


def test_usage_counts_crashes_as_asked(path: Path) -> None:
    assert usage(path, crash="emitted")[0]["vcpu_seconds"] == 2 * 60 * 60
    assert usage(path, crash="alive_until")[0]["vcpu_seconds"] == 2 * 50 * 60
    with pytest.raises(InvalidArgument, match="never"):
        usage(path, crash="never")


def test_usage_in_a_window_and_in_buckets(path: Path) -> None:
    rows = usage(path, since=BEGIN + timedelta(minutes=35), until=BEGIN + timedelta(minutes=45), by=())
    assert rows[0]["vcpu_seconds"] == 2 * 60 * (5 + 10)
    for every in (1800, 1800.0, timedelta(minutes=30)):
        rows = usage(path, every=every, by=())
        assert [row["bucket"] for row in rows] == [BEGIN + timedelta(minutes=30) * i for i in range(3)]
        assert [row["vcpu_seconds"] / 120 for row in rows] == [30, 10 + 10 + 30, 30]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"by": "vm_id"}, "sequence"),
        ({"by": ["colour"]}, "colour"),
        ({"by": [1]}, "by"),
        ({"by": None}, "by"),
        ({"every": 0}, "every"),
        ({"every": -1.0}, "every"),
        ({"every": float("nan")}, "every"),
        ({"every": "1h"}, "every"),
        ({"every": True}, "every"),
        ({"since": 5}, "since"),
        ({"until": datetime(2026, 1, 1)}, "timezone-aware"),  # noqa: DTZ001 - that is the mistake
        ({"since": BEGIN, "until": BEGIN - timedelta(1)}, "since"),
    ],
)
def test_mistakes_of_usage_are_named(path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Ledger(path).usage(**options)


def test_pandas_takes_a_table(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = Ledger(path).intervals(until=BEGIN + timedelta(minutes=90)).to_pandas()
    assert list(frame["id"]) == ["v1", "v1", "v2", "v2", "v1"]
    assert str(frame["start"].dtype) == "datetime64[ns, UTC]"
    assert frame["stop"].isna().tolist() == [False, False, True, True, False]
    assert frame["length_ns"].sum() == (60 + 40 + 60 + 60 + 10) * 60 * 10**9
    entries = Ledger(path).entries().to_pandas()
    assert entries["seq"].tolist() == list(range(1, 9))
    assert entries["uptime_ns"].isna().all()
    assert len(pandas.concat([entries, entries])) == 16
    empty = Ledger(write(path.with_name("empty.jsonl"))).entries().to_pandas()
    assert len(empty) == 0


def test_polars_takes_a_table(path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = Ledger(path).entries().to_polars()
    assert frame["seq"].to_list() == list(range(1, 9))
    assert frame.schema["emitted_at"] == polars.Datetime("ns", "UTC")
    assert frame["emitted_at"][0] == BEGIN
    assert frame["labels"][2].to_list() == [{"key": "tenant", "value": "blue"}]
    assert frame["labels"][0] is None
    assert Ledger(path).usage(by=()).to_polars().height == 1


def test_a_data_frame_is_exact_to_the_nanosecond(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    at = 1_795_424_435_819_597_778
    path = write(tmp_path / "ledger.jsonl", Entry("vm.storage.start", vm_id="v", emitted_at=at))
    assert Ledger(path).entries().to_pandas()["emitted_at"][0].value == at


def test_html_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    path = write(tmp_path / "a<b>.jsonl", entry("vm.compute.start", 0, vm_id=evil, labels={"<k>": "<v>"}))
    with path.open("a") as file:
        file.write("<garbage>\n")
    ledger = Ledger(path)
    for shown in (ledger, ledger.entries(), ledger.intervals(), ledger.usage(), ledger.audit()):
        html = shown._repr_html_()
        for bad in ("<script", "<k>", "<v>", "<garbage>", "a<b>"):
            assert bad not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;" in ledger.intervals()._repr_html_()


# ---------------------------------------------------------------- audit


def test_a_good_ledger_has_no_findings(path: Path) -> None:
    report = Ledger(path).audit()
    assert isinstance(report, AuditReport)
    assert (report.ok, report.entries, report.findings) == (True, 8, [])
    go = Ledger(DATA).audit()
    assert (go.ok, go.entries) == (True, 1994)
    assert "nothing found" in go._repr_html_()


def test_findings_say_what_and_where(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    again = entry("vm.compute.start", 70, reason="restart", seq=9, interval=9).to_json().encode() + b"\n"
    path.write_bytes(b"".join([*lines, again, b"{torn"]))
    report = Ledger(path).audit()
    assert not report.ok
    assert report.entries == 9
    removed, torn = report.findings
    assert (removed.code, removed.line, removed.seq, removed.vm_id) == ("after-removal", 9, 9, "v1")
    assert removed.offset == sum(len(line) for line in lines)
    assert removed.snapshot_id == ""
    assert removed.file == path
    assert "v1" in removed.message
    assert (torn.code, torn.line, torn.seq) == ("torn-line", 10, None)
    assert "after-removal" in report._repr_html_()


# ---------------------------------------------------------------- following


def test_follow_delivers_what_comes(path: Path) -> None:
    iterator = Ledger(path).follow(poll=0.01)
    recorder = FileRecorder(path)
    recorder.emit(entry("vm.storage.start", 80, vm_id="v3", seq=9))
    assert next(iterator).seq == 9

    writer = threading.Thread(target=lambda: recorder.emit(entry("vm.storage.start", 81, vm_id="v4", seq=10)))
    writer.start()
    assert next(iterator).seq == 10
    writer.join()


def test_follow_can_begin_at_the_start(path: Path) -> None:
    iterator = Ledger(path).follow(poll=timedelta(milliseconds=10), from_start=True)
    assert [next(iterator).seq for _ in range(8)] == list(range(1, 9))


def test_follow_raises_at_garbage_and_goes_on(path: Path) -> None:
    iterator = Ledger(path).follow(poll=0.01)
    with path.open("a") as file:
        file.write("garbage\n" + entry("vm.storage.start", 80, vm_id="v3", seq=9).to_json() + "\n")
    with pytest.raises(LedgerError, match="garbage"):
        next(iterator)
    assert next(iterator).seq == 9
    for wrong in (0, -1, "1", None):
        with pytest.raises(InvalidArgument, match="poll"):
            Ledger(path).follow(poll=wrong)  # type: ignore[arg-type]


def test_an_iterator_is_for_one_thread_at_a_time(path: Path) -> None:
    iterator = Ledger(path).follow(poll=0.01)
    got: list[str] = []

    def advance() -> None:
        try:
            got.append(f"seq {next(iterator).seq}")
        except ValueError:
            got.append("refused")

    threads = [threading.Thread(target=advance) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while not got and time.monotonic() < deadline:
        time.sleep(0.001)
    assert got == ["refused"], "whoever came second"
    FileRecorder(path).emit(entry("vm.storage.start", 80, vm_id="v3", seq=9))
    for thread in threads:
        thread.join()
    assert got == ["refused", "seq 9"]


def test_ctrl_c_ends_following_at_once(path: Path) -> None:
    code = (
        "import sys, time\n"
        "from cocoon import Ledger\n"
        "iterator = Ledger(sys.argv[1]).follow(poll=3600)\n"
        "try:\n"
        "    print('waiting', flush=True)\n"
        "    next(iterator)\n"
        "except KeyboardInterrupt:\n"
        "    print(time.time_ns(), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        sent = time.time_ns()
        process.send_signal(signal.SIGINT)
        answer = process.stdout.readline()
        assert process.wait(30) == 0
    assert (int(answer) - sent) / 1e9 < 5, "not an hour"


def test_reading_releases_the_gil(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = entry("vm.compute.start", 0).to_json() + "\n"
    path.write_text(line * 50_000)
    done = threading.Event()

    def read() -> None:
        Ledger(path).audit()
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    turns = 0
    while not done.is_set():
        turns += 1
        done.wait(0.001)
    reader.join()
    assert turns > 5, "Python went on while the core was reading"
