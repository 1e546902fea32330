"""The notebooks run from top to bottom, find what they are to find, and are kept without their outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cocoon.guest import default_cache_dir
from cocoon.testing.ledgers import FAULTS

pytest.importorskip("nbclient")
pytest.importorskip("altair")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# In a process of its own: its event loop and its warnings are no business of these tests.
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


def run(name: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Outputs of all cells."""
    own = {key: str(folder / key) for key in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    kept = {key: value for key, value in os.environ.items() if key != "COCOON_ROOT"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOKS / name), str(folder), str(folder / "out.ipynb")],
        env=kept | own | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    cells = json.loads((folder / "out.ipynb").read_text())["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def text_of(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output.get("text", [])) for output in outputs)


def html_of(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output.get("data", {}).get("text/html", [])) for output in outputs)


def has_picture(outputs: list[dict[str, Any]]) -> bool:
    return any(kind.startswith("application/vnd.vegalite") for one in outputs for kind in one.get("data", {})) or (
        "vega" in html_of(outputs)
    )


@pytest.mark.timeout(1800)
def test_reconcile_a_month(tmp_path: Path) -> None:
    """A million entries in a long run, else fewer."""
    entries = 1_000_000 if os.environ.get("COCOON_TEST_LONG") else 60_000
    outputs = run("reconcile_a_month.ipynb", tmp_path, COCOON_NOTEBOOK_ENTRIES=str(entries))
    text = text_of(outputs)
    planted = 5 * (len(FAULTS) - 1) + 1
    assert f"{entries:,} entries" in text
    assert f"{planted} findings of {len(FAULTS)} kinds" in text
    assert f"✗ audit: {entries:,} entries, {planted} findings" in html_of(outputs)
    assert has_picture(outputs)
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.guest
@pytest.mark.usefixtures("guest")
def test_what_did_this_node_run(tmp_root: Path) -> None:
    temporary = tmp_root / "t"
    temporary.mkdir()
    outputs = run(
        "what_did_this_node_run.ipynb", tmp_root,
        TMPDIR=str(temporary), XDG_CACHE_HOME=str(default_cache_dir().parent),
    )  # fmt: skip
    html = html_of(outputs)
    assert "nothing found" in html
    assert "✗ reconcile" in html
    assert "✓ reconcile: 1 put right" in html
    assert has_picture(outputs)
    assert text_of(outputs).endswith("done\n")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
