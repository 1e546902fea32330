"""The tools behind scripts/test: how they count, what they find left behind, and when clang-tidy looks again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import leftovers
import tidy
from results import Counts, read_junit

CTEST = """<testsuite>
  <testcase name="store.A" status="run"><system-out>fine</system-out></testcase>
  <testcase name="store.B" status="fail"><failure message=""/></testcase>
  <testcase name="store.C" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
    <system-out>/x/c_test.cpp:3: Skipped
needs
  /dev/kvm

[  SKIPPED ] C (0 ms)</system-out></testcase>
  <testcase name="store.D" status="disabled"><system-out>Disabled</system-out></testcase>
</testsuite>"""

PYTEST = """<testsuites><testsuite>
  <testcase name="a"/>
  <testcase name="b"><failure message="assert 0"/></testcase>
  <testcase name="c"><error message="fixture"/></testcase>
  <testcase name="d"><skipped type="pytest.skip" message="no guest"/></testcase>
  <testcase name="e"><skipped type="pytest.skip" message="no guest"/></testcase>
</testsuite></testsuites>"""


def test_counts_of_ctest_and_pytest_add_up(tmp_path: Path) -> None:
    (tmp_path / "ctest.xml").write_text(CTEST)
    (tmp_path / "pytest.xml").write_text(PYTEST)
    ctest, pytest_counts = read_junit(tmp_path / "ctest.xml"), read_junit(tmp_path / "pytest.xml")
    assert (ctest.passed, ctest.failed, ctest.skipped) == (1, 1, 2)
    assert ctest.reasons == {"needs /dev/kvm": 1, "Disabled": 1}
    assert (pytest_counts.passed, pytest_counts.failed, pytest_counts.skipped) == (1, 2, 2)
    total = Counts()
    total += ctest
    total += pytest_counts
    assert total.text() == "2 passed, 3 failed, 4 skipped"
    assert total.reasons["no guest"] == 2


def test_a_process_and_a_file_left_behind_are_found_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "socket").touch()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=folder, stdin=subprocess.PIPE) as child:
        left = leftovers.sweep(folder, grace=0)
        assert child.wait(10) != 0
    assert len(left) == 2
    assert left[0].startswith(f"process {child.pid}: ")
    assert left[1] == "file socket"
    assert not folder.exists()


def test_nothing_left_is_nothing_found(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert leftovers.sweep(folder, grace=0) == []
    assert not folder.exists()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cpp/cocoon/m").mkdir(parents=True)
    (tmp_path / ".clang-tidy").write_text("Checks: '*'\n")
    (tmp_path / "cpp/cocoon/m/a.cpp").write_text('#include <vector>\n#include "cocoon/m/a.h"\n')
    (tmp_path / "cpp/cocoon/m/a.h").write_text('#pragma once\n#include "cocoon/m/b.h"\n')
    (tmp_path / "cpp/cocoon/m/b.h").write_text('#pragma once\n#include "cocoon/m/a.h"\n')
    monkeypatch.setattr(tidy, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("changed", ["cpp/cocoon/m/a.cpp", "cpp/cocoon/m/b.h", ".clang-tidy"])
def test_clang_tidy_looks_again_when_something_below_a_source_changed(checkout: Path, changed: str) -> None:
    source = checkout / "cpp/cocoon/m/a.cpp"
    before = tidy.key(source, "g++ -c a.cpp", "23.1")
    assert tidy.key(source, "g++ -c a.cpp", "23.1") == before
    assert tidy.key(source, "g++ -O2 -c a.cpp", "23.1") != before
    assert tidy.key(source, "g++ -c a.cpp", "23.2") != before
    with (checkout / changed).open("a") as file:
        file.write("\n")
    assert tidy.key(source, "g++ -c a.cpp", "23.1") != before
