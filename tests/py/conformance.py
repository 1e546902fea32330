"""Runs one script against the simulator and the real VMM, which must answer alike: what its tests share."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cocoon.testing import SimulatedVmms
from simvmm_client import Answer, Vmm, running

Call = tuple[str, str, Any]


def real_vmm(name: str) -> Path:
    folder = os.environ.get("COCOON_TEST_VMM_DIR")
    found = str(Path(folder) / name) if folder else shutil.which(name)
    if found is None or not Path(found).exists():
        pytest.skip(f"no {name} in COCOON_TEST_VMM_DIR or PATH")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no right to /dev/kvm")
    return Path(found)


def real_guest() -> Path:
    path = Path(os.environ.get("COCOON_TEST_VMM_DIR", ".")) / "guest.elf"
    if not path.exists():
        pytest.skip("no guest.elf in COCOON_TEST_VMM_DIR")
    return path


@dataclass
class Pair:
    """The two of one name, each in a folder of its own."""

    name: str
    binaries: tuple[Path, Path]
    root: Path
    kernel: Path
    count: int = 0

    def both(self, script: Callable[[Vmm], Any], *, prepare: Callable[[Path], None] = lambda folder: None) -> Any:
        """Runs it on both and says what they said, which must be the same."""
        results = []
        self.count += 1
        for side, binary in zip(("sim", "real"), self.binaries, strict=True):
            folder = self.root / f"{side}{self.count}"
            folder.mkdir()
            prepare(folder)
            with running(binary, self.name, folder) as vmm:
                results.append(normalized(script(vmm), folder))
        assert results[0] == results[1]
        return results[0]


def normalized(result: Any, folder: Path) -> Any:
    """Without what may differ: the folder, the pid, and where in a body serde was."""
    if isinstance(result, Answer):
        body = re.sub(r" at line \d+ column \d+", "", result.body).replace(str(folder), "FOLDER")
        # What the guest's devices look like inside is nobody's business.
        body = re.sub(r',"device_tree":.*(?=\}$)', "", body)
        return Answer(result.status, re.sub(r'"pid":\d+', '"pid":0', body))
    if isinstance(result, dict):
        return {key: normalized(value, folder) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [normalized(value, folder) for value in result]
    return result.replace(str(folder), "FOLDER") if isinstance(result, str) else result


def pair_of(name: str, tmp_root: Path) -> Pair:
    real, kernel = real_vmm(name), real_guest()
    return Pair(name, (SimulatedVmms(tmp_root / "vmms").binaries[name], real), tmp_root, kernel)


def all_of(calls: list[Call]) -> Callable[[Vmm], list[Answer]]:
    return lambda vmm: [vmm.request(*call) for call in calls]


def with_disk(folder: Path) -> None:
    (folder / "disk").touch()
    os.truncate(folder / "disk", 1 << 20)
