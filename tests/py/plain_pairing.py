"""The rules of docs/ledger.md once more, written to be read and not to be quick: what the C++ reader is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

KINDS = ("vm.compute.start", "vm.compute.stop", "vm.storage.start", "vm.storage.stop", "snap.storage.start",
         "snap.storage.stop")  # fmt: skip


def nanoseconds(text: str) -> int:
    whole, _, rest = text.partition(".")
    digits, zone = "", rest
    if rest:
        digits = "".join(c for c in rest[:9] if c.isdigit())
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :]
    else:
        whole, zone = text[:19], text[19:]
    at = datetime.fromisoformat(whole + ("+00:00" if zone in "Zz" else zone))
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 10**9 + int(digits.ljust(9, "0") or 0)


def entries(text: str) -> Iterator[dict[str, Any]]:
    """Whole lines that are entries; what else there is is passed over."""
    for line in text.split("\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("kind") in KINDS:
            yield entry


def pair(ledger: Iterable[dict[str, Any]], until_ns: int) -> list[dict[str, Any]]:
    """Intervals in the order of their starts."""
    intervals: list[dict[str, Any]] = []
    open_now: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for entry in ledger:
        kind, what = entry["kind"].rsplit(".", 1)
        key = (kind, entry.get("vm_id") or entry["snapshot_id"])
        if what == "start":
            if key in open_now:
                close(*open_now.pop(key), entry, stop=False)
            interval = {
                "id": key[1],
                "kind": kind,
                "hypervisor": entry.get("hypervisor") or None,
                **{name: entry["shape"].get(name, 0) for name in ("cpu", "mem_bytes", "storage_bytes")},
                "start_ns": nanoseconds(entry["emitted_at"]),
                "stop_ns": None,
                "start_reason": entry.get("reason"),
                "stop_reason": None,
                "length_ns": max(0, until_ns - nanoseconds(entry["emitted_at"])),
                "open": True,
                "length_from": "wall",
                "start_seq": entry.get("seq"),
                "stop_seq": None,
                "labels": entry.get("labels") or None,
            }
            intervals.append(interval)
            open_now[key] = (entry, interval)
        elif key in open_now:
            start, interval = open_now[key]
            name = start.get("interval", start.get("seq"))
            if "interval" in entry and name is not None and entry["interval"] != name:
                continue
            del open_now[key]
            close(start, interval, entry, stop=True)
    return intervals


def close(start: dict[str, Any], interval: dict[str, Any], end: dict[str, Any], *, stop: bool) -> None:
    interval["open"] = False
    interval["stop_ns"] = nanoseconds(end["emitted_at"])
    if stop:
        interval["stop_reason"] = end.get("reason")
        interval["stop_seq"] = end.get("seq")
    one_boot = start.get("boot_id") and start.get("boot_id") == end.get("boot_id")
    one_boot = one_boot and "uptime_ns" in start and "uptime_ns" in end
    wall = interval["stop_ns"] - interval["start_ns"]
    whole = end["uptime_ns"] - start["uptime_ns"] if one_boot else wall
    length, source = whole, "uptime" if one_boot else "wall"
    if "ended_at" in end:
        if one_boot and "ended_uptime_ns" in end:
            length = end["ended_uptime_ns"] - start["uptime_ns"]
        else:
            length, source = nanoseconds(end["ended_at"]) - interval["start_ns"], "wall"
    interval["length_ns"] = min(max(length, 0), max(whole, 0))
    interval["length_from"] = source
