"""clang-tidy over our sources: all processors, and only what changed since it last passed.

A source has passed when the very same text of it, of every header of ours below it, of its compile command and of
.clang-tidy went through the same clang-tidy before; build/tidy/passed remembers that by hash.

    python scripts/tidy.py COMPILE_COMMANDS.json... [--jobs N]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "tidy"
PASSED = WORK / "passed"
TIDY = Path(sys.executable).parent / "clang-tidy"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def included(source: Path) -> set[Path]:
    """`source` and every header of ours that it includes, directly or not."""
    seen: set[Path] = set()
    todo = [source]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
            todo += [found for base in (ROOT / "cpp", path.parent) if (found := (base / name).resolve()).is_file()]
    return seen


def key(source: Path, command: str, version: str) -> str:
    digest = hashlib.sha256(f"{version}\0{command}\0".encode())
    configurations = [path for folder in source.parents if (path := folder / ".clang-tidy").is_file()]
    for path in [*configurations, *sorted(included(source))]:
        digest.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def commands(databases: list[Path]) -> dict[Path, dict[str, str]]:
    """Our sources and how each is compiled; the first database that has a source decides."""
    found: dict[Path, dict[str, str]] = {}
    for database in databases:
        for entry in json.loads(database.read_text(encoding="utf-8")):
            path = Path(entry["directory"], entry["file"]).resolve()
            ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build") and path.suffix != ".S"
            if ours and path.is_file() and path not in found:
                found[path] = entry
    return found


def run(source: Path) -> tuple[bool, str]:
    done = subprocess.run(
        [TIDY, "--quiet", "-p", WORK, source], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="+", type=Path, metavar="COMPILE_COMMANDS.json")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()

    PASSED.mkdir(parents=True, exist_ok=True)
    sources = commands(arguments.databases)
    (WORK / "compile_commands.json").write_text(json.dumps(list(sources.values())), encoding="utf-8")
    version = subprocess.run([TIDY, "--version"], capture_output=True, text=True, check=True).stdout
    keys = {source: key(source, entry["command"], version) for source, entry in sources.items()}
    changed = [source for source in sorted(sources) if not (PASSED / keys[source]).exists()]
    print(f"{len(sources)} sources, {len(changed)} to look at", flush=True)

    failed = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(run, source): source for source in changed}
        for future in concurrent.futures.as_completed(futures):
            source = futures[future]
            passed, output = future.result()
            if output.strip():
                print(output.strip(), flush=True)
            if passed:
                (PASSED / keys[source]).touch()
            else:
                failed += 1
                print(f"FAILED {source.relative_to(ROOT)}", flush=True)
    for stale in PASSED.iterdir():
        if stale.name not in keys.values():
            stale.unlink()
    print(f"{failed} sources with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
