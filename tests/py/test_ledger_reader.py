"""The reader against others: the reference in Python, DuckDB's windows, and whoever reads Arrow."""

from __future__ import annotations

import gc
import gzip
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ledger_reference as reference
from cocoon import Ledger, LedgerError, Table, _core

DATA = Path(__file__).parents[1] / "data" / "go-engine"
TIMES = ("start", "stop", "ended_at", "alive_until")
UNTIL = datetime(2027, 1, 1, tzinfo=UTC)
UNTIL_NS = int(UNTIL.timestamp()) * 10**9
KINDS = [f"{kind}.{edge}" for kind in sorted(reference.KINDS) for edge in ("start", "stop")]


def line(kind: str, vm_id: str, second: float, **more: Any) -> str:
    at = f"2026-03-01T{int(second) // 3600:02}:{int(second) // 60 % 60:02}:{second % 60:06.3f}Z"
    ids = {"vm_id": vm_id} if kind.startswith("vm.") else {"snapshot_id": vm_id}
    shape = {"cpu": 2, "mem_bytes": 1 << 30} if "compute" in kind else {"storage_bytes": 5 << 30}
    return json.dumps(
        {"kind": kind, **ids, "hypervisor": "qemu", "shape": shape, "emitted_at": at, **more}, separators=(",", ":")
    )


def node_ledger(entries: int, seed: int) -> str:
    """VMs that come, run, crash and go, as a node writes it."""
    chance = random.Random(seed)
    lines: list[str] = []
    opened: dict[tuple[str, str], int] = {}
    for seq in range(1, entries + 1):
        vm, kind = f"vm-{chance.randrange(20)}", chance.choice(("vm.compute", "vm.storage"))
        more: dict[str, Any] = {"seq": seq}
        start = (vm, kind) not in opened
        more["interval"] = seq if start else opened.pop((vm, kind))
        if start:
            opened[vm, kind] = seq
            more["labels"] = {"tenant": chance.choice("ab")}
        lines.append(
            line(f"{kind}.{'start' if start else 'stop'}", vm, seq * 0.25, **more, boot_id="0a1b2c3d",
                 uptime_ns=seq * 250_000_000, reason="restart" if start else "stop-user")
        )  # fmt: skip
    return "".join(one + "\n" for one in lines)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    path.write_text(node_ledger(3000, 1))
    return path


def rows(table: Table) -> list[dict[str, Any]]:
    """With times in nanoseconds, as the reference has them."""
    frame = pa.table(table)
    columns = {name: frame.column(name).to_pylist() for name in frame.column_names if name not in TIMES}
    for name in TIMES:
        columns[name] = frame.column(name).cast(pa.int64()).to_pylist()
    columns["labels"] = [None if pairs is None else dict(pairs) for pairs in columns["labels"]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def plain(path: Path) -> list[dict[str, Any]]:
    return [one.row() for one in reference.pair(reference.read(path), until_ns=UNTIL_NS)]


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("name", ["vms.ledger.jsonl", "snapshots.ledger.jsonl"])
def test_the_other_engines_ledgers_pair_as_in_plain_python(name: str) -> None:
    assert rows(Ledger(DATA / name).intervals(until=UNTIL)) == plain(DATA / name)


def test_a_nodes_ledger_pairs_as_in_plain_python(path: Path) -> None:
    expected = plain(path)
    assert rows(Ledger(path).intervals(until=UNTIL)) == expected
    assert len(expected) > 1000


IDS = st.sampled_from(["a", "b"])
ENTRY = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS), "id": IDS, "at": st.integers(0, 10**5)},
    optional={
        "interval": st.integers(1, 30),
        "boot_id": st.sampled_from(["0a1b2c3d", "11111111"]),
        "uptime_ns": st.integers(0, 10**15),
        "ended_at": st.integers(0, 10**5),
        "ended_uptime_ns": st.integers(0, 10**15),
        "reason": st.sampled_from(["boot", "stop-crash", "relabel"]),
        "labels": st.dictionaries(st.text('kü"<', min_size=1, max_size=2), st.text("v\\\n", max_size=2), max_size=2),
    },
)
DAMAGE = st.sampled_from(["", "garbage\n", "{\n", "\n", '{"kind":"vm.compute.pause"}\n', "repeat", "first", "\0\0\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ENTRY, DAMAGE, st.booleans()), max_size=30), st.booleans())
def test_any_interleaving_pairs_as_in_plain_python(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[dict[str, Any], str, bool]], torn: bool
) -> None:
    text = ""
    for seq, (entry, damage, spaced) in enumerate(made, start=1):
        kept = ("interval", "boot_id", "uptime_ns", "ended_uptime_ns", "reason", "labels")
        more: dict[str, Any] = {name: entry[name] for name in kept if name in entry}
        if "ended_at" in entry:
            more["ended_at"] = json.loads(line("vm.compute.stop", "x", entry["ended_at"] / 1000))["emitted_at"]
        one = line(entry["kind"], entry["id"], entry["at"] / 1000, seq=seq, **more)
        if spaced:
            one = json.dumps(json.loads(one), indent=None, separators=(" , ", " : "), sort_keys=True)
        again = {"repeat": one + "\n", "first": text[: text.find("\n") + 1]}  # at once, and late
        text += one + "\n" + again.get(damage, damage)
    text += '{"kind":"vm.compute.start"' if torn else ""
    path = tmp_path_factory.mktemp("any") / "ledger.jsonl"
    path.write_text(text)
    assert rows(Ledger(path).intervals(until=UNTIL)) == plain(path)


def test_duckdb_pairs_alike(path: Path) -> None:
    ours = pa.table(Ledger(path).intervals(until=UNTIL))  # noqa: F841 - DuckDB finds it by its name
    both = duckdb.execute(f"""
        with paired as (
          select vm_id as id, seq as start_seq, kind, lead(seq) over w as stop_seq,
                 lead(uptime_ns) over w - uptime_ns as length_ns
          from read_json('{path}', format = 'newline_delimited')
          window w as (partition by vm_id, split_part(kind, '.', 2) order by seq))
        select count(*), count(*) filter (ours.length_ns = paired.length_ns and ours.stop_seq = paired.stop_seq),
               (select count(*) from ours where not open)
        from paired join ours using (start_seq, id) where paired.kind like '%.start' and paired.stop_seq is not null
    """).fetchall()[0]
    assert both[0] == both[1] == both[2] > 1000


# ---------------------------------------------------------------- Arrow


def test_everybody_takes_the_same_from_arrow(path: Path) -> None:
    table = Ledger(path).intervals(until=UNTIL)
    arrow = pa.table(table)
    arrow.validate(full=True)
    polars = pl.DataFrame(table)
    pandas = arrow.to_pandas()
    for name in ("id", "kind", "length_ns", "open", "start_seq", "stop_seq"):
        plain = [row[name] for row in table.to_pylist()]
        assert arrow.column(name).to_pylist() == plain
        assert polars[name].to_list() == plain
        assert [None if pd.isna(value) else value for value in pandas[name]] == plain
    assert polars.schema["start"] == pl.Datetime("ns", "UTC")
    assert str(pandas["start"].dtype) == "datetime64[ns, UTC]"
    assert arrow.column("labels").type == pa.map_(pa.string(), pa.string(), keys_sorted=True)
    total = duckdb.execute("select sum(length_ns), count(*) from arrow").fetchall()[0]
    assert total == (sum(row["length_ns"] for row in table.to_pylist()), len(table))


@pytest.mark.parametrize("what", ["entries", "intervals", "usage"])
def test_every_table_is_valid_arrow_also_when_empty(path: Path, tmp_path: Path, what: str) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for ledger in (Ledger(path), Ledger(empty)):
        table = getattr(ledger, what)()
        arrow = pa.table(table)
        arrow.validate(full=True)
        assert arrow.num_rows == len(table)
        assert arrow.column_names == table.column_names
        assert pl.DataFrame(table).height == len(table)


def test_arrays_outlive_table_and_ledger_and_are_released_once(path: Path) -> None:
    gc.collect()
    before = _core._arrow_exports()
    ids = [row["id"] for row in Ledger(path).intervals().to_pylist()]
    column = pa.table(Ledger(path).intervals()).column("id")
    gc.collect()
    assert _core._arrow_exports() > before
    assert column.to_pylist() == ids
    del column
    capsule = Ledger(path).intervals().__arrow_c_stream__()
    del capsule  # taken by nobody
    gc.collect()
    assert _core._arrow_exports() == before


# ---------------------------------------------------------------- packed, checkpoints


def test_packed_ledgers_read_alike(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(Ledger(packed).intervals(until=UNTIL)) == rows(Ledger(path).intervals(until=UNTIL))
    assert [one.seq for one in Ledger(packed)] == list(range(1, 3001))
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(LedgerError, match=r"packed\.jsonl\.gz.*cut off") as caught:
        Ledger(packed).audit()
    assert caught.value.path == str(packed)


def test_a_checkpoint_gives_the_answer_of_a_whole_reading(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    checkpoint = tmp_path / "usage.checkpoint"
    for count in (0, 1000, 1000, 2999, 3000, 500):
        path.write_text("".join(lines[:count])) if count == 500 else path.open("a").close()
        if count > 500:
            have = path.read_text().count("\n")
            with path.open("a") as file:
                file.write("".join(lines[have:count]))
        ledger = Ledger(path)
        assert ledger.usage(until=UNTIL, checkpoint=checkpoint).to_pylist() == ledger.usage(until=UNTIL).to_pylist()
