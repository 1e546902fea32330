"""VMMs that are none, for tests of code that uses cocoon: no KVM, no guest image, and every failure on request.

    from cocoon.testing import Fault, simulated_node

    def test_a_start_that_fails(tmp_path):
        with simulated_node(tmp_path, Fault("die", on="PUT /actions", exit=3)) as (node, vmms):
            backend = node.backend("firecracker")
            backend.create(VMConfig("web-1", kernel=vmms.kernel))
            with pytest.raises(VmmError):
                backend.start("web-1")

docs/simulator.md describes the simulator and its faults. `cocoon.testing.ledgers` makes ledgers of any size, with or
without planted faults.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cocoon._paths import SIMVMM

if TYPE_CHECKING:
    from cocoon import Node

__all__ = ["HYPERVISORS", "Deed", "Fault", "SimulatedVmms", "simulated_node", "simvmm_path"]

Deed = Literal[
    "die",
    "hang",
    "refuse",
    "answer",
    "garbage",
    "close",
    "slow",
    "fork",
    "power-off",
    "ignore-sigterm",
    "keep-socket",
    "no-socket",
]

#: What the simulator can be.
HYPERVISORS = ("firecracker", "cloud-hypervisor")

# The least that both VMMs take for a kernel: an ELF's magic number, and enough of nothing behind it.
_KERNEL = b"\x7fELF".ljust(1024, b"\0")


def simvmm_path() -> Path:
    """The simulator's program. It is a VMM under that VMM's name: call it through a link, or `SimulatedVmms`."""
    return SIMVMM


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    When: at the ``call``-th request ``on`` ("PUT /actions", "PUT vm.boot", "*"), and with ``repeat`` at each one from
    then on; or ``after_ms`` after the VMM's start; or, with neither, at its start. With ``effect`` the request is
    carried out all the same. What the other fields mean, and which deeds take them: docs/simulator.md.
    """

    do: Deed
    on: str | None = None
    call: int | None = None
    repeat: bool | None = None
    effect: bool | None = None
    after_ms: int | None = None
    exit: int | None = None
    signal: Literal["KILL", "SEGV", "ABRT", "TERM", "SYS"] | None = None
    status: int | None = None
    body: str | None = None
    bytes: int | None = None
    time_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Without the fields that are not set."""
        values = {each.name: getattr(self, each.name) for each in fields_of(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class SimulatedVmms:
    """A folder with a simulated VMM under each name, a plan of their faults, and a file they take for a kernel.

    The plan holds for every VMM that starts from here, until it is replaced; those that run keep theirs.
    """

    folder: Path
    tick_ms: int = 1000
    ignores_requests: bool = False
    binaries: dict[str, Path] = field(init=False)
    kernel: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.binaries = {name: self.folder / name for name in HYPERVISORS}
        for path in self.binaries.values():
            path.unlink(missing_ok=True)
            try:
                path.hardlink_to(simvmm_path())
            except OSError:  # another file system
                shutil.copy(simvmm_path(), path)
        self.kernel = self.folder / "kernel"
        self.kernel.write_bytes(_KERNEL)
        self.plan()

    def plan(self, *faults: Fault, hypervisor: str | None = None) -> None:
        """What goes wrong with the VMMs that start from now on; with no fault, nothing does."""
        text = json.dumps(
            {
                "guest": {"tick_ms": self.tick_ms, "ignores_requests": self.ignores_requests},
                "faults": [fault.to_json() for fault in faults],
            }
        )
        for name in HYPERVISORS if hypervisor is None else (hypervisor,):
            # Replaced as a whole: a VMM that starts meanwhile reads the one or the other.
            temporary = self.folder / f"{name}.json.new"
            temporary.write_text(text)
            temporary.replace(self.folder / f"{name}.json")


@contextmanager
def simulated_node(
    root: Path, *faults: Fault, tick_ms: int = 1000, ignores_requests: bool = False, **options: Any
) -> Iterator[tuple[Node, SimulatedVmms]]:
    """A node in ``root`` whose hypervisors are simulated, and the folder of its VMMs, ``root/vmms``.

    ``options`` are those of `cocoon.Node`. VMMs that still run at the end are not ended.
    """
    from cocoon import Node

    vmms = SimulatedVmms(root / "vmms", tick_ms=tick_ms, ignores_requests=ignores_requests)
    vmms.plan(*faults)
    with Node(root, binaries=vmms.binaries, **options) as node:
        yield node, vmms
