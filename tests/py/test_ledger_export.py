"""Exports: what is in them, that a range is always the same bytes, and that nothing half done is left behind."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ledger_reference as reference
from cocoon import Entry, InvalidArgument, Ledger, LedgerError, Node, Shape, VMConfig
from cocoon.testing.ledgers import generate

GO = Path(__file__).parents[1] / "data" / "go-engine"
BEGIN = datetime(2026, 3, 31, 22, tzinfo=UTC)
FORMATS = ("csv", "parquet", "jsonl", "focus", "cloudevents")
DAY = 86_400 * 10**9

# FOCUS 1.2: feature level "Mandatory", and whether nulls are allowed.
FOCUS_MANDATORY = {
    "BilledCost": False, "BillingAccountId": False, "BillingAccountName": True, "BillingCurrency": False,
    "BillingPeriodEnd": False, "BillingPeriodStart": False, "ChargeCategory": False, "ChargeClass": True,
    "ChargeDescription": True, "ChargePeriodEnd": False, "ChargePeriodStart": False, "ContractedCost": False,
    "EffectiveCost": False, "InvoiceIssuerName": False, "ListCost": False, "PricingQuantity": True,
    "PricingUnit": True, "ProviderName": False, "PublisherName": False, "ServiceCategory": False,
    "ServiceName": False,
}  # fmt: skip
# Conditional or recommended ones that a provider of usage has: and what is never null in a usage row.
FOCUS_USAGE = {
    "ChargeFrequency": False, "ConsumedQuantity": False, "ConsumedUnit": False, "ResourceId": False,
    "ResourceType": False, "ServiceSubcategory": False, "Tags": True, "PricingQuantity": False, "PricingUnit": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "ledger.jsonl"
    generate(path, 3000, seed=5, days=12)
    return path


def exported(ledger: Path | Ledger, format_: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    (ledger if isinstance(ledger, Ledger) else Ledger(ledger)).export(file, format=format_, **options)
    return file.getvalue()


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def write(path: Path, *entries: Entry) -> Path:
    path.write_text("".join(entry.to_json() + "\n" for entry in entries))
    return path


def entry(kind: str, hours: float, seq: int, interval: int, **more: Any) -> Entry:
    return Entry(
        kind, vm_id="v", hypervisor="qemu", shape=Shape(cpu=2, mem_bytes=1 << 30, storage_bytes=3 << 30),
        emitted_at=BEGIN + timedelta(hours=hours), seq=seq, interval=interval, **more,
    )  # fmt: skip


# ---------------------------------------------------------------- entries


def test_json_lines_are_the_ledgers_own(generated: Path) -> None:
    lines = generated.read_bytes().splitlines(keepends=True)
    assert exported(generated, "jsonl") == b"".join(lines)
    assert exported(generated, "jsonl", since_seq=2990) == b"".join(lines[2989:])
    assert exported(generated, "jsonl", since_seq=10, until_seq=10) == lines[9]
    assert exported(generated, "jsonl", since_seq=9999) == b""
    assert exported(GO / "snapshots.ledger.jsonl", "jsonl", since_seq=2) == b"", "it has no numbers"


def test_csv_has_every_field(generated: Path, tmp_path: Path) -> None:
    rows = rows_of(exported(generated, "csv"))
    assert len(rows) == 3000
    for row, line in zip(rows, reference.read(generated), strict=True):
        assert (int(row["seq"]), int(row["interval"])) == (line.seq, line.interval)
        assert row["kind"].startswith(line.kind)
        assert (row["vm_id"] or row["snapshot_id"]) == line.id
        assert reference.time_ns(row["emitted_at"]) == line.at
        assert (int(row["cpu"]), int(row["mem_bytes"]), int(row["storage_bytes"])) == (
            line.cpu, line.mem_bytes, line.storage_bytes,
        )  # fmt: skip
        assert json.loads(row["labels"] or "{}") == line.labels
        assert int(row["uptime_ns"]) == line.uptime
    odd = Entry("vm.storage.start", vm_id='a,"b"\r\nc', emitted_at=1, labels={"k": '"'})
    (row,) = rows_of(exported(write(tmp_path / "odd.jsonl", odd), "csv"))
    assert (row["vm_id"], row["seq"], row["labels"]) == ('a,"b"\r\nc', "", '{"k":"\\""}')


def test_parquet_has_the_same_columns_in_types(generated: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(exported(generated, "parquet", since_seq=100)))
    assert table.num_rows == 2901
    rows = rows_of(exported(generated, "csv", since_seq=100))
    assert table.schema.names == list(rows[0])
    assert str(table.schema.field("emitted_at").type) == "timestamp[ns, tz=UTC]"
    assert str(table.schema.field("seq").type) == "int64"
    times = table.column("emitted_at").cast("int64").to_pylist()
    assert times == [reference.time_ns(row["emitted_at"]) for row in rows]
    for name in ("kind", "vm_id", "labels", "evidence", "reason"):
        assert table.column(name).to_pylist() == [row[name] or None for row in rows]
    assert table.column("ended_uptime_ns").to_pylist() == [
        int(row["ended_uptime_ns"]) if row["ended_uptime_ns"] else None for row in rows
    ]
    empty = parquet.read_table(io.BytesIO(exported(generated, "parquet", since_seq=9999)))
    assert (empty.num_rows, empty.schema) == (0, table.schema)


def test_cloud_events(generated: Path) -> None:
    lines = generated.read_text().splitlines()
    events = [json.loads(line) for line in exported(generated, "cloudevents", node_id="n1").splitlines()]
    assert len(events) == len(lines)
    for event, line in zip(events, lines, strict=True):
        data = json.loads(line)
        assert event == {
            "specversion": "1.0",
            "id": f"n1/{data['seq']}",
            "source": "urn:cocoon:node:n1",
            "type": "cocoon." + data["kind"],
            "subject": data.get("vm_id") or data["snapshot_id"],
            "time": data["emitted_at"],
            "datacontenttype": "application/json",
            "data": data,
        }
    unnumbered = [json.loads(line)["id"] for line in exported(GO, "cloudevents").splitlines()]
    assert len(set(unnumbered)) == len(unnumbered) == 1994
    assert exported(GO, "cloudevents") == exported(GO, "cloudevents"), "a name is made from the first entry"


# ---------------------------------------------------------------- FOCUS


def test_focus_has_the_columns_of_the_specification(generated: Path) -> None:
    rows = rows_of(exported(generated, "focus"))
    assert FOCUS_MANDATORY.keys() | FOCUS_USAGE.keys() <= rows[0].keys()
    custom = rows[0].keys() - FOCUS_MANDATORY.keys() - FOCUS_USAGE.keys()
    assert all(name.startswith("x_") for name in custom)
    for row in rows:
        for name, nullable in {**FOCUS_MANDATORY, **FOCUS_USAGE}.items():
            assert row[name] or nullable, name
        times = [row[name] for name in row if "Period" in name]
        assert all(datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z") for time in times)
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert row["ChargeCategory"] == "Usage"
        assert row["ServiceSubcategory"] in {"Virtual Machines", "Block Storage"}
        assert all(isinstance(value, str) for value in json.loads(row["Tags"] or "{}").values())
    ids = [row["x_RowId"] for row in rows]
    assert len(set(ids)) == len(ids)


def test_focus_rows_add_up_to_the_usage(generated: Path) -> None:
    rows = rows_of(exported(generated, "focus"))
    lines = reference.read(generated)
    last = max(line.at for line in lines)
    paired = reference.pair(lines, until_ns=last)
    expected = reference.usage(paired, by=("vm_id", "snapshot_id"), every_ns=DAY)
    got: dict[tuple[str | None, str | None, int], list[Fraction]] = defaultdict(lambda: [Fraction(0)] * 3)
    for row in rows:
        snapshot = row["ResourceType"] == "Snapshot"
        resource = row["ResourceId"]
        key = (None if snapshot else resource, resource if snapshot else None,
               reference.time_ns(row["ChargePeriodStart"]))  # fmt: skip
        used = (row["x_VcpuSeconds"], row["x_MemByteSeconds"], row["x_StorageByteSeconds"])
        got[key] = [a + Fraction(b) for a, b in zip(got[key], used, strict=True)]
        consumed = row["x_VcpuSeconds"] if row["ServiceCategory"] == "Compute" else row["x_StorageByteSeconds"]
        assert row["ConsumedQuantity"] == consumed
        unit = 3600 if row["ServiceCategory"] == "Compute" else 3600 << 30
        assert 0 <= Fraction(consumed) / unit - Fraction(row["PricingQuantity"]) < Fraction(1, 10**9)
    assert len(got) == len(expected)
    for (vm, snapshot_id, bucket), sums in expected.items():
        exact = sums.row()
        assert got[vm, snapshot_id, bucket] == [
            exact[name] for name in ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds")
        ]


@pytest.mark.parametrize("steps", [2, 7, 40])
@pytest.mark.parametrize("every", [3600, 86_400])
def test_ranges_one_after_the_other_give_what_one_of_all_gives(generated: Path, steps: int, every: int) -> None:
    quantities = ("x_VcpuSeconds", "x_MemByteSeconds", "x_StorageByteSeconds")
    kept: dict[str, dict[str, str]] = {}
    edges = [1 + 3000 * i // steps for i in range(steps)] + [3001]
    for first, behind in pairwise(edges):
        data = exported(generated, "focus", since_seq=first, until_seq=behind - 1, every=every)
        assert data == exported(generated, "focus", since_seq=first, until_seq=behind - 1, every=every)
        kept |= {row["x_RowId"]: row for row in rows_of(data)}
    whole = {row["x_RowId"]: row for row in rows_of(exported(generated, "focus", every=every))}
    nothing = {row_id for row_id in kept if all(Decimal(kept[row_id][name]) == 0 for name in quantities)}
    assert kept.keys() - whole.keys() <= nothing, "what was told too early is taken back"
    for row_id, row in whole.items():
        assert [kept[row_id][name] for name in quantities] == [row[name] for name in quantities]


def test_a_death_that_is_found_late_takes_back_what_was_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ledger.jsonl",
        entry("vm.compute.start", 0, 1, 1),
        Entry("snap.storage.start", snapshot_id="s", emitted_at=BEGIN + timedelta(hours=50), seq=2, interval=2),
        entry("vm.compute.stop", 60, 3, 1, reason="stop-crash", ended_at=BEGIN + timedelta(hours=1), evidence="shim"),
    )
    ledger = Ledger(path)

    def compute(**options: Any) -> dict[str, str]:
        rows = rows_of(exported(ledger, "focus", node_id="n", **options))
        return {
            f"{row['x_RowId'].split('/')[-1][:10]} of {row['BillingPeriodStart'][:7]}": row["PricingQuantity"]
            for row in rows
            if row["ServiceCategory"] == "Compute"
        }

    assert compute(until_seq=2) == {
        "2026-03-31 of 2026-03": "4", "2026-04-01 of 2026-04": "48", "2026-04-02 of 2026-04": "48",
    }  # fmt: skip
    assert compute(since_seq=3) == {
        "2026-03-31 of 2026-03": "2", "2026-04-01 of 2026-04": "0", "2026-04-02 of 2026-04": "0",
    }  # fmt: skip
    assert compute() == {"2026-03-31 of 2026-03": "2"}


def test_an_interval_that_goes_on_comes_again_only_where_it_changed(tmp_path: Path) -> None:
    begun = entry("vm.storage.start", 0, 1, 1)
    ticks = [
        Entry(
            "snap.storage.start", snapshot_id=f"s{i}", emitted_at=BEGIN + timedelta(days=i), seq=i + 1, interval=i + 1
        )
        for i in range(1, 5)
    ]
    ledger = Ledger(write(tmp_path / "ledger.jsonl", begun, *ticks))
    rows = rows_of(exported(ledger, "focus", since_seq=4, until_seq=5))
    days = [row["ChargePeriodStart"][:10] for row in rows if row["ResourceId"] == "v"]
    assert days == ["2026-04-02", "2026-04-03", "2026-04-04"], "the day of entry 3, and those since"
    assert all(row["x_Open"] == "true" for row in rows)


def test_times_at_the_ends_of_time(tmp_path: Path) -> None:
    first, last = -(2**63) + 10**9, 2**63 - 1  # pyarrow reads no time of the very first second
    path = write(
        tmp_path / "ledger.jsonl",
        Entry("vm.storage.start", vm_id="v", shape=Shape(storage_bytes=1), emitted_at=first, seq=1, interval=1),
        Entry("vm.storage.stop", vm_id="v", shape=Shape(storage_bytes=1), emitted_at=last, seq=2, interval=1),
        Entry("vm.storage.start", vm_id="w", shape=Shape(storage_bytes=2**63 - 1), emitted_at=last, seq=3, interval=3),
    )
    for name in FORMATS:
        assert exported(path, name) == exported(path, name)
    rows = rows_of(exported(path, "focus"))
    assert 100_000 < len(rows) < 110_000, "centuries of days; a length has 63 bits"
    assert len({row["x_RowId"] for row in rows}) == len(rows)
    with pytest.raises(InvalidArgument, match="every"):
        exported(path, "focus", every=60)


# ---------------------------------------------------------------- where it goes


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_range_is_the_same_file(generated: Path, tmp_path: Path, name: Any) -> None:
    ledger = Ledger(generated)
    first = ledger.export(tmp_path / "a", format=name, since_seq=5, until_seq=2000)
    second = ledger.export(str(tmp_path / "b"), format=name, since_seq=5, until_seq=2000)
    assert first == second > 1000
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() == exported(ledger, name, since_seq=5, until_seq=2000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_bad_lines_are_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "ledger.jsonl", entry("vm.storage.start", 0, 1, 1))
    path.write_text("garbage\n" + path.read_text() + '{"torn')
    assert len(exported(path, "cloudevents").splitlines()) == 1
    assert "2 bad lines" in caplog.text


class FullError(Exception):
    pass


@pytest.mark.parametrize("name", FORMATS)
def test_a_destination_that_fails_leaves_nothing(generated: Path, tmp_path: Path, name: Any) -> None:
    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise FullError

    with pytest.raises(FullError):
        Ledger(generated).export(Full(), format=name)

    def stop(_done: int, _total: int | None) -> None:
        raise FullError

    def late(_done: int, _total: int | None) -> None:
        raise TimeoutError("a deadline of the caller's")

    target = tmp_path / "out"
    target.write_text("as it was")
    with pytest.raises(FullError):
        Ledger(generated).export(target, format=name, progress=stop)
    with pytest.raises(TimeoutError, match="a deadline of the caller's"):
        Ledger(generated).export(target, format=name, progress=late)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "as it was"


def test_progress_reaches_the_end(generated: Path) -> None:
    told: list[tuple[int, int | None]] = []
    exported(generated, "csv", progress=lambda done, total: told.append((done, total)))
    size = generated.stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_rotation_meanwhile(tmp_root: Path, tmp_path: Path) -> None:
    """A file is begun again; a stream cannot be."""
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(VMConfig("a", storage=0, machine="q35"))
        ledger = node.ledger
        rotated: list[Path | None] = []

        def rotate(_done: int, _total: int | None) -> None:
            if not rotated:
                rotated.append(node.rotate_ledger())

        assert ledger.export(tmp_path / "out", format="jsonl", progress=rotate) == 1
        assert rotated != [None]
        assert (tmp_path / "out").read_bytes() == exported(ledger, "jsonl")
        backend.mark_started("a")
        rotated.clear()
        with pytest.raises(LedgerError, match="rotated"):
            exported(ledger, "jsonl", progress=rotate)
        assert len(exported(ledger, "jsonl").splitlines()) == 2
        assert json.loads(exported(ledger, "cloudevents").splitlines()[0])["id"] == f"{node.id}/1"


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "ledger.jsonl"
    generate(path, 60_000)
    yield path
    path.unlink()


def test_ctrl_c_leaves_nothing(large: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cocoon import Ledger\n"
        "begun = False\n"
        "def told(done, total):\n"
        "    global begun\n"
        "    if not begun: print('begun', flush=True)\n"
        "    begun = True\n"
        "    sys.stdin.read(1)\n"
        "try:\n"
        "    Ledger(sys.argv[1]).export(sys.argv[2], format='focus', every=60, progress=told)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(large), str(folder / "focus.csv")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        assert len(list(folder.iterdir())) == 1, "it writes beside the file that is to be"
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(30) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "xml"}, "format"),
        ({"format": "csv", "since_seq": 0}, "since_seq"),
        ({"format": "csv", "since_seq": True}, "since_seq"),
        ({"format": "csv", "until_seq": "9"}, "until_seq"),
        ({"format": "csv", "since_seq": 3, "until_seq": 2}, "until_seq"),
        ({"format": "focus", "every": 59}, "every"),
        ({"format": "focus", "every": 7 * 60}, "every"),
        ({"format": "focus", "every": timedelta(days=2)}, "every"),
        ({"format": "focus", "node_id": "a/b"}, "node_id"),
        ({"format": "cloudevents", "node_id": ""}, "node_id"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    generated: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Ledger(generated).export(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_several_nodes_are_not_mixed(generated: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "ledger.jsonl", entry("vm.storage.start", 0, 1, 1))
    with pytest.raises(InvalidArgument, match="several nodes"):
        exported(Ledger(generated, other), "focus", node_id="n")
    assert len(exported(Ledger(generated, other), "jsonl").splitlines()) == 3001


def test_what_cannot_be_read_or_taken(tmp_path: Path, generated: Path) -> None:
    with pytest.raises(LedgerError):
        exported(tmp_path / "none.jsonl", "focus")
    with pytest.raises(InvalidArgument, match="dest"):
        Ledger(generated).export(5, format="csv")  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    for dest, code in [
        (tmp_path / "none" / "out", errno.ENOENT),
        (tmp_path / "folder", errno.EISDIR),
        (Path("/dev/full"), errno.ENOSPC),
    ]:
        with pytest.raises(LedgerError) as refused:
            Ledger(generated).export(dest, format="csv")
        assert (refused.value.path, refused.value.code) == (str(dest), code)
        assert str(refused.value) == f"export to {dest}: {os.strerror(code)}"
