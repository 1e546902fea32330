"""The simulator answers as the real Firecracker does: status, errors, state, exit code, files left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import Call, Pair, all_of, pair_of, with_disk
from simvmm_client import FIRECRACKER, Vmm, boot

START: Call = ("PUT", "/actions", {"action_type": "InstanceStart"})
LOAD = {"snapshot_path": "vmstate", "mem_backend": {"backend_type": "File", "backend_path": "mem"}}


@pytest.fixture
def firecracker(tmp_root: Path) -> Pair:
    return pair_of(FIRECRACKER, tmp_root)


FC_NOT_STARTED: list[Call] = [
    ("GET", "/", None),
    ("GET", "/version", None),
    ("GET", "/version/", None),
    ("GET", "//version", None),
    ("GET", "/?x=1", None),
    ("GET", "/vm/config", None),
    ("GET", "/machine-config", None),
    ("GET", "/balloon", None),
    ("GET", "/balloon/statistics", None),
    ("GET", "/hotplug/memory", None),
    ("GET", "/mmds", None),
    ("GET", "/nope", None),
    ("GET", "/actions", None),
    ("GET", "/", {}),
    ("PUT", "/nope", {}),
    ("PUT", "/vm", {"state": "Paused"}),
    ("PATCH", "/nope", {}),
    ("DELETE", "/nope", None),
    ("DELETE", "/drives/d0", None),
    ("PATCH", "/vm", {"state": "Paused"}),
    ("PATCH", "/vm", {"state": "Resumed"}),
    ("PATCH", "/vm", {"state": "Running"}),
    ("PATCH", "/vm", {}),
    ("PATCH", "/vm", None),
    ("PUT", "/snapshot/create", {"snapshot_path": "a", "mem_file_path": "b"}),
    START,
    ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    ("PUT", "/actions", {"action_type": "Foo"}),
    ("PUT", "/actions", {}),
    ("PUT", "/machine-config", None),
    ("PUT", "/machine-config", {}),
    ("PUT", "/machine-config", {"vcpu_count": 1}),
    ("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": 3, "mem_size_mib": 128, "smt": True}),
    ("PUT", "/machine-config", {"vcpu_count": "a", "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": -1, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": 300, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": 1.5, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": None, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": [], "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": {}, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": True, "mem_size_mib": 128}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 127, "huge_pages": "2M"}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "3M"}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "smt": 1}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "bogus": 1}),
    ("PATCH", "/machine-config", {}),
    ("PATCH", "/machine-config", {"mem_size_mib": 64}),
    ("GET", "/machine-config", None),
    ("PUT", "/boot-source", {}),
    ("PUT", "/boot-source", {"kernel_image_path": "nope"}),
    ("PUT", "/boot-source", {"kernel_image_path": 1}),
    ("PUT", "/boot-source", {"kernel_image_path": "/etc/passwd", "initrd_path": "nope"}),
    ("PUT", "/boot-source", {"kernel_image_path": "/etc/passwd", "bogus": 1}),
    ("PUT", "/boot-source", {"kernel_image_path": "/etc/passwd", "boot_args": "a" * 2100}),
    ("PUT", "/drives", {}),
    ("PUT", "/drives/", {}),
    ("PUT", "/drives/d-0", {"drive_id": "d-0", "path_on_host": "disk", "is_root_device": False}),
    ("PUT", "/drives/d0", {"drive_id": "d1", "path_on_host": "nope", "is_root_device": False}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "path_on_host": "nope", "is_root_device": False}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "is_root_device": False}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "path_on_host": "disk"}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "path_on_host": "disk", "is_root_device": False, "io_engine": "Foo"}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "path_on_host": "disk", "is_root_device": False, "bogus": 1}),
    ("PUT", "/drives/d0", {"drive_id": "d0", "path_on_host": "disk", "is_root_device": True}),
    ("PUT", "/drives/d1", {"drive_id": "d1", "path_on_host": "disk", "is_root_device": True}),
    ("PATCH", "/drives/d0", {"drive_id": "d0", "path_on_host": "disk"}),
    ("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "t", "guest_mac": "zz"}),
    ("PUT", "/network-interfaces/eth0", {"iface_id": "eth1", "host_dev_name": "t"}),
    ("PUT", "/balloon", {"amount_mib": 9999, "deflate_on_oom": True}),
    ("PUT", "/balloon", {"amount_mib": 16}),
    ("PUT", "/balloon", {"amount_mib": 16, "deflate_on_oom": True}),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 8}),
    ("GET", "/balloon", None),
    ("PATCH", "/balloon", {"amount_mib": 3}),
    ("PUT", "/entropy", {}),
    ("PUT", "/vsock", {"guest_cid": 3}),
    ("PUT", "/vsock", {"guest_cid": 4294967296, "uds_path": "v.sock"}),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "api.sock"}),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"}),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v2.sock"}),
    ("PUT", "/serial", {"serial_out_path": "nope"}),
    ("PUT", "/cpu-config", {}),
    ("PUT", "/mmds", {"a": 1}),
    ("GET", "/mmds", None),
    ("PUT", "/mmds/config", {"network_interfaces": []}),
    ("GET", "/vm/config", None),
    ("PUT", "/snapshot/load", {"snapshot_path": "a"}),
    ("PUT", "/snapshot/load", {**LOAD, "mem_file_path": "b"}),
    ("PUT", "/snapshot/load", {**LOAD, "drive_overrides": []}),
    ("PUT", "/snapshot/load", LOAD),
    ("GET", "/", None),
]

FC_STARTED: list[Call] = [
    START,
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64}),
    ("PATCH", "/machine-config", {"mem_size_mib": 4}),
    ("PUT", "/boot-source", {"kernel_image_path": "/etc/passwd"}),
    ("PUT", "/drives/d1", {"drive_id": "d1", "path_on_host": "disk", "is_root_device": False}),
    ("PATCH", "/drives/zz", {"drive_id": "zz", "path_on_host": "disk"}),
    ("DELETE", "/drives/d0", None),
    ("PUT", "/network-interfaces/e", {"iface_id": "e", "host_dev_name": "t"}),
    ("PATCH", "/network-interfaces/e", {"iface_id": "e"}),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"}),
    ("PUT", "/entropy", {}),
    ("PUT", "/balloon", {"amount_mib": 16, "deflate_on_oom": True}),
    ("PUT", "/logger", {"level": "Info"}),
    ("PUT", "/metrics", {"metrics_path": "m"}),
    ("PUT", "/serial", {}),
    ("PUT", "/mmds", {}),
    ("PUT", "/mmds/config", {"network_interfaces": []}),
    ("PUT", "/cpu-config", {}),
    ("PUT", "/snapshot/load", LOAD),
    ("PUT", "/hotplug/memory", {"total_size_mib": 128, "block_size_mib": 2, "slot_size_mib": 128}),
    ("PATCH", "/hotplug/memory", {"requested_size_mib": 1}),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem"}),
    ("GET", "/vm/config", None),
    ("PATCH", "/vm", {"state": "Resumed"}),
    ("GET", "/", None),
    ("PATCH", "/vm", {"state": "Paused"}),
    ("PATCH", "/vm", {"state": "Paused"}),
    ("GET", "/", None),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "nope/vmstate", "mem_file_path": "mem"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "nope/mem"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem", "snapshot_type": "Foo"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem", "version": "1"}),
    ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem", "snapshot_type": "Diff"}),
    # Four requests wait in the keyboard's buffer while the guest is paused.
    *[("PUT", "/actions", {"action_type": "SendCtrlAltDel"})] * 6,
]


def test_firecracker_before_the_start(firecracker: Pair) -> None:
    answers = firecracker.both(all_of(FC_NOT_STARTED), prepare=with_disk)
    assert {answer.status for answer in answers} == {200, 204, 400}


def test_firecracker_after_the_start(firecracker: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, firecracker.kernel)
        answers = [vmm.request(*call) for call in FC_STARTED]
        sizes = [(vmm.folder / name).stat().st_size for name in ("mem",)]
        resumed = vmm.request("PATCH", "/vm", {"state": "Resumed"})
        return [answers, sizes, resumed, vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]

    result = firecracker.both(script, prepare=with_disk)
    assert result[3] == 0


@pytest.mark.parametrize("typed", ["q", "r"])
def test_firecracker_exits_with_its_guest(firecracker: Pair, typed: str) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, firecracker.kernel)
        os.write(vmm.stdin, typed.encode())
        code = vmm.wait()
        return [code, vmm.printed()]

    code, printed = firecracker.both(script)
    assert (code, printed.startswith("GUEST-UP\nMEM 64\nCMDLINE hello pci=off\n")) == (0, True)


SNAPSHOT_DAMAGE: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "none": (lambda folder: None, {}),
    "resumed": (lambda folder: None, {"resume_vm": True}),
    "no state": (lambda folder: (folder / "vmstate").unlink(), {}),
    "empty state": (lambda folder: os.truncate(folder / "vmstate", 0), {}),
    "cut state": (lambda folder: os.truncate(folder / "vmstate", 100), {}),
    "foreign state": (lambda folder: (folder / "vmstate").write_bytes(b"x" * 500), {}),
    "no memory": (lambda folder: (folder / "mem").unlink(), {}),
    "short memory": (lambda folder: os.truncate(folder / "mem", 4096), {}),
    "long memory": (lambda folder: os.truncate(folder / "mem", 128 << 20), {}),
    "no disk": (lambda folder: (folder / "disk").unlink(), {}),
    "stale vsock": (lambda folder: (folder / "v.sock").touch(), {}),
    "other vsock": (lambda folder: None, {"vsock_override": {"uds_path": "w.sock"}}),
    "unknown interface": (lambda folder: None, {"network_overrides": [{"iface_id": "e", "host_dev_name": "t"}]}),
    "unknown field": (lambda folder: None, {"drive_overrides": []}),
    "incomplete override": (lambda folder: None, {"vsock_override": {}}),
    "no page fault handler": (lambda folder: None, {"mem_backend": {"backend_type": "Uffd", "backend_path": "nope"}}),
}


def test_firecracker_loads_a_snapshot_or_exits(firecracker: Pair) -> None:
    def save(vmm: Vmm) -> None:
        drive = {"drive_id": "d0", "path_on_host": "disk", "is_root_device": False}
        for call in [("PUT", "/drives/d0", drive), ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})]:
            assert vmm.request(*call).status == 204
        boot(vmm, firecracker.kernel)
        assert vmm.request("PATCH", "/vm", {"state": "Paused"}).status == 204
        paths = {"snapshot_path": "vmstate", "mem_file_path": "mem", "snapshot_type": "Diff"}
        assert vmm.request("PUT", "/snapshot/create", paths).status == 204

    firecracker.both(save, prepare=with_disk)
    sources = {side: firecracker.root / f"{side}1" for side in ("sim", "real")}
    for name, (damage, more) in SNAPSHOT_DAMAGE.items():

        def prepare(folder: Path, damage: Callable[[Path], object] = damage) -> None:
            source = next(path for side, path in sources.items() if folder.name.startswith(side))
            for file in ("vmstate", "mem", "disk"):
                shutil.copy(source / file, folder / file)
            damage(folder)

        def script(vmm: Vmm, more: dict[str, Any] = more) -> Any:
            answer = vmm.request("PUT", "/snapshot/load", {**LOAD, **more})
            if answer.status == 400 and "deserializing" not in answer.body:
                return [answer, vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]
            return [answer, vmm.state, vmm.request("PUT", "/snapshot/load", {**LOAD, **more}).status]

        answer, *_ = firecracker.both(script, prepare=prepare)
        assert answer.status in {204, 400}, name
