"""FileRecorder.emit from Python against write(2) of the same bytes, in turn; one JSON row."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from cocoon import Entry, FileRecorder, Shape

ROUNDS = 15
CALLS = 20_000
LIMIT = 4.0


def main() -> None:
    entry = Entry(
        "vm.compute.start",
        vm_id="abcdefghijklmnopqrstuvwxyz",
        reason="boot",
        hypervisor="firecracker",
        shape=Shape(cpu=2, mem_bytes=1 << 30, storage_bytes=10 << 30),
        emitted_at=1_700_000_000_123_456_789,
        seq=123_456,
    )
    line = entry.to_json().encode() + b"\n"
    emitting, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        recorder = FileRecorder(Path(folder) / "emit.jsonl")
        bare = os.open(Path(folder) / "write.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        emit, write, clock = recorder.emit, os.write, time.perf_counter_ns
        for _ in range(ROUNDS):
            begin = clock()
            for _ in range(CALLS):
                emit(entry)
            middle = clock()
            for _ in range(CALLS):
                write(bare, line)
            emitting.append((middle - begin) / CALLS)
            writing.append((clock() - middle) / CALLS)
        recorder.close()
        os.close(bare)
        assert (Path(folder) / "emit.jsonl").stat().st_size == ROUNDS * CALLS * len(line)
    ratio = statistics.median(a / b for a, b in zip(emitting, writing, strict=True))
    print(
        json.dumps(
            {
                "what": "FileRecorder.emit from Python",
                "value": f"{statistics.median(emitting):.0f} ns",
                "baseline": f"{statistics.median(writing):.0f} ns write(2) from Python",
                "ratio": ratio,
                "limit": LIMIT,
            }
        )
    )


if __name__ == "__main__":
    main()
