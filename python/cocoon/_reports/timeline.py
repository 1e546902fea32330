"""``Ledger.timeline``: a picture of what ran when."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cocoon._core import Ledger
from cocoon.errors import InvalidArgument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_MARKS = 5000
_NEUTRAL = "#808891"  # reads on white and on black
_COLOURS = {"compute": "#2f81f7", "storage": "#9aa7b8", "snapshot": "#d29922"}
_NAMES = {"vm.compute": "compute", "vm.storage": "storage", "snap.storage": "snapshot"}
_OPACITY = {"compute": 1.0, "storage": 0.55, "snapshot": 1.0}
_CRASH = "#e5534b"
_CROSS = "M-1,-1L1,1M-1,1L1,-1"  # ✕


def timeline(
    ledger: Ledger, *, ids: Iterable[str] | None, since: datetime | None, until: datetime | None, most: int
) -> Any:
    """As ``Ledger.timeline``."""
    altair = _import_altair()
    if type(most) is not int or most < 1:
        raise InvalidArgument(f"most: {most!r}, allowed: an int of 1 or more")
    if isinstance(ids, str):
        raise InvalidArgument(f"ids: {ids!r}, allowed: a sequence of ids")
    asked = None if ids is None else list(dict.fromkeys(ids))
    now = datetime.now(UTC)
    chosen, known = _choose(ledger, asked, since, until or now, most)
    low, high = _ns(since), _ns(until or now)
    intervals = [
        row
        for row in ledger._intervals_of(chosen, until or now)
        if (high is None or row["start_ns"] < high) and (low is None or row["start_ns"] + row["length_ns"] >= low)
    ]
    kept = _within_limit(intervals, chosen)
    intervals = [row for row in intervals if row["id"] in kept]
    vms = len({row["id"] for row in intervals if row["kind"] != "snap.storage"})
    snapshots = len({row["id"] for row in intervals if row["kind"] == "snap.storage"})
    title = f"{vms:,} VMs, {snapshots:,} snapshots"
    if asked is None and vms < known:
        title = f"{vms:,} of {known:,} VMs, those that used most; {snapshots:,} snapshots"
    return _chart(altair, intervals, low, title)


def _import_altair() -> Any:
    try:
        import altair  # noqa: ICN001 - handed out under its own name
    except ImportError as error:
        raise ImportError(
            "a timeline needs Altair, which is not installed: pip install 'cocoon-vm[notebook]'", name="altair"
        ) from error
    return altair


def _choose(
    ledger: Ledger, asked: list[str] | None, since: datetime | None, until: datetime, most: int
) -> tuple[list[str], int]:
    """Ids of rows, the greatest users first, and how many there are in all."""
    if asked is not None:
        return asked, len(asked)
    rows = ledger.usage(by=("vm_id", "snapshot_id"), since=since, until=until).to_pylist()
    vms = [row for row in rows if row["vm_id"] is not None]
    snapshots = [row for row in rows if row["snapshot_id"] is not None]
    vms.sort(key=lambda row: (-row["vcpu_seconds"], -row["storage_byte_seconds"], row["vm_id"]))
    chosen = [row["vm_id"] for row in vms[:most]]
    # Of the snapshots, those that the chosen VMs came from.
    sources = {row["source_snapshot_id"] for row in ledger._intervals_of(chosen, until)}
    wanted = [row["snapshot_id"] for row in snapshots if row["snapshot_id"] in sources]
    return chosen + wanted[:most], len(vms)


def _within_limit(intervals: list[dict[str, Any]], chosen: list[str]) -> set[str]:
    """The first of the chosen that together have no more marks than a browser draws at ease; at least one."""
    counts = dict.fromkeys(chosen, 0)
    for row in intervals:
        counts[row["id"]] += 1
    kept: set[str] = set()
    marks = 0
    for identity, count in counts.items():
        marks += count
        if count and (marks <= _MOST_MARKS or not kept):
            kept.add(identity)
    return kept


def _ns(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _time(ns: int) -> str:
    return (_EPOCH + timedelta(microseconds=ns // 1000)).isoformat()


def _length(ns: int) -> str:
    return str(timedelta(seconds=round(ns / 1e9))) if ns >= 10_000_000_000 else f"{ns / 1e9:.3f} s"


def _size(count: int) -> str:
    return f"{count / (1 << 30):g} GiB" if count else ""


def _row(row: dict[str, Any], low: int | None) -> dict[str, Any]:
    end = row["start_ns"] + row["length_ns"]
    begin = row["start_ns"] if low is None else max(row["start_ns"], low)
    return {
        "row": _label(row),
        "id": row["id"],
        "what": _NAMES[row["kind"]],
        "begin": _time(begin),
        "end": _time(end),
        "start": _time(row["start_ns"]),
        "stop": "(open)" if row["open"] else _time(end),
        "length": _length(row["length_ns"]),
        "why": f"{row['start_reason'] or '?'} … {'(open)' if row['open'] else row['stop_reason'] or '?'}",
        "shape": ", ".join(
            part
            for part in (
                f"{row['cpu']} vCPU" if row["cpu"] else "",
                _size(row["mem_bytes"]),
                _size(row["storage_bytes"]),
            )
            if part
        ),
        "hypervisor": row["hypervisor"],
        "labels": ", ".join(f"{key}={value}" for key, value in row["labels"].items()),
    }


def _label(row: dict[str, Any]) -> str:
    short: str = row["id"][:10]
    return f"snapshot {short}" if row["kind"] == "snap.storage" else short


def _links(intervals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From a snapshot's row to the VM that came of it, at that moment."""
    snapshots = {row["id"]: _label(row) for row in intervals if row["kind"] == "snap.storage"}
    links = []
    for row in intervals:
        source = row["source_snapshot_id"]
        if row["kind"] == "vm.compute" and source in snapshots:
            link = {"link": f"{source} {row['start_ns']}", "at": _time(row["start_ns"]), "why": row["start_reason"]}
            names = {"snapshot": source, "vm": row["id"]}
            links += [link | names | {"row": snapshots[source]}, link | names | {"row": _label(row)}]
    return links


def _order(intervals: list[dict[str, Any]]) -> list[str]:
    """Rows by their first start; a snapshot's under the row before it in time."""
    first: dict[str, int] = {}
    for row in intervals:
        first.setdefault(_label(row), row["start_ns"])
    return sorted(first, key=lambda label: first[label])


def _chart(altair: Any, intervals: list[dict[str, Any]], low: int | None, title: str) -> Any:
    bars = [_row(row, low) for row in intervals]
    crashes = [
        bar for bar, row in zip(bars, intervals, strict=True) if row["stop_reason"] == "stop-crash" and not row["open"]
    ]
    going_on = [bar for bar, row in zip(bars, intervals, strict=True) if row["open"] and row["kind"] == "vm.compute"]
    links = _links(intervals)
    y = altair.Y("row:N", sort=_order(intervals), title=None, axis=altair.Axis(labelLimit=160, ticks=False))
    tooltip = [
        altair.Tooltip(f"{name}:N", title=name)
        for name in ("id", "what", "why", "start", "stop", "length", "shape", "hypervisor", "labels")
    ]
    only = altair.selection_point(fields=["what"], bind="legend")
    zoom = altair.selection_interval(bind="scales", encodings=["x"])

    def of(rows: list[dict[str, Any]]) -> Any:
        return altair.Chart(altair.Data(values=rows))

    def bar(what: str, size: int) -> Any:
        return (
            of([one for one in bars if one["what"] == what])
            .mark_bar(height=size, cornerRadius=2)
            .encode(
                x=altair.X("begin:T", title="UTC", scale=altair.Scale(type="utc", padding=10, nice=False)),
                x2="end:T",
                y=y,
                color=altair.Color(
                    "what:N",
                    title=None,
                    scale=altair.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
                ),
                opacity=altair.condition(only, altair.value(_OPACITY[what]), altair.value(0.12)),
                tooltip=tooltip,
            )
        )

    def mark(rows: list[dict[str, Any]], colour: str, **look: Any) -> Any:
        return of(rows).mark_point(color=colour, opacity=1, **look).encode(x="end:T", y=y, tooltip=tooltip)

    lines = (
        of(links)
        .mark_line(
            color=_COLOURS["snapshot"],
            strokeWidth=1.2,
            strokeDash=[3, 2],
            point={"size": 20, "filled": True, "color": _COLOURS["snapshot"]},
        )
        .encode(
            x="at:T",
            y=y,
            detail="link:N",
            tooltip=[altair.Tooltip(f"{name}:N", title=name) for name in ("why", "snapshot", "vm", "at")],
        )
    )
    layers = [
        bar("storage", 14).add_params(only, zoom),
        bar("snapshot", 6),
        bar("compute", 8),
        lines,
        mark(going_on, _COLOURS["compute"], shape="triangle-right", size=60, filled=True, xOffset=6),
        mark(crashes, _CRASH, shape=_CROSS, size=60, filled=False, strokeWidth=2.5),
    ]
    return (
        altair.layer(*layers)
        .properties(
            width=760,
            height=altair.Step(20),
            title=altair.Title(
                title, subtitle="cross: crashed; arrow: goes on; dashes: cloned, restored or woken from a snapshot"
            ),
        )
        .configure(background="transparent")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_NEUTRAL,
            titleColor=_NEUTRAL,
            domainColor=_NEUTRAL,
            tickColor=_NEUTRAL,
            gridColor=_NEUTRAL,
            gridOpacity=0.2,
        )
        .configure_axisY(labelFont="monospace", domain=False)
        .configure_legend(labelColor=_NEUTRAL, orient="top", direction="horizontal", symbolOpacity=1)
        .configure_title(
            color=_NEUTRAL,
            subtitleColor=_NEUTRAL,
            anchor="start",
            fontSize=12,
            subtitleFontSize=11,
            fontWeight="normal",
        )
    )
