"""`cocoon snapshot` and `cocoon gc`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cli_harness import COMMAND, Cli, terminal
from cocoon import Node
from snapshot_support import check_store, contents, data_folder, sparse_file


@pytest.fixture
def cli(tmp_root: Path, tmp_path: Path) -> Cli:
    data = data_folder(tmp_path / "data")
    with Node(tmp_root) as node:
        node.snapshots.create(data, name="base", description="a test's", hypervisor="qemu", cpu=2, memory="512M")
    return Cli(tmp_root)


def test_list_and_inspect(cli: Cli, tmp_root: Path, tmp_path: Path) -> None:
    (listed,) = cli.ok("snapshot", "list", "--json").json()
    assert (listed["name"], listed["cpu"], listed["memory"], listed["kept"]) == ("base", 2, 512 << 20, False)
    head, row = cli.ok("snapshot", "list").out.splitlines()
    assert head.split() == ["NAME", "ID", "HYPERVISOR", "CPU", "MEMORY", "SIZE", "CREATED", "DESCRIPTION"]
    assert row.split()[:6] == ["base", listed["id"][:12], "qemu", "2", "512M", "12M"]
    assert cli.ok("snapshot", "list", "-q").out == listed["id"] + "\n"
    assert cli.ok("snapshot", "inspect", "base", "--json").json() == listed
    shown = cli.ok("snapshot", "inspect", listed["id"][:6]).out
    assert f"folder:        {tmp_root}/snapshots/{listed['id']}" in shown
    empty = Cli(tmp_path / "other")
    assert empty.ok("snapshot", "list", "--json").json() == []
    assert empty.ok("snapshot", "list", "-q").out == ""


def test_export_and_import(cli: Cli, tmp_root: Path, tmp_path: Path) -> None:
    data = contents(tmp_path / "data")
    for name in ("a.tar", "a.tgz", "a.tar.zst"):
        said = cli.ok("snapshot", "export", "base", "-o", tmp_path / name).out
        assert said.startswith(f"exported base to {tmp_path / name} (")
        made = cli.ok("snapshot", "import", tmp_path / name, "--name", f"of-{name}", "-q").out.strip()
        with Node(tmp_root) as node:
            assert contents(node.snapshots.data_dir(made)) == data
    assert (tmp_path / "a.tgz").read_bytes()[:2] == b"\x1f\x8b"
    document = cli.ok("snapshot", "export", "base", "--dir", tmp_path / "dir", "--json").json()
    assert document["path"] == str(tmp_path / "dir")
    imported = cli.ok("snapshot", "import", tmp_path / "dir", "--name", "x", "--description", "y", "--json").json()
    assert (imported["name"], imported["description"]) == ("x", "y")
    done = subprocess.run(
        [*COMMAND, "snapshot", "export", "base"], cwd=tmp_path, env=cli.environment(), check=True, capture_output=True
    )
    assert b"base.tar" in done.stdout
    assert (tmp_path / "base.tar").exists()


def test_a_snapshot_through_a_pipe(cli: Cli, tmp_root: Path, tmp_path: Path) -> None:
    packed = subprocess.run(
        [*COMMAND, "snapshot", "export", "base", "-o", "-", "--compress", "zstd"],
        env=cli.environment(), check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert packed[:4] == b"\x28\xb5\x2f\xfd"
    ran = cli("snapshot", "import", "-", "--name", "piped", stdin=packed)
    assert (ran.code, ran.err) == (0, "")
    with Node(tmp_root) as node:
        assert contents(node.snapshots.data_dir("piped")) == contents(tmp_path / "data")


def test_errors_and_their_exit_codes(cli: Cli, tmp_path: Path, tmp_root: Path) -> None:
    (tmp_path / "evil.tar").write_bytes(b"x" * 5000)
    cli.ok("snapshot", "export", "base", "-o", tmp_path / "a.tar")
    for code, words, args in (
        (3, "unknown: not found", ("inspect", "unknown")),
        (3, "unknown", ("rm", "base", "unknown")),
        (4, "taken", ("import", tmp_path / "a.tar")),
        (1, "evil.tar", ("import", tmp_path / "evil.tar")),
        (1, "No such file", ("import", tmp_path / "absent")),
        (2, "--compress", ("export", "base", "-o", tmp_path / "b.tar", "--compress", "xz")),
        (2, "--dir", ("export", "base", "--dir", tmp_path / "d", "-o", "x")),
        (2, "not empty", ("export", "base", "--dir", tmp_path)),
    ):
        ran = cli("snapshot", *args)
        assert (ran.code, words in ran.err, ran.out) == (code, True, ""), (args, ran)
        assert ran.err.startswith("error: ")
        assert len(ran.err.splitlines()) <= 2
    assert "cocoon snapshot list" in cli("snapshot", "inspect", "unknown").err
    assert "cocoon snapshot rm" in cli("snapshot", "import", tmp_path / "a.tar").err
    assert len(cli.ok("snapshot", "list", "-q").out.splitlines()) == 1


def test_rm(cli: Cli, tmp_root: Path, tmp_path: Path) -> None:
    cli.ok("snapshot", "export", "base", "-o", tmp_path / "a.tar")
    made = cli.ok("snapshot", "import", tmp_path / "a.tar", "--name", "x", "-q").out.strip()
    failed = cli("snapshot", "rm", "unknown", "--json")
    assert (failed.code, list(failed.json()["errors"])) == (3, ["unknown"])
    assert cli.ok("snapshot", "rm", "x", "--json").json() == {"succeeded": [made], "errors": {}}
    assert cli.ok("snapshot", "rm", "base").out.startswith("removed snapshot ")
    check_store(tmp_root)


def test_a_terminal_sees_a_bar_only_of_what_takes_long(cli: Cli, tmp_root: Path, tmp_path: Path) -> None:
    with terminal(cli, "snapshot", "export", "base", "-o", tmp_path / "a.tar") as shown:
        assert shown.finish() == 0
        assert "━".encode() not in shown.shown
    data = tmp_path / "large"
    data.mkdir()
    sparse_file(data / "memory", 512 << 20, {i << 20: os.urandom(1 << 20) for i in range(256)})
    with Node(tmp_root) as node:
        node.snapshots.create(data, name="large")
    with terminal(cli, "snapshot", "export", "large", "-o", tmp_path / "b.tar.gz") as shown:
        assert shown.finish() == 0
        assert "━".encode() in shown.shown
        assert b"exporting large" in shown.shown
    with terminal(cli, "snapshot", "export", "base", "-o", "-") as shown:
        assert shown.finish() == 2
        assert b"terminal" in shown.shown


def test_gc(cli: Cli, tmp_root: Path) -> None:
    assert cli.ok("gc").out == "nothing to collect\n"
    orphan = tmp_root / "snapshots" / ("a" * 26)
    orphan.mkdir()
    document = cli.ok("gc", "--dry-run", "--json").json()
    assert (document["dry_run"], document["kept"], document["failed"]) == (True, 1, [])
    assert [row["path"] for row in document["removed"]] == [str(orphan)]
    assert "would be removed" in cli.ok("gc", "--dry-run").out
    head, row = cli.ok("gc").out.splitlines()
    assert head.split() == ["MODULE", "WHAT", "ID", "SIZE", "WHY"]
    assert "no record of this snapshot" in row
    assert not orphan.exists()
    assert cli.ok("gc", "--keep-last", "1", "--max-age", "30d", "--max-size", "1T").out == "nothing to collect\n"
    assert cli("gc", "--max-age", "soon").code == 2
    assert cli("gc", "--max-size", "lots").code == 2
    assert "beyond the newest 0" in cli.ok("gc", "--keep-last", "0").out
    check_store(tmp_root)


def test_gc_that_cannot_remove_something_says_so_and_fails(cli: Cli, tmp_root: Path) -> None:
    (snapshot,) = cli.ok("snapshot", "list", "-q").out.split()
    (tmp_root / "snapshots" / ".staging" / snapshot / "x").mkdir(parents=True)
    ran = cli("gc", "--keep-last", "0")
    assert ran.code == 1
    assert "Directory not empty" in ran.out
