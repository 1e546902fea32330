"""What a program pays to begin: `import cocoon`, and `cocoon vm list` with 10 VMs, each a process of its own.

One JSON row each: how much longer it takes than what a program of the kind takes anyway, measured in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cocoon import VMConfig
from cocoon.testing import simulated_node

ROUNDS = 25
VMS = 10
IMPORT_LIMIT_MS = 60.0
LIST_LIMIT_MS = 150.0


def took_ms(command: list[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    return (time.perf_counter() - begin) * 1e3


def compare(what: str, command: list[str], baseline: list[str], of: str, limit: float, **variables: str) -> None:
    environment = os.environ | variables
    more, bare = [], []
    for measured in range(-1, ROUNDS):  # the first finds files that are not in memory, and no compiled Python
        with_us, without = took_ms(command, environment), took_ms(baseline, environment)
        if measured >= 0:
            more.append(with_us - without)
            bare.append(without)
    extra = statistics.median(more)
    print(
        json.dumps(
            {
                "what": what,
                "value": f"+{extra:.0f} ms",
                "baseline": f"{of} {statistics.median(bare):.0f} ms, +{limit:g} allowed",
                "ratio": extra / limit,
                "limit": 1.0,
            }
        ),
        flush=True,
    )


def main() -> None:
    python = [sys.executable, "-c"]
    compare(
        "import cocoon",
        [*python, "import cocoon"],
        [*python, "import sqlite3, json"],
        "sqlite3, json",
        IMPORT_LIMIT_MS,
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with simulated_node(root) as (node, vmms):
            backend = node.backend("firecracker")
            for number in range(VMS):
                backend.create(VMConfig(f"vm-{number}", kernel=vmms.kernel, storage=1 << 30))
        compare(
            f"cocoon vm list, {VMS} VMs",
            [sys.executable, "-m", "cocoon.cli", "--root", name, "vm", "list"],
            [*python, "pass"],
            "python -c pass",
            LIST_LIMIT_MS,
        )


if __name__ == "__main__":
    main()
