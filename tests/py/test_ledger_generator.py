"""Generated ledgers: the engine's own line format, no findings but those planted, and the same bytes for a seed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cocoon import Entry, InvalidArgument, Ledger, Reason
from cocoon.testing.ledgers import FAULTS, Fault, generate


def planted(faults: list[Fault]) -> set[tuple[object, ...]]:
    return {(one.code, one.line, one.offset, one.seq, one.vm_id, one.snapshot_id) for one in faults}


def found(path: Path) -> set[tuple[object, ...]]:
    report = Ledger(path).audit()
    rows: set[tuple[object, ...]] = {
        (one.code, one.line, one.offset, one.seq, one.vm_id, one.snapshot_id) for one in report.findings
    }
    assert len(rows) == len(report.findings), "nothing is reported twice"
    return rows


@pytest.mark.parametrize("seed", [0, 7])
def test_every_line_is_what_the_engine_would_write(seed: int) -> None:
    file = io.BytesIO()
    done = generate(file, 5000, seed=seed)
    lines = file.getvalue().decode().splitlines(keepends=True)
    assert [Entry.from_json(line).to_json() + "\n" for line in lines] == lines
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 5001))
    assert (done.entries, done.bytes, done.faults) == (5000, len(file.getvalue()), [])
    first, last = Entry.from_json(lines[0]), Entry.from_json(lines[-1])
    assert done.first_ns <= first.emitted_at_ns
    assert done.last_ns == last.emitted_at_ns


def test_a_ledger_has_everything_that_happens_to_vms(tmp_path: Path) -> None:
    generate(tmp_path / "ledger.jsonl", 20_000)
    entries = list(Ledger(tmp_path / "ledger.jsonl"))
    assert {entry.reason for entry in entries} == {None, *Reason}
    assert len({entry.boot_id for entry in entries}) > 1
    assert {entry.hypervisor for entry in entries} == {"cloud-hypervisor", "firecracker", "qemu"}
    crashes = [entry for entry in entries if entry.reason is Reason.STOP_CRASH]
    assert {entry.evidence for entry in crashes} == {"", "shim", "watch", "log"}
    assert all((entry.ended_at is None) != (entry.alive_until is None) for entry in crashes)
    assert {entry.labels.get("tenant") for entry in entries} > {None, "acme", "R&D", "zażółć"}
    assert sum(row["open"] for row in Ledger(tmp_path / "ledger.jsonl").intervals().to_pylist()) > 100
    days = (entries[-1].emitted_at - entries[0].emitted_at).total_seconds() / 86400
    assert 20 < days < 45


@pytest.mark.parametrize("entries", [1, 2, 3, 17, 1000, 40_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_ledger_without_faults_has_no_findings(tmp_path: Path, entries: int, seed: int) -> None:
    path = tmp_path / "ledger.jsonl"
    generate(path, entries, seed=seed)
    report = Ledger(path).audit()
    assert (report.entries, report.findings) == (entries, [])


@pytest.mark.parametrize(("entries", "each"), [(640, 1), (10_000, 5), (60_000, 50)])
@pytest.mark.parametrize("seed", range(4))
def test_the_audit_finds_what_was_planted_and_nothing_else(tmp_path: Path, entries: int, each: int, seed: int) -> None:
    path = tmp_path / "ledger.jsonl"
    done = generate(path, entries, seed=seed, faults=each)
    assert {code: sum(one.code == code for one in done.faults) for code in FAULTS} == dict.fromkeys(FAULTS, each) | {
        "torn-line": 1
    }
    assert found(path) == planted(done.faults)
    assert Ledger(path).audit().entries == entries


def test_the_same_arguments_give_the_same_bytes() -> None:
    def ledger(seed: int) -> bytes:
        file = io.BytesIO()
        generate(file, 2000, seed=seed, faults=1)
        return file.getvalue()

    assert ledger(1) == ledger(1)
    assert ledger(1) != ledger(2)


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for says, options in {
        "entries: 0": {"entries": 0},
        "faults: -1": {"faults": -1},
        "entries: 100 are too few for 1 faults": {"entries": 100, "faults": 1},
        "days": {"days": 0},
        "vms": {"vms": 0},
    }.items():
        with pytest.raises(InvalidArgument, match=says):
            generate(path, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="timezone-aware"):
        generate(path, begin=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the mistake
    assert not path.exists()


def test_from_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-m", "cocoon.testing.ledgers", str(path)]
    done = subprocess.run(
        [*command, "--entries", "1000", "--faults", "1", "--begin", "2025-01-01T00:00:00Z"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["entries"] == 1000
    assert found(path) == planted([Fault(**one) for one in answer["faults"]])
    assert next(iter(Ledger(path))).emitted_at >= datetime(2025, 1, 1, tzinfo=UTC)
    wrong = subprocess.run([*command, "--entries", "0"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "entries: 0" in wrong.stderr) == (2, True)
