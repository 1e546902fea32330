"""The simulator and the real VMM answer the same script alike: status, errors, state, exit code, files left."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cocoon.testing import SimulatedVmms
from simvmm_client import CLOUD_HYPERVISOR, FIRECRACKER, Answer, Vmm, boot, cloud_hypervisor_config, running, until

Call = tuple[str, str, Any]
START: Call = ("PUT", "/actions", {"action_type": "InstanceStart"})
LOAD = {"snapshot_path": "vmstate", "mem_backend": {"backend_type": "File", "backend_path": "mem"}}


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


@pytest.fixture
def firecracker(tmp_root: Path) -> Pair:
    return pair_of(FIRECRACKER, tmp_root)


@pytest.fixture
def cloud_hypervisor(tmp_root: Path) -> Pair:
    return pair_of(CLOUD_HYPERVISOR, tmp_root)


@pytest.fixture(params=[FIRECRACKER, CLOUD_HYPERVISOR])
def either(request: pytest.FixtureRequest, tmp_root: Path) -> Pair:
    return pair_of(request.param, tmp_root)


def all_of(calls: list[Call]) -> Callable[[Vmm], list[Answer]]:
    return lambda vmm: [vmm.request(*call) for call in calls]


# --- Firecracker -----------------------------------------------------------------------------------------------------

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


def with_disk(folder: Path) -> None:
    (folder / "disk").touch()
    os.truncate(folder / "disk", 1 << 20)


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


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_signals(either: Pair, number: signal.Signals) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, either.kernel)
        vmm.process.send_signal(number)
        return [vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]

    either.both(script)


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


# --- Cloud Hypervisor ------------------------------------------------------------------------------------------------

CH_NO_VM: list[Call] = [
    ("GET", "vmm.ping", None),
    ("PUT", "vmm.ping", None),
    ("GET", "/api/v1/vmm.ping/", None),
    ("GET", "/api/v1/vmm.ping?x=1", None),
    ("GET", "/nope", None),
    ("PUT", "vm.nope", {}),
    ("GET", "vm.info", None),
    ("GET", "vm.info", {}),
    ("PUT", "vm.info", None),
    ("GET", "vm.boot", None),
    ("PATCH", "vm.boot", None),
    ("DELETE", "vm.boot", None),
    ("GET", "vm.counters", None),
    ("PUT", "vm.boot", None),
    ("PUT", "vm.boot", {}),
    ("PUT", "vm.pause", None),
    ("PUT", "vm.resume", None),
    ("PUT", "vm.shutdown", None),
    ("PUT", "vm.reboot", None),
    ("PUT", "vm.delete", None),
    ("PUT", "vm.power-button", None),
    ("PUT", "vm.nmi", None),
    ("PUT", "vm.snapshot", None),
    ("PUT", "vm.snapshot", {"destination_url": "file:///nope"}),
    ("PUT", "vm.restore", None),
    ("PUT", "vm.restore", {}),
    ("PUT", "vm.restore", {"source_url": "file:///nope"}),
    ("PUT", "vm.restore", {"source_url": "/nope"}),
    ("PUT", "vm.restore", {"source_url": "file:///nope", "memory_restore_mode": "Foo"}),
    ("PUT", "vm.restore", {"source_url": "file:///nope", "memory_restore_mode": "OnDemand", "prefault": True}),
    ("PUT", "vm.create", None),
    ("PUT", "vm.create", {"memory": {"size": "a"}}),
    ("PUT", "vm.create", {"cpus": {"boot_vcpus": 1}}),
    ("PUT", "vm.create", {"vsock": {"cid": 3}}),
    ("PUT", "vm.create", {"console": {"mode": "Foo"}}),
    ("PUT", "vm.remove-device", {"id": "x"}),
    ("PUT", "vm.add-disk", {"path": "disk"}),
    ("PUT", "vm.resize", {"desired_vcpus": 1}),
    ("PUT", "vm.create", {"bogus": 1}),
    ("GET", "vm.info", None),
    ("PUT", "vm.create", {}),
    ("PUT", "vm.boot", None),
    ("PUT", "vm.restore", {"source_url": "file:///nope"}),
    ("PUT", "vm.pause", None),
    ("PUT", "vm.shutdown", None),
    ("PUT", "vm.reboot", None),
    ("PUT", "vm.snapshot", {"destination_url": "file:///nope"}),
    ("PUT", "vm.power-button", None),
    ("PUT", "vm.add-disk", {"path": "disk", "id": "d"}),
    ("PUT", "vm.remove-device", {"id": "d"}),
    ("PUT", "vm.resize", {"desired_vcpus": 2}),
    ("PUT", "vm.delete", None),
    ("PUT", "vm.delete", None),
    ("GET", "vm.info", None),
]


def test_cloud_hypervisor_without_a_vm(cloud_hypervisor: Pair) -> None:
    cloud_hypervisor.both(all_of(CH_NO_VM), prepare=with_disk)


def test_cloud_hypervisor_refuses_to_boot(cloud_hypervisor: Pair) -> None:
    kernel = cloud_hypervisor.kernel
    disk = {"path": "disk", "image_type": "Raw"}
    payload = {"kernel": str(kernel)}
    configs: list[dict[str, Any]] = [
        {"cpus": {"boot_vcpus": 2, "max_vcpus": 1}},
        {"payload": {}},
        {"payload": {"kernel": "nope"}},
        {"payload": {"kernel": "/etc/passwd"}},
        {"payload": {**payload, "initramfs": "nope"}},
        {"payload": {"firmware": "nope"}},
        {"payload": {**payload, "firmware": str(kernel)}},
        {"memory": {"size": 1234567}},
        {"memory": {"size": 64 << 20, "hugepages": True}},
        {"disks": [{"path": "nope"}]},
        {"disks": [{}]},
        {"disks": [{**disk, "id": "a"}, {**disk, "id": "a"}]},
        {"disks": [{**disk, "image_type": "Qcow2"}]},
        {"disks": [{**disk, "serial": "a" * 21}]},
        {"disks": [{**disk, "queue_size": 3}]},
        {"disks": [{**disk, "num_queues": 3}]},
        {"vsock": {"cid": 2, "socket": "v"}},
        {"vsock": {"cid": 3, "socket": "disk"}},
        {"balloon": {"size": 1 << 40}},
        {"serial": {"mode": "Socket", "socket": "disk"}},
        {"serial": {"mode": "Null"}, "console": {"mode": "Socket", "socket": "c.sock"}},
    ]
    for config in configs:
        wanted = cloud_hypervisor_config(kernel, **config)

        def script(vmm: Vmm, wanted: dict[str, Any] = wanted) -> Any:
            calls: list[Call] = [("PUT", "vm.create", wanted), ("PUT", "vm.boot", None), ("PUT", "vm.delete", None)]
            answers = [vmm.request(*call) for call in calls]
            return [answers, vmm.state, sorted(path.name for path in vmm.folder.iterdir())]

        (created, booted, _), state, _ = cloud_hypervisor.both(script, prepare=with_disk)
        assert created.status >= 400 or booted.status >= 400, config
        assert state == "none"


CH_RUNNING: list[Call] = [
    ("PUT", "vm.boot", None),
    ("PUT", "vm.create", {}),
    ("PUT", "vm.restore", {"source_url": "file:///nope"}),
    ("PUT", "vm.resume", None),
    ("PUT", "vm.snapshot", {"destination_url": "file:///nope"}),
    ("PUT", "vm.pause", None),
    ("PUT", "vm.pause", None),
    ("GET", "vm.info", None),
    ("PUT", "vm.snapshot", {}),
    ("PUT", "vm.snapshot", {"destination_url": "file:///nope"}),
    ("PUT", "vm.snapshot", {"destination_url": "/nope"}),
    ("PUT", "vm.resume", None),
    ("GET", "vm.counters", None),
    ("PUT", "vm.remove-device", {"id": "nope"}),
    ("PUT", "vm.add-disk", {"path": "nope"}),
    ("PUT", "vm.resize", {"desired_vcpus": 0}),
    ("PUT", "vm.resize", {"desired_vcpus": 9}),
    ("PUT", "vm.resize", {"desired_balloon": 1}),
    ("PUT", "vm.resize", {}),
    ("PUT", "vm.shutdown", None),
    ("GET", "vm.info", None),
    ("PUT", "vm.shutdown", None),
    ("PUT", "vm.boot", None),
    ("PUT", "vm.delete", None),
    ("GET", "vm.info", None),
]


def test_cloud_hypervisor_with_a_vm(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel, vsock={"cid": 3, "socket": "v.sock"})
        there = sorted(path.name for path in vmm.folder.iterdir())
        answers = [vmm.request(*call) for call in CH_RUNNING]
        return [there, answers, sorted(path.name for path in vmm.folder.iterdir())]

    cloud_hypervisor.both(script, prepare=with_disk)


def test_a_removed_device_stays_until_the_guest_lets_it_go(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        disk = {"path": "disk", "id": "x", "image_type": "Raw"}
        calls: list[Call] = [
            ("PUT", "vm.add-disk", disk),
            ("PUT", "vm.add-disk", disk),
            ("PUT", "vm.remove-device", {"id": "x"}),
            ("PUT", "vm.remove-device", {"id": "x"}),
        ]
        return [vmm.request(*call) for call in calls]

    added, *_ = cloud_hypervisor.both(script, prepare=with_disk)
    assert added.json["id"] == "x"


def console_of(vmm: Vmm, end: str) -> tuple[str, socket.socket]:
    """What a new client sees until this."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(os.fspath(vmm.folder / "console.sock"))
    seen = ""
    while end not in seen:
        seen += client.recv(4096).decode()
    return seen, client


def test_cloud_hypervisor_console_and_power_button(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        before, first = console_of(vmm, "hello\n")
        first.close()
        pressed = vmm.request("PUT", "vm.power-button")
        return [before, pressed, vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]

    result = cloud_hypervisor.both(script)
    assert result[2] == 0


def test_a_reset_drops_the_consoles_client(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        _, first = console_of(vmm, "hello\n")
        first.sendall(b"r")
        rest = b""
        while chunk := first.recv(4096):
            rest += chunk
        first.close()
        until((vmm.folder / "console.sock").exists, "a new console")
        again, second = console_of(vmm, "hello\n")
        second.close()
        return [rest, again, vmm.state]

    cloud_hypervisor.both(script)


def test_cloud_hypervisor_shuts_down(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        answer = vmm.request("PUT", "vmm.shutdown")
        return [answer, vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]

    assert cloud_hypervisor.both(script)[0].status == 200


CH_DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "none": lambda snapshot, run: None,
    "short memory": lambda snapshot, run: os.truncate(snapshot / "memory-ranges", 4096),
    "no memory": lambda snapshot, run: (snapshot / "memory-ranges").unlink(),
    "no config": lambda snapshot, run: (snapshot / "config.json").unlink(),
    "no state": lambda snapshot, run: (snapshot / "state.json").unlink(),
    "empty state": lambda snapshot, run: (snapshot / "state.json").write_text("{}"),
    "stale vsock": lambda snapshot, run: (run / "v.sock").touch(),
    "stale console": lambda snapshot, run: (run / "console.sock").touch(),
}


def test_cloud_hypervisor_restores_a_snapshot_or_lives_on(cloud_hypervisor: Pair) -> None:
    def save(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel, vsock={"cid": 3, "socket": "v.sock"})
        (vmm.folder / "snapshot").mkdir()
        url = {"destination_url": f"file://{vmm.folder}/snapshot"}
        calls: list[Call] = [("PUT", "vm.pause", None), ("PUT", "vm.snapshot", url), ("PUT", "vm.snapshot", url)]
        answers = [vmm.request(*call) for call in calls]
        sizes = {path.name: path.stat().st_size for path in (vmm.folder / "snapshot").iterdir()}
        modes = {path.name: path.stat().st_mode for path in (vmm.folder / "snapshot").iterdir()}
        return [answers, sorted(sizes), sizes.get("memory-ranges"), modes]

    answers, *_ = cloud_hypervisor.both(save)
    if answers[1].status != 204:
        pytest.skip(f"this KVM cannot save a VM of Cloud Hypervisor: {answers[1].body}")
    sources = {side: cloud_hypervisor.root / f"{side}1" / "snapshot" for side in ("sim", "real")}
    for damage in CH_DAMAGE.values():

        def prepare(folder: Path, damage: Callable[[Path, Path], object] = damage) -> None:
            source = next(path for side, path in sources.items() if folder.name.startswith(side))
            shutil.copytree(source, folder / "bad")
            shutil.copytree(source, folder / "good")
            damage(folder / "bad", folder)

        def script(vmm: Vmm) -> Any:
            answers = [vmm.request("PUT", "vm.restore", {"source_url": f"file://{vmm.folder}/bad"}), vmm.state]
            answers += [vmm.request("PUT", "vm.restore", {"source_url": f"file://{vmm.folder}/good"}), vmm.state]
            return [*answers, sorted(path.name for path in vmm.folder.iterdir())]

        cloud_hypervisor.both(script, prepare=prepare)


# --- HTTP, sockets, command lines ------------------------------------------------------------------------------------


def requests_of(path: str) -> dict[str, bytes]:
    get, put = f"GET {path}".encode(), f"PUT {path}".encode()
    end = b" HTTP/1.1\r\n"
    return {
        "1.0": get + b" HTTP/1.0\r\n\r\n",
        "2.0": get + b" HTTP/2.0\r\n\r\n",
        "close": get + end + b"Connection: close\r\n\r\n",
        "post": b"POST " + path.encode() + end + b"\r\n",
        "lower case": b"get " + path.encode() + end + b"\r\n",
        "no version": get + b"\r\n\r\n",
        "four words": get + b" HTTP/1.1 x\r\n\r\n",
        "no uri": b"GET  HTTP/1.1\r\n\r\n",
        "empty lines": b"\r\n\r\n",
        "zeros": b"\0" * 10 + b"\r\n\r\n",
        "absolute uri": f"GET http://localhost{path}".encode() + end + b"\r\n",
        "no slash": b"GET version" + end + b"\r\n",
        "uri not utf-8": b"GET /\xff" + end + b"\r\n",
        "header not utf-8": get + end + b"X: \xff\r\n\r\n",
        "no colon": get + end + b"nocolon\r\n\r\n",
        "only a colon": get + end + b": x\r\n\r\n",
        "line of 1024": b"GET /" + b"a" * (1024 - 16) + end + b"\r\n",
        "line of 1025": b"GET /" + b"a" * (1024 - 15) + end + b"\r\n",
        "header of 2000": get + end + b"X: " + b"a" * 2000 + b"\r\n\r\n",
        "many headers": get + end + b"".join(b"X%d: a\r\n" % i for i in range(300)) + b"\r\n",
        "chunked": put + end + b"Transfer-Encoding: chunked\r\n\r\n",
        "expect": put + end + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        "expect nothing": get + end + b"Expect: 100-continue\r\n\r\n",
        "length -1": put + end + b"Content-Length: -1\r\n\r\n",
        "length abc": put + end + b"Content-Length: abc\r\n\r\n",
        "length 2^32": put + end + b"Content-Length: 4294967296\r\n\r\n",
        "length 5 MB": put + end + b"Content-Length: 5242881\r\n\r\n",
        "length 0": get + end + b"Content-Length: 0\r\n\r\n",
        "no body": put + end + b"\r\n",
        "identity refused": get + end + b"Accept-Encoding: identity;q=0\r\n\r\n",
        "all refused": get + end + b"Accept-Encoding: gzip, *;q=0\r\n\r\n",
        "no encoding": get + end + b"Accept-Encoding:\r\n\r\n",
        "three at once": (get + end + b"\r\n") * 3,
        "bad header, then good": get + end + b"nocolon\r\n\r\n" + get + end + b"\r\n",
    }


def test_http(either: Pair) -> None:
    path = "/version" if either.name == FIRECRACKER else "/api/v1/vmm.ping"

    def script(vmm: Vmm) -> Any:
        answers = {name: vmm.raw(data) for name, data in requests_of(path).items()}
        return {
            name: re.sub(rb'"pid":\d+', b"", re.sub(rb"Content-Length: \d+", b"", each))
            for name, each in answers.items()
        }

    for name, answer in either.both(script).items():
        assert answer.startswith(b"HTTP/1.1 "), name


def test_the_eleventh_connection(either: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        ten = [vmm.connect() for _ in range(10)]
        vmm_is_there = ten[0].send(b"GET / HTTP/1.1\r\n\r\n")
        ten[0].recv(4096)
        with vmm.connect() as eleventh:
            refusal = b""
            while chunk := eleventh.recv(4096):
                refusal += chunk
        for each in ten:
            each.close()
        until(lambda: vmm.raw(b"GET / HTTP/1.1\r\n\r\n").split()[1] != b"503", "a place is free again")
        return [vmm_is_there, refusal]

    assert either.both(script)[1].startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("there", ["stale socket", "live socket", "file"])
def test_what_is_at_the_api_sockets_path(either: Pair, there: str) -> None:
    """Of a second process in the same folder: its exit code, or that it serves."""
    results = []
    for side, binary in zip(("sim", "real"), either.binaries, strict=True):
        folder = either.root / side
        with running(binary, either.name, folder) as first:
            if there != "live socket":
                first.process.kill()
                first.wait()
            if there == "file":
                first.socket_path.unlink()
                first.socket_path.touch()
            second = Vmm(binary, either.name, folder, wait=False)
            try:
                until(functools.partial(has_decided, second), "it serves or exits")
                results.append([second.process.poll(), listens(first)])
            finally:
                second.close()
    assert results[0] == results[1]


def has_decided(vmm: Vmm) -> bool:
    return vmm.process.poll() is not None or listens(vmm)


def listens(vmm: Vmm) -> bool:
    """And answers as a process of its own: its pid, where it says so."""
    if vmm.process.poll() is not None:
        return False
    try:
        with vmm.connect() as connection:
            connection.sendall(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n")
            answer = connection.recv(4096)
    except OSError:
        return False
    return vmm.name == FIRECRACKER or f'"pid":{vmm.process.pid},'.encode() in answer


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bogus"],
        ["positional"],
        ["--api-sock"],
        ["--api-sock", "a", "--api-sock", "b"],
        ["--api-sock", "nope/api.sock"],
        ["--api-sock", "a" * 120],
        ["--api-sock", "api.sock", "--level", "Foo"],
        ["--api-sock", "api.sock", "--log-path", "nope/log"],
        ["--api-sock", "api.sock", "--id", "a_b"],
        ["--api-sock", "api.sock", "--id", "a" * 65],
        ["--no-api"],
        ["--snapshot-version"],
        ["--version"],
    ],
)
def test_exit_codes_of_firecracker(firecracker: Pair, arguments: list[str]) -> None:
    compare_exits(firecracker, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bogus"],
        ["positional"],
        ["--api-socket"],
        ["--api-socket", "a", "--api-socket", "b"],
        ["--api-socket", "nope/api.sock"],
        ["--api-socket", "a" * 120],
        ["--api-socket", "fd=99"],
        ["--api-socket", "fd=x"],
        ["--api-socket", "api.sock", "--restore", "source_url=file:///nope"],
        ["--version"],
        ["-V"],
    ],
)
def test_exit_codes_of_cloud_hypervisor(cloud_hypervisor: Pair, arguments: list[str]) -> None:
    compare_exits(cloud_hypervisor, arguments)


def compare_exits(pair: Pair, arguments: list[str]) -> None:
    codes = [
        subprocess.run(
            [binary, *arguments], cwd=pair.root, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).returncode
        for binary in pair.binaries
    ]
    assert codes[0] == codes[1]
