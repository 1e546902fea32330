"""Intervals and usage of a ledger, a second time: plain Python, slow, nothing shared with the core.

The rules are those of docs/ledger.md. All sums are exact integers, units times nanoseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

SECOND = 1_000_000_000
KINDS = {"vm.compute", "vm.storage", "snap.storage"}
REASONS = {
    "boot", "restart", "clone", "restore", "hibernate-wake", "stop-user", "stop-crash", "vm-rm", "snap-rm", "relabel",
}  # fmt: skip


@dataclass
class Line:
    """One entry."""

    kind: str  # of the interval
    is_start: bool
    id: str
    reason: str | None
    hypervisor: str
    source_snapshot_id: str
    cpu: int
    mem_bytes: int
    storage_bytes: int
    at: int
    seq: int | None
    interval: int | None
    labels: dict[str, str]
    ended_at: int | None
    ended_uptime: int | None
    alive_until: int | None
    evidence: str
    boot_id: str
    uptime: int | None


@dataclass
class Interval:
    start: Line
    end: Line | None  # what closed it: its stop, or a second start
    length_ns: int = 0
    length_from: str = "wall"

    @property
    def open(self) -> bool:
        return self.end is None

    def row(self) -> dict[str, Any]:
        """As a row of Ledger.intervals(), times as ns since the epoch."""
        stop = self.end if self.end is not None and not self.end.is_start else None
        return {
            "id": self.start.id,
            "kind": self.start.kind,
            "hypervisor": self.start.hypervisor or None,
            "cpu": self.start.cpu,
            "mem_bytes": self.start.mem_bytes,
            "storage_bytes": self.start.storage_bytes,
            "start": self.start.at,
            "stop": None if self.end is None else self.end.at,
            "start_reason": self.start.reason,
            "stop_reason": None if stop is None else stop.reason,
            "source_snapshot_id": self.start.source_snapshot_id or None,
            "length_ns": self.length_ns,
            "open": self.open,
            "length_from": self.length_from,
            "start_seq": self.start.seq,
            "stop_seq": None if stop is None else stop.seq,
            "ended_at": None if stop is None else stop.ended_at,
            "alive_until": None if stop is None else stop.alive_until,
            "evidence": None if stop is None else stop.evidence or None,
            "labels": self.start.labels or None,
        }


@dataclass
class Sums:
    vcpu_ns: int = 0
    mem_byte_ns: int = 0
    storage_byte_ns: int = 0
    intervals: int = 0
    open: int = 0

    def row(self) -> dict[str, Any]:
        """As the sums of a row of Ledger.usage(), exactly."""
        return {
            "vcpu_seconds": Fraction(self.vcpu_ns, SECOND),
            "mem_byte_seconds": Fraction(self.mem_byte_ns, SECOND),
            "storage_byte_seconds": Fraction(self.storage_byte_ns, SECOND),
            "intervals": self.intervals,
            "open": self.open,
        }


# ---------------------------------------------------------------- lines


def read(path: Path) -> list[Line]:
    """The entries of a file. Lines that are none are passed over; so is what follows the last line end."""
    lines = [parse(text) for text in path.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if line is not None]


def parse(text: bytes) -> Line | None:
    """None: not an entry. Kinds, reasons and values that are not allowed make it none."""
    try:
        keys = json.loads(text.decode(), object_pairs_hook=once, parse_constant=refuse)
        if not isinstance(keys, dict):
            return None
        kind, _, edge = texts(keys, "kind").rpartition(".")
        shape = keys["shape"]
        if kind not in KINDS or edge not in {"start", "stop"} or not isinstance(shape, dict):
            return None
        own, other = ("snapshot_id", "vm_id") if kind == "snap.storage" else ("vm_id", "snapshot_id")
        if not texts(keys, own) or texts(keys, other):
            return None
        if keys.get("reason", "boot") not in REASONS:
            return None
        labels = keys.get("labels", {})
        if not all(isinstance(value, str) for value in labels.values()):
            return None
        return Line(
            kind=kind,
            is_start=edge == "start",
            id=texts(keys, own),
            reason=keys.get("reason"),
            hypervisor=texts(keys, "hypervisor"),
            source_snapshot_id=texts(keys, "source_snapshot_id"),
            cpu=number(shape, "cpu") or 0,
            mem_bytes=number(shape, "mem_bytes") or 0,
            storage_bytes=number(shape, "storage_bytes") or 0,
            at=time_ns(keys["emitted_at"]),
            seq=number(keys, "seq", least=1),
            interval=number(keys, "interval", least=1),
            labels=labels,
            ended_at=some_time(keys, "ended_at"),
            ended_uptime=number(keys, "ended_uptime_ns"),
            alive_until=some_time(keys, "alive_until"),
            evidence=texts(keys, "evidence"),
            boot_id=texts(keys, "boot_id"),
            uptime=number(keys, "uptime_ns"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is there twice")
    return keys


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def texts(keys: dict[str, Any], name: str) -> str:
    text = keys.get(name, "")
    if not isinstance(text, str):
        raise TypeError(name)
    return text


def number(keys: dict[str, Any], name: str, *, least: int = 0) -> int | None:
    value = keys.get(name)
    if value is None and name not in keys:
        return None
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(name)
    return value


def some_time(keys: dict[str, Any], name: str) -> int | None:
    return time_ns(keys[name]) if name in keys else None


def time_ns(text: str) -> int:
    """RFC 3339 with up to nine decimals. Without leap seconds: who needs one tests it elsewhere."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", text, re.ASCII)
    if match is None:
        raise ValueError(text)
    date, clock, decimals, zone = match.groups()
    moment = datetime.fromisoformat(f"{date}T{clock}{zone.upper().replace('Z', '+00:00')}")
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution * 1_000_000)
    return seconds * SECOND + int((decimals or "").ljust(9, "0"))


# ---------------------------------------------------------------- intervals


def pair(lines: Iterable[Line], *, until_ns: int, crash: str = "ended") -> list[Interval]:
    """All intervals, in the order of their starts."""
    intervals: list[Interval] = []
    open_ones: dict[tuple[str, str], Interval] = {}
    for line in each_once(lines):
        key = (line.kind, line.id)
        current = open_ones.get(key)
        if line.is_start:
            if current is not None:
                close(current, line, crash)
            open_ones[key] = Interval(line, None)
            intervals.append(open_ones[key])
        elif current is not None and fits(current.start, line):
            close(current, line, crash)
            del open_ones[key]
    for interval in open_ones.values():
        interval.length_ns = max(0, until_ns - interval.start.at)
    return intervals


def each_once(lines: Iterable[Line]) -> Iterator[Line]:
    """Without those whose seq was there before. All are one node's."""
    seen: set[int] = set()
    for line in lines:
        if line.seq is None:
            yield line
        elif line.seq not in seen:
            seen.add(line.seq)
            yield line


def fits(start: Line, stop: Line) -> bool:
    """Whether the stop may close what this start opened: it names it, or one of them has no name."""
    name = start.interval if start.interval is not None else start.seq
    return stop.interval is None or name is None or stop.interval == name


def close(interval: Interval, end: Line, crash: str) -> None:
    start = interval.start
    one_boot = start.boot_id != "" and start.boot_id == end.boot_id and None not in {start.uptime, end.uptime}
    wall = end.at - start.at
    if one_boot:
        assert start.uptime is not None
        assert end.uptime is not None
        whole, source = end.uptime - start.uptime, "uptime"
    else:
        whole, source = wall, "wall"
    length = whole
    if crash != "emitted" and end.ended_at is not None:
        if one_boot and end.ended_uptime is not None:
            assert start.uptime is not None
            length = end.ended_uptime - start.uptime
        else:
            length, source = end.ended_at - start.at, "wall"
    elif crash == "alive_until" and end.alive_until is not None:
        length, source = end.alive_until - start.at, "wall"
    interval.end = end
    interval.length_ns = min(max(length, 0), max(whole, 0))
    interval.length_from = source


# ---------------------------------------------------------------- usage


def usage(
    intervals: Iterable[Interval],
    *,
    by: Sequence[str] = ("vm_id",),
    since_ns: int | None = None,
    until_ns: int | None = None,
    every_ns: int | None = None,
) -> dict[tuple[Any, ...], Sums]:
    """Sums by (each of `by`, then the bucket's begin if there are buckets). Pair with the same `until_ns`."""
    rows: dict[tuple[Any, ...], Sums] = {}
    for interval in intervals:
        begin = interval.start.at
        end = begin + interval.length_ns
        low = begin if since_ns is None else max(begin, since_ns)
        high = end if until_ns is None else min(end, until_ns)
        if until_ns is not None and begin >= until_ns:
            continue
        if low >= high and not (interval.length_ns == 0 and low == begin):
            continue
        key = tuple(value_of(interval.start, part) for part in by)
        for bucket, length in pieces(low, max(low, high), every_ns):
            add(rows.setdefault(key if every_ns is None else (*key, bucket), Sums()), interval, length)
    return rows


def pieces(low: int, high: int, every: int | None) -> list[tuple[int, int]]:
    """The part of [low, high) in each bucket; of no length, the bucket that the instant lies in."""
    if every is None:
        return [(0, high - low)]
    first, last = low // every, max(low, high - 1) // every
    return [
        (number * every, min(high, (number + 1) * every) - max(low, number * every))
        for number in range(first, last + 1)
    ]


def value_of(start: Line, part: str) -> str | None:
    snapshot = start.kind == "snap.storage"
    match part:
        case "vm_id":
            return None if snapshot else start.id
        case "snapshot_id":
            return start.id if snapshot else None
        case "hypervisor":
            return start.hypervisor or None
        case "kind":
            return start.kind
        case "reason":
            return start.reason
    label, _, key = part.partition(":")
    assert label == "label", part
    return start.labels.get(key)


def add(sums: Sums, interval: Interval, length: int) -> None:
    start = interval.start
    if start.kind == "vm.compute":
        sums.vcpu_ns += length * start.cpu
        sums.mem_byte_ns += length * start.mem_bytes
    else:
        sums.storage_byte_ns += length * start.storage_bytes
    sums.intervals += 1
    sums.open += interval.open
