"""The layout, checked on the text: which module may include which, names and errors in both languages, sizes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cocoon

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "cpp" / "cocoon"

# What each module may include of ours, beside itself and error.h. docs/architecture.md and cpp/CMakeLists.txt say the
# same; a test below compares.
MAY_USE: dict[str, set[str]] = {
    "metering": set(),
    "system": set(),
    "ledger": {"metering"},
    "store": {"metering", "system"},
    "lifecycle": {"metering"},
    "vmm": {"system", "lifecycle"},
    "snapshot": {"metering", "system", "store", "lifecycle"},
    "engine": {"metering", "ledger", "system", "store", "lifecycle", "vmm", "snapshot"},
}

# Every exception and the bases it has in Python.
ERRORS: dict[str, set[str]] = {
    "CocoonError": {"Exception"},
    "NotFound": {"CocoonError", "LookupError"},
    "AmbiguousRef": {"CocoonError", "LookupError"},
    "AlreadyExists": {"CocoonError"},
    "InvalidArgument": {"CocoonError", "ValueError"},
    "InvalidState": {"CocoonError"},
    "Inconclusive": {"CocoonError"},
    "VmmError": {"CocoonError"},
    "VmmTimeout": {"VmmError", "TimeoutError"},
    "StoreError": {"CocoonError", "OSError"},
    "CorruptSnapshot": {"CocoonError", "ValueError"},
    "LedgerError": {"CocoonError", "OSError"},
    "BulkError": {"CocoonError"},
}
# C++ only: what StoreError and LedgerError share, and what Ctrl-C becomes on its way to KeyboardInterrupt.
CPP_ONLY = {"PathError", "Cancelled"}

MOST_LINES = 600
SOURCES = {".c", ".h", ".cpp", ".py", ".pyi", ".sh", ".md", ".txt", ".json", ".toml", ""}
GENERATED = {"python/cocoon/_core.pyi", "LICENSE"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', re.MULTILINE)


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def cpp_sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".h", ".cpp", ".c"})


def project_files() -> Iterator[Path]:
    for name in ("cpp", "python", "tests", "scripts", "bench", "docs", ".ci"):
        for path in sorted((ROOT / name).rglob("*")):
            skipped = {"__pycache__", "data"} & set(path.relative_to(ROOT).parts)
            if path.is_file() and path.suffix in SOURCES and not skipped:
                yield path
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in SOURCES)


def bad_include(path: Path, include: str) -> str | None:
    """Why `path`, in cpp/cocoon, may not include this; None if it may."""
    module = path.relative_to(CORE).parts[0]
    name = include[1:-1]
    if name == "Python.h" or name.startswith("pybind11/"):
        return "only cpp/bindings knows Python"
    if include.startswith("<"):
        return "ours is included with quotes" if name.startswith("cocoon/") else None
    if not name.startswith("cocoon/"):
        return "the include root is cpp/: cocoon/<module>/<file>"
    if name == "cocoon/error.h":
        return None
    target = name.split("/")[1]
    if target != module and target not in MAY_USE[module]:
        return f"{module} may use {sorted(MAY_USE[module]) or 'no other module'}"
    return None if (CORE.parent / name).is_file() else "there is no such file"


def test_includes_go_down_the_module_table() -> None:
    assert {path.name for path in CORE.iterdir() if path.is_dir()} == set(MAY_USE)
    sources = [path for module in MAY_USE for path in cpp_sources(CORE / module)]
    assert len(sources) > len(MAY_USE)
    wrong = [
        f"{path.relative_to(ROOT)}: {include}: {why}"
        for path in sources
        for include in includes(path)
        if (why := bad_include(path, include)) is not None
    ]
    assert wrong == []


def test_error_header_is_below_every_module() -> None:
    assert [include for include in includes(CORE / "error.h") if "cocoon/" in include] == []


@pytest.mark.parametrize(
    ("source", "include"),
    [
        ("metering/entry.h", '"cocoon/system/fd.h"'),
        ("lifecycle/transition.cpp", '"cocoon/store/meta_store.h"'),
        ("store/meta_store.cpp", '"cocoon/ledger/reader.h"'),
        ("engine/node.cpp", "<pybind11/pybind11.h>"),
        ("engine/node.cpp", "<Python.h>"),
        ("engine/node.cpp", '"node.h"'),
        ("engine/node.cpp", '"cocoon/engine/absent.h"'),
    ],
)
def test_an_include_up_or_sideways_is_found(source: str, include: str) -> None:
    assert bad_include(CORE / source, include) is not None


def test_the_build_and_the_documents_have_the_same_table() -> None:
    text = (ROOT / "cpp" / "CMakeLists.txt").read_text(encoding="utf-8")
    calls = re.findall(r"^cocoon_module\((\w+)(?:\s+USES([^)]*?))?\s+LIBRARIES[^)]*\)", text, re.MULTILINE)
    assert {module: set(uses.split()) for module, uses in calls} == MAY_USE

    document = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", document, re.MULTILINE))
    assert {module: set(re.findall(r"`(\w+)`", uses)) for module, uses in rows.items()} == MAY_USE


def test_the_shim_shares_only_its_protocol_with_the_core() -> None:
    folder = ROOT / "cpp" / "shim"
    names = [include[1:-1] for path in cpp_sources(folder) for include in includes(path) if include.startswith('"')]
    assert {name for name in names if not (folder / name).is_file()} == {"cocoon/system/shim_protocol.h"}


# ---------------------------------------------------------------- names


def public_names(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}


def test_every_public_name_is_in_all_and_in_the_documents() -> None:
    assert sorted(cocoon.__all__) == sorted(set(cocoon.__all__))
    exported = {name for name in cocoon.__all__ if not name.startswith("__")}
    assert public_names(cocoon) - {"annotations"} == exported
    reference = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)", reference))
    assert sorted(exported - documented) == []


def python_errors() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name in cocoon.__all__
        if inspect.isclass(value := getattr(cocoon, name)) and issubclass(value, BaseException)
    }


def public_bases(error: type[BaseException]) -> set[str]:
    """The bases by name; one that is private stands for its own."""
    bases: set[str] = set()
    for base in error.__bases__:
        bases |= public_bases(base) if base.__name__.startswith("_") else {base.__name__}
    return bases


def test_the_exception_tree() -> None:
    assert {name: public_bases(error) for name, error in python_errors().items()} == ERRORS


def test_errors_are_the_same_in_both_languages() -> None:
    header = (CORE / "error.h").read_text(encoding="utf-8")
    found = dict(re.findall(r"^class (\w+) : public ([\w:]+) \{", header, re.MULTILINE))
    assert found.pop("Error") == "std::runtime_error"
    assert set(found) >= CPP_ONLY
    named = {"Error": "CocoonError", "PathError": "CocoonError"}
    cpp = {name: named.get(base, base) for name, base in found.items() if name not in CPP_ONLY}
    python = {name: (bases & ERRORS.keys()).pop() for name, bases in ERRORS.items() if name != "CocoonError"}
    assert cpp == python


def test_errors_derive_from_what_their_callers_may_already_catch() -> None:
    for name, error in python_errors().items():
        assert issubclass(error, cocoon.CocoonError), name
        assert error.__doc__, name


# ---------------------------------------------------------------- files


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in project_files()
    }
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES and name not in GENERATED} == {}


def test_nothing_is_left_to_be_done() -> None:
    marks = re.compile("|".join(rf"\b{first}{second}\b" for first, second in (("TO", "DO"), ("FIX", "ME"))))
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_the_version_is_said_once() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(cocoon VERSION ([0-9.]+)", text)
    assert found is not None
    assert cocoon.__version__ == found[1]
