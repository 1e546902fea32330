"""What notebooks show: HTML of ledgers and reports, and the timeline."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cocoon import Entry, InvalidArgument, Ledger, Node, Shape, VMConfig
from cocoon.testing.ledgers import generate

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
UNTIL = BEGIN + timedelta(days=40)
EVIL = "<script>alert('x')</script>&\"\x1b[31m\u202e"


class Checker(HTMLParser):
    """Collects tags, and whether each that was opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(shown: Any) -> str:
    html = shown._repr_html_()
    assert isinstance(html, str)
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.tags <= {"style", "div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert checker.attributes <= {"class"}
    assert len(html) < 60_000, "bounded, whatever there is to show"
    assert not re.search(r"(?<![-\w])(?:color|background):\s*(?:#|white|black)", html), "the notebook's own colours"
    return html


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reports") / "ledger.jsonl"
    generate(path, 4000, seed=2, faults=4)
    return path


def write(path: Path, *entries: Entry) -> Path:
    path.write_text("".join(entry.to_json() + "\n" for entry in entries))
    return path


# ---------------------------------------------------------------- HTML


def test_everything_shown_is_well_formed_and_bounded(generated: Path) -> None:
    ledger = Ledger(generated)
    assert "✗ audit: 4,000 entries, 61 findings" in checked(ledger)
    assert "30 of 61 findings" in checked(ledger.audit())
    assert "30 of 4,000 rows" in checked(ledger.entries())
    checked(ledger.intervals())
    assert re.search(r'class="num">[\d,]+\.\d{3}<', checked(ledger.usage()))


def test_a_ledger_says_what_ran_how_much_it_adds_up_to_and_whether_it_is_in_order(tmp_path: Path) -> None:
    shape = Shape(cpu=2, mem_bytes=1 << 30, storage_bytes=4 << 30)
    script = [
        ("vm.storage.start", 0, 1),
        ("vm.compute.start", 0, 2),
        ("vm.compute.stop", 3, 2),
        ("vm.storage.stop", 5, 1),
    ]
    path = write(
        tmp_path / "ledger.jsonl",
        *(
            Entry(kind, vm_id="v1", hypervisor="qemu", shape=shape, emitted_at=BEGIN + timedelta(hours=hours),
                  seq=seq, interval=interval)
            for seq, (kind, hours, interval) in enumerate(script, 1)
        ),
    )  # fmt: skip
    html = checked(Ledger(path))
    assert "4 entries, 1 VMs: 1 runs, of which 0 go on" in html
    assert "✓ audit: 4 entries, nothing found" in html
    total = re.search(r"<td>all</td>(.*?)</tr>", html)
    assert total is not None
    assert re.findall(r">([\d.]+)<", total[1]) == ["6.000", "3.000", "20.000", "2", "0"]


def test_an_empty_and_a_missing_ledger(tmp_path: Path) -> None:
    assert "0 entries, 0 VMs" in checked(Ledger(write(tmp_path / "empty.jsonl")))
    assert "none.jsonl" in checked(Ledger(tmp_path / "none.jsonl"))
    checked(Ledger(tmp_path / "empty.jsonl").usage())


def test_nothing_of_a_ledger_gets_out_of_its_cell(tmp_path: Path) -> None:
    entry = Entry(
        "vm.compute.start", vm_id=EVIL, hypervisor=EVIL, source_snapshot_id=EVIL, labels={EVIL: EVIL},
        emitted_at=BEGIN, seq=1, interval=1,
    )  # fmt: skip
    path = write(tmp_path / "<b>.jsonl", entry)
    with path.open("a") as file:
        file.write('<img src=x onerror="x">\n')
    ledger = Ledger(path)
    for shown in (ledger, ledger.entries(), ledger.intervals(), ledger.usage(by=("vm_id", "label:x")), ledger.audit()):
        html = checked(shown)
        assert "\x1b" not in html
        assert "\u202e" not in html
        assert "&lt;" in html


def test_reconcile_in_html(tmp_root: Path) -> None:
    with Node(tmp_root) as node:
        assert "no VMs" in checked(node.reconcile())
        backend = node.backend("qemu")
        for name in ("a", "b"):
            backend.create(VMConfig(name, storage=0, machine="q35"))
        backend.mark_started("b")
        html = checked(node.reconcile())
        assert "✗ reconcile" in html
        assert "1 open-but-process-dead, 1 ok" in html
        assert html.index(">b<") < html.index(">a<"), "what does not agree comes first"
        assert "✓ reconcile: 1 put right" in checked(node.reconcile(fix=True))
        assert "✓ reconcile: records, ledger and processes agree" in checked(node.reconcile())


# ---------------------------------------------------------------- timeline

altair = pytest.importorskip("altair")


def layers(chart: Any) -> list[list[dict[str, Any]]]:
    document = chart.to_dict()
    return [layer["data"]["values"] if "values" in layer["data"] else document["datasets"][layer["data"]["name"]]
            for layer in document["layer"]]  # fmt: skip


def test_a_timeline_has_what_the_intervals_have(generated: Path) -> None:
    ledger = Ledger(generated)
    everything = ledger.timeline(until=UNTIL, most=10_000)
    storage, snapshots, compute, links, going_on, crashes = layers(everything)
    rows = ledger.intervals(until=UNTIL).to_pylist()

    def count(kind: str, **wanted: Any) -> int:
        return sum(row["kind"] == kind and all(row[k] == v for k, v in wanted.items()) for row in rows)

    assert (len(storage), len(compute)) == (count("vm.storage"), count("vm.compute"))
    assert len(crashes) == count("vm.compute", stop_reason="stop-crash") > 10
    assert len(going_on) == count("vm.compute", open=True) > 0
    sources = {row["source_snapshot_id"] for row in rows if row["source_snapshot_id"]}
    assert {bar["id"] for bar in snapshots} == sources & {row["id"] for row in rows if row["kind"] == "snap.storage"}
    assert len(links) > 20
    ends = {link["row"] for link in links}
    assert ends <= {bar["row"] for bar in [*snapshots, *compute]}
    json.dumps(everything.to_dict())


def test_a_timeline_of_some_ids_in_a_window(generated: Path) -> None:
    ledger = Ledger(generated)
    rows = [row for row in ledger.intervals(until=UNTIL).to_pylist() if row["kind"] == "vm.compute"]
    chosen = rows[len(rows) // 2]
    since, until = chosen["start"] - timedelta(minutes=1), chosen["start"] + timedelta(minutes=1)
    _, _, compute, *_ = layers(ledger.timeline(ids=[chosen["id"]], since=since, until=until))
    assert {bar["id"] for bar in compute} == {chosen["id"]}
    assert all(bar["begin"] < until.isoformat() and bar["end"] >= since.isoformat() for bar in compute)
    assert layers(ledger.timeline(ids=[], until=UNTIL)) == [[]] * 6
    assert layers(ledger.timeline(ids=["none"], until=UNTIL)) == [[]] * 6


def test_a_timeline_of_a_large_ledger_is_small(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    generate(path, 30_000, vms=20)
    chart = Ledger(path).timeline(until=UNTIL, most=1000)
    bars = layers(chart)
    assert 1000 < sum(len(layer) for layer in bars[:3]) <= 5000
    assert re.search(r"\d+ of [\d,]+ VMs", str(chart.to_dict()["title"]))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_timeline_is_saved_as_a_picture(generated: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("vl_convert")
    target = tmp_path / f"timeline.{kind}"
    Ledger(generated).timeline(until=UNTIL, most=5).save(str(target))
    if kind == "png":
        assert target.read_bytes().startswith(b"\x89PNG")
        assert target.stat().st_size > 10_000
    else:
        assert ET.parse(target).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"most": 0}, "most"),
        ({"most": 1.5}, "most"),
        ({"ids": "abc"}, "ids"),
        ({"ids": [1]}, "ids"),
        ({"since": 5}, "since"),
    ],
)
def test_mistakes_of_a_timeline_are_named(generated: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Ledger(generated).timeline(**options)


def test_without_altair_the_error_says_what_to_install(generated: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['altair'] = None\n"
        "from cocoon import Ledger\n"
        "try: Ledger(sys.argv[1]).timeline()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(generated)], capture_output=True, text=True, check=True)
    assert "pip install 'cocoon-vm[notebook]'" in done.stdout
