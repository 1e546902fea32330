"""The documents: the README's program does what it says, its commands exist, and links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.guest import Guest, default_cache_dir

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COCOON = Path(sys.executable).with_name("cocoon")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for found, text in fenced if found == language]


@pytest.mark.guest
def test_the_program_of_the_readme(guest: Guest, tmp_root: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_root,
        env=os.environ | {"XDG_CACHE_HOME": str(default_cache_dir().parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    assert sorted(row.split()[:3] for row in rows) == [
        ["vm.compute", "boot", "stop-user"],
        ["vm.compute", "restart", "stop-crash"],
        ["vm.compute", "restart", "stop-user"],
        ["vm.storage", "boot", "vm-rm"],
    ]
    assert last == "audit: clean"


def commands() -> list[str]:
    """The `cocoon` commands of the README, without their arguments."""
    found = re.findall(r"^cocoon ((?:[a-z]+ ?)+)", "\n".join(blocks("")), re.MULTILINE)
    groups = {"vm", "ledger", "guest"}
    return sorted({" ".join(words[: 2 if words[0] in groups else 1]) for words in map(str.split, found)})


def test_the_readme_names_commands() -> None:
    assert {"vm run", "vm rm", "ledger intervals", "doctor"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_exists(command: str) -> None:
    done = subprocess.run([COCOON, *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"cocoon {command}" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (document.parent / link).exists()] == []
