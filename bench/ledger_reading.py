"""Reading a ledger of two million entries: intervals to Arrow, the audit and following up, against DuckDB in turn.

    bench/ledger_reading.py [--entries N] [--long]

Each measurement is a process of its own, so that its memory is its own. ``--long``: also a ledger of 100 million
entries with 100 000 intervals open at any time (about 27 GB in a pipe's worth of files; the default takes 10 million).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

ENTRIES = 2_000_000
ROUNDS = 5
OPEN_AT_ONCE = 3_000

COCOON = """
table = Ledger(path).intervals()
rows = pyarrow.RecordBatchReader.from_stream(table).read_all().num_rows  # pyarrow.table() would import pandas first
"""
AUDIT = """
report = Ledger(path).audit()
assert not report.findings, report.findings[:3]
rows = report.entries
"""
# Starts and stops of one interval have its number in common: the cheapest pairing there is.
DUCKDB = """
rows = duckdb.sql(f'''
  select id, kind, hypervisor, cpu, mem_bytes, storage_bytes, start, stop, start_reason, stop_reason, start_seq,
         stop_seq, stop - start as length
  from (
    select coalesce(vm_id, snapshot_id) as id, kind, hypervisor, shape.cpu as cpu, shape.mem_bytes as mem_bytes,
           shape.storage_bytes as storage_bytes, emitted_at as start, reason as start_reason, seq as start_seq,
           lead(emitted_at) over pair as stop, lead(reason) over pair as stop_reason, lead(seq) over pair as stop_seq
    from read_json('{path}', format = 'newline_delimited', columns = {{
      kind: 'VARCHAR', vm_id: 'VARCHAR', snapshot_id: 'VARCHAR', reason: 'VARCHAR', hypervisor: 'VARCHAR',
      shape: 'STRUCT(cpu BIGINT, mem_bytes BIGINT, storage_bytes BIGINT)', emitted_at: 'TIMESTAMP', seq: 'BIGINT'}})
    window pair as (partition by coalesce(vm_id, snapshot_id), split_part(kind, '.', 2) order by seq)
  ) where kind like '%.start'
''').to_arrow_table().num_rows
"""
MEASURE = """
import resource, sys, time
import pyarrow
from cocoon import Ledger
import duckdb
duckdb.sql("set enable_progress_bar = false")
path = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
{code}
took = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(took, (peak - before) / 1024, rows)
"""


def lines(entries: int, open_at_once: int, seed: int) -> object:
    """A node that restarts its VMs: storage for each, then one compute interval after the other."""
    chance = random.Random(seed)
    vms = open_at_once // 2  # storage is open of each, and compute of up to all
    ids = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz234567", k=26)) for _ in range(vms)]
    opened = [0] * vms
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    # Times change by the second here: a strftime per line would be most of the work.
    for seq in range(1, entries + 1):
        seconds, milliseconds = divmod(seq - 1, 1000)
        if milliseconds == 0:
            second = (begin + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
        vm = seq % vms
        if seq <= vms:
            kind, reason, shape, interval = "storage.start", "boot", '"storage_bytes":10737418240', seq
        elif opened[vm] == 0:
            kind, reason, shape, interval = "compute.start", "restart", '"cpu":2,"mem_bytes":1073741824', seq
            opened[vm] = seq
        else:
            kind, reason, shape, interval = "compute.stop", "stop-user", '"cpu":2,"mem_bytes":1073741824', opened[vm]
            opened[vm] = 0
        yield (
            f'{{"kind":"vm.{kind}","vm_id":"{ids[vm]}","reason":"{reason}","hypervisor":"qemu",'
            f'"shape":{{{shape}}},"emitted_at":"{second}.{milliseconds:03d}456Z",'
            f'"seq":{seq},"interval":{interval},"boot_id":"0a1b2c3d","uptime_ns":{seq * 1_000_000 + 456_000}}}\n'
        )


def write_ledger(path: Path, entries: int, open_at_once: int) -> None:
    with path.open("w", buffering=1 << 20) as file:
        file.writelines(lines(entries, open_at_once, 1))  # type: ignore[arg-type]


def measure(code: str, path: Path) -> tuple[float, float, int]:
    """Seconds, MiB beyond the imports, rows."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code), str(path)], check=True, capture_output=True, text=True
    )
    took, memory, rows = done.stdout.splitlines()[-1].split()
    return float(took), float(memory), int(rows)


def row(what: str, value: str, baseline: str, ratio: float, **more: object) -> None:
    print(json.dumps({"what": what, "value": value, "baseline": baseline, "ratio": ratio, **more}), flush=True)


def intervals_and_audit(path: Path, entries: int) -> float:
    write_ledger(path, entries, OPEN_AT_ONCE)
    size = path.stat().st_size / 1e6
    times: dict[str, list[float]] = {"ours": [], "audit": [], "duckdb": []}
    memory: dict[str, float] = {}
    for _ in range(ROUNDS):
        counts = {}
        for name, code in (("ours", COCOON), ("duckdb", DUCKDB), ("audit", AUDIT)):
            took, memory[name], counts[name] = measure(code, path)
            times[name].append(took)
        assert counts["ours"] == counts["duckdb"], counts
        assert counts["audit"] == entries, counts
    ours, duckdb, audit = (statistics.median(times[name]) for name in ("ours", "duckdb", "audit"))
    row(f"intervals of {entries:,} entries ({size:.0f} MB) to Arrow", f"{ours:.3f} s", f"{duckdb:.3f} s DuckDB",
        duckdb / ours, limit=4.0, at_least=True)  # fmt: skip
    row("memory of it", f"{memory['ours']:.0f} MiB", f"{memory['duckdb']:.0f} MiB DuckDB",
        memory["ours"] / memory["duckdb"], limit=1.0)  # fmt: skip
    row("audit of the same", f"{audit:.3f} s", f"{ours:.3f} s intervals", audit / ours, limit=1.5)
    return ours


def follow_up(path: Path, entries: int) -> None:
    """Usage from a checkpoint, after 1 000 new entries, against reading it all."""
    from cocoon import Ledger

    until = datetime(2027, 1, 1, tzinfo=UTC)
    checkpoint = path.with_suffix(".checkpoint")
    all_lines = list(lines(entries + ROUNDS * 1000, OPEN_AT_ONCE, 1))  # type: ignore[call-overload]
    path.write_text("".join(all_lines[:entries]))
    Ledger(path).usage(by=(), until=until, checkpoint=checkpoint)
    whole, new = [], []
    for i in range(ROUNDS):
        with path.open("a") as file:
            file.writelines(all_lines[entries + i * 1000 : entries + (i + 1) * 1000])
        begin = time.perf_counter()
        incremental = Ledger(path).usage(by=(), until=until, checkpoint=checkpoint).to_pylist()
        middle = time.perf_counter()
        full = Ledger(path).usage(by=(), until=until).to_pylist()
        whole.append(time.perf_counter() - middle)
        new.append(middle - begin)
        assert incremental == full
    a, b = statistics.median(whole), statistics.median(new)
    against = f"{a * 1e3:.0f} ms reading it all"
    row(
        "usage after 1 000 new entries, from a checkpoint",
        f"{b * 1e3:.2f} ms",
        against,
        a / b,
        limit=100.0,
        at_least=True,
    )


def long_ledger(folder: Path, entries: int, seconds_per_entry: float) -> None:
    """Parts are made of the same intervals again and again."""
    open_at_once = 100_000
    path = folder / "long.jsonl"
    write_ledger(path, entries, open_at_once)
    for what, code in (("usage", "rows = Ledger(path).usage(by=()).to_pylist()[0]['intervals']"), ("audit", AUDIT)):
        took, memory, rows = measure(code, path)
        assert rows >= entries // 3
        row(
            f"{what} of {entries:,} entries, 100 000 open: memory",
            f"{memory:.0f} MiB",
            "200 MiB",
            memory / 200,
            limit=1.0,
        )
        row(f"{what} of {entries:,} entries: time per entry", f"{took / entries * 1e9:.0f} ns",
            f"{seconds_per_entry * 1e9:.0f} ns, intervals of {ENTRIES:,}", took / entries / seconds_per_entry,
            limit=2.0)  # fmt: skip
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--long", action="store_true", default=bool(os.environ.get("COCOON_BENCH_LONG")))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took = intervals_and_audit(folder / "ledger.jsonl", options.entries)
        follow_up(folder / "ledger.jsonl", options.entries)
        (folder / "ledger.jsonl").unlink()
        long_ledger(folder, 100_000_000 if options.long else 10_000_000, took / options.entries)


if __name__ == "__main__":
    main()
