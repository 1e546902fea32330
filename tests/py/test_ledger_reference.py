"""The core's intervals and usage against a second implementation, on generated ledgers and the Go engine's own."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import ledger_reference as reference
from cocoon import Ledger
from cocoon.testing.ledgers import generate

GO = Path(__file__).parents[1] / "data" / "go-engine"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNTIL = datetime(2027, 1, 1, tzinfo=UTC)
TIMES = {"start", "stop", "ended_at", "alive_until"}
SUMS = ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds", "intervals", "open")


def ns(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "ledger.jsonl"
    generate(path, 4000, seed=3, faults=3)
    return path


def paths(generated: Path) -> list[Path]:
    return [generated, GO / "vms.ledger.jsonl", GO / "snapshots.ledger.jsonl"]


def in_microseconds(row: dict[str, Any]) -> dict[str, Any]:
    """A datetime has no more."""
    return {
        key: EPOCH + timedelta(microseconds=value // 1000) if key in TIMES and value is not None else value
        for key, value in row.items()
    }


def test_intervals_are_the_same(generated: Path) -> None:
    for path in paths(generated):
        expected = [in_microseconds(one.row()) for one in reference.pair(reference.read(path), until_ns=ns(UNTIL))]
        assert len(expected) > 0
        assert Ledger(path).intervals(until=UNTIL).to_pylist() == expected


@pytest.mark.parametrize("crash", ["ended", "emitted", "alive_until"])
@pytest.mark.parametrize(
    "by",
    [(), ("vm_id",), ("snapshot_id", "hypervisor"), ("kind", "reason"), ("label:tenant", "label:tier")],
    ids=lambda by: "+".join(by) or "all",
)
@pytest.mark.parametrize("window", ["all", "window", "buckets"])
def test_usage_is_the_same(generated: Path, crash: Any, by: tuple[str, ...], window: str) -> None:
    for path in paths(generated):
        lines = reference.read(path)
        first = min(line.at for line in lines)
        span = max(line.at for line in lines) - first
        options: dict[str, datetime | timedelta] = {"until": UNTIL}
        if window != "all":
            options["since"] = EPOCH + timedelta(microseconds=(first + span // 3) // 1000)
            options["until"] = EPOCH + timedelta(microseconds=(first + span * 2 // 3) // 1000)
        if window == "buckets":
            options["every"] = timedelta(microseconds=max(1, span // 7000))
        exact = {name + "_ns": value // timedelta(microseconds=1) * 1000 if isinstance(value, timedelta) else ns(value)
                 for name, value in options.items()}  # fmt: skip
        paired = reference.pair(lines, until_ns=exact["until_ns"], crash=crash)
        expected = reference.usage(paired, by=by, **exact)
        rows = Ledger(path).usage(by=by, crash=crash, **options).to_pylist()  # type: ignore[arg-type]
        got = {}
        for row in rows:
            key = tuple(row[part] for part in by)
            if "bucket" in row:
                key = (*key, ns(row["bucket"]))
            got[key] = {name: row[name] for name in SUMS}
        assert len(got) == len(rows)
        expected = {
            (*key[:-1], key[-1] // 1000 * 1000) if "bucket" in (rows or [{}])[0] else key: sums
            for key, sums in expected.items()
        }
        assert got.keys() == expected.keys()
        for key, sums in expected.items():
            for name, value in sums.row().items():
                assert math.isclose(got[key][name], value, rel_tol=1e-15), (path, key, name)


def test_the_reference_reads_times_as_they_are_written() -> None:
    assert reference.time_ns("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert reference.time_ns("2026-11-23T09:00:35.819597778+08:00") == 1_795_395_635_819_597_778
    for wrong in ("2026-11-23", "2026-11-23T09:00:35", "2026-13-01T00:00:00Z", "2026-11-23T09:00:35.1234567890Z"):
        with pytest.raises(ValueError, match=r"."):
            reference.time_ns(wrong)
