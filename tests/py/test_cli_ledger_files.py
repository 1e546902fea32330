"""`cocoon ledger tail` and `export`, and what the listings of ledgers have in common."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cli_harness import COMMAND, Cli, terminal
from cocoon import Entry, FileRecorder, Ledger, Node, VMConfig
from cocoon.testing.ledgers import generate


@pytest.fixture
def cli(tmp_root: Path) -> Cli:
    return Cli(tmp_root)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    generate(path, 300, seed=1)
    return path


def test_quiet_lists_each_id_once(cli: Cli, ledger: Path) -> None:
    entries = list(Ledger(ledger))
    ids = list(dict.fromkeys(entry.vm_id or entry.snapshot_id for entry in entries))
    assert cli.ok("ledger", "show", ledger, "-q").out.splitlines() == ids
    assert cli.ok("ledger", "intervals", ledger, "--quiet").out.splitlines() == ids


def test_intervals_are_cut_by_time(cli: Cli, ledger: Path) -> None:
    rows = cli.ok("ledger", "intervals", ledger, "--json").json()
    middle = rows[len(rows) // 2]["start"]
    before = cli.ok("ledger", "intervals", ledger, "--json", "--until", middle).json()
    after = cli.ok("ledger", "intervals", ledger, "--json", "--since", middle).json()
    assert 0 < len(before) < len(rows)
    assert all(row["start"] < middle for row in before)
    assert 0 < len(after) < len(rows)
    assert all(row["open"] or row["stop"] >= middle for row in after)


def test_tail_prints_the_last_entries(cli: Cli, ledger: Path) -> None:
    lines = ledger.read_text().splitlines()
    assert cli.ok("ledger", "tail", ledger, "--json").out.splitlines() == lines[-10:]
    assert cli.ok("ledger", "tail", ledger, "--json", "-n", "3").out.splitlines() == lines[-3:]
    assert cli.ok("ledger", "tail", ledger, "-n", "0").out == ""
    human = cli.ok("ledger", "tail", ledger, "-n", "2").out.splitlines()
    assert [line.split()[0] for line in human] == ["299", "300"]


def test_tail_follows_a_ledger_as_it_grows(cli: Cli, ledger: Path) -> None:
    process = cli.start("ledger", "tail", "-f", "-n", "1", "--json", ledger, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["seq"] == 300
        recorder = FileRecorder(ledger)
        for seq in (301, 302):
            recorder.emit(Entry("vm.storage.start", vm_id=f"new-{seq}", seq=seq, interval=seq))
            assert json.loads(process.stdout.readline())["vm_id"] == f"new-{seq}"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        process.stdout.close()


@pytest.mark.parametrize("name", ["csv", "jsonl", "focus", "cloudevents", "parquet"])
def test_export_to_a_file_and_to_stdout_are_the_same(cli: Cli, ledger: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "out"
    said = cli("ledger", "export", ledger, "--format", name, "-o", target)
    assert said.code == 0
    assert said.err.endswith(f"rows written to {target}\n")
    piped = subprocess.run(
        [*COMMAND, "ledger", "export", str(ledger), "--format", name],
        env=cli.environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert piped.stdout == target.read_bytes()
    assert piped.stderr == b""


def test_the_format_is_as_the_file_ends(cli: Cli, ledger: Path, tmp_path: Path) -> None:
    cli("ledger", "export", ledger, "-o", tmp_path / "out.jsonl", "--since-seq", "11", "--until-seq", "20")
    assert (tmp_path / "out.jsonl").read_text().splitlines() == ledger.read_text().splitlines()[10:20]
    cli("ledger", "export", ledger, "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("seq,kind,")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--format"),
        (("--format", "xml"), "xml"),
        (("--format", "csv", "--since-seq", "0"), "--since-seq"),
        (("--format", "csv", "--since-seq", "9", "--until-seq", "3"), "until_seq"),
        (("--format", "focus", "--every", "7m"), "every"),
        (("--format", "focus", "--node-id", "a b"), "node_id"),
    ],
)
def test_mistakes_of_export_are_named(cli: Cli, ledger: Path, options: tuple[str, ...], says: str) -> None:
    ran = cli("ledger", "export", ledger, *options)
    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""


def test_export_without_its_extra_says_what_to_install(cli: Cli, ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError('not here')")
    ran = cli(
        "ledger", "export", ledger, "--format", "parquet", "-o", tmp_path / "out", env={"PYTHONPATH": str(tmp_path)}
    )
    assert ran.code == 1
    assert "pip install 'cocoon-vm[parquet]'" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_terminal_gets_tables_with_colours_and_no_parquet(cli: Cli, ledger: Path) -> None:
    with terminal(cli, "ledger", "usage", ledger, "--by", "hypervisor") as shown:
        assert shown.finish() == 0
        assert b"\x1b[1m" in shown.shown
        assert b"VCPU-SECONDS" in shown.shown
    with terminal(cli, "ledger", "export", ledger, "--format", "parquet") as shown:
        assert shown.finish() == 2


def test_export_of_the_nodes_own_ledger_names_the_node(cli: Cli) -> None:
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
        name = node.id
    event = json.loads(cli.ok("ledger", "export", "--format", "cloudevents").out)
    assert event["id"] == f"{name}/1"


def test_rotate_packs_the_nodes_ledger_into_a_part(cli: Cli) -> None:
    missing = cli("ledger", "rotate")
    assert (missing.code, missing.out) == (1, "")
    assert "holds no node yet" in missing.err
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
    part = cli.root / "metering" / "ledger.1-1.jsonl.zst"
    assert cli.ok("ledger", "rotate", "--json").json() == {"part": str(part)}
    assert part.is_file()
    assert cli.ok("ledger", "rotate", "--json").json() == {"part": None}
    assert "no entries" in cli.ok("ledger", "rotate").err + cli.ok("ledger", "rotate").out
    assert [row["seq"] for row in cli.ok("ledger", "show", "--json").json()] == [1], "the part is read too"


def test_the_configuration_rotates_a_ledger_that_is_long_enough(cli: Cli) -> None:
    with Node(cli.root) as node:
        node.backend("qemu").create(VMConfig("a", storage=0, machine="q35"))
        node.backend("qemu").create(VMConfig("b", storage=0, machine="q35"))
    (cli.root / "config.toml").write_text('[ledger]\nrotate_bytes = "0.25K"\n')
    cli.ok("vm", "rm", "a")
    parts = list((cli.root / "metering").glob("ledger.1-*.jsonl.zst"))
    assert len(parts) == 1
    assert [row["seq"] for row in cli.ok("ledger", "show", "--json").json()] == [1, 2, 3]
