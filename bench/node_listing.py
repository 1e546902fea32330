"""`list` of a node of 10 000 VMs, and `inspect` by a prefix, as a program in Python sees them; one JSON row each.

    bench/node_listing.py [--vms N]

None of the VMs runs, as most of so many do not; each has its folders, and is asked whether it is alive all the same.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cocoon import VMConfig
from cocoon.testing import simulated_node

VMS = 10_000
ROUNDS = 7
INSPECTED = 2_000
PREFIX = 8
LIST_LIMIT_MS = 100.0
INSPECT_LIMIT_US = 200.0


def row(what: str, took: float, limit: float, unit: str) -> None:
    print(
        json.dumps(
            {
                "what": what,
                "value": f"{took:.1f} {unit}",
                "baseline": f"{limit:g} {unit} allowed",
                "ratio": took / limit,
                "limit": 1.0,
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=VMS)
    options = parser.parse_args()
    clock = time.perf_counter
    with tempfile.TemporaryDirectory() as name, simulated_node(Path(name)) as (node, vmms):
        backend = node.backend("firecracker")

        def create(number: int) -> str:
            labels = {"team": f"team-{number % 7}", "image": "debian-12"}
            return backend.create(VMConfig(f"vm-{number}", kernel=vmms.kernel, storage=1 << 30, labels=labels)).id

        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(create, range(options.vms)))
        listing = []
        for _ in range(ROUNDS):
            begin = clock()
            found = backend.list()
            listing.append(clock() - begin)
            assert len(found) == options.vms
            del found
        inspecting = []
        for vm_id in random.Random(1).choices(ids, k=INSPECTED):
            begin = clock()
            vm = backend.inspect(vm_id[:PREFIX])
            inspecting.append(clock() - begin)
            assert vm.id == vm_id
    row(f"list of {options.vms:,} VMs in Python", statistics.median(listing) * 1e3, LIST_LIMIT_MS, "ms")
    row(
        f"inspect by prefix, one of {options.vms:,} VMs",
        statistics.median(inspecting) * 1e6,
        INSPECT_LIMIT_US,
        "us",
    )


if __name__ == "__main__":
    main()
