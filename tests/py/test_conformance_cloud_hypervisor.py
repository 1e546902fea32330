"""The simulator answers as the real Cloud Hypervisor does: status, errors, state, files left."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cocoon._console import leave
from cocoon._sockets import connect
from conformance import Call, Pair, all_of, pair_of, with_disk
from simvmm_client import CLOUD_HYPERVISOR, DEADLINE, Vmm, boot, cloud_hypervisor_config, until


@pytest.fixture
def cloud_hypervisor(tmp_root: Path) -> Pair:
    return pair_of(CLOUD_HYPERVISOR, tmp_root)


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

    def attach() -> socket.socket | None:
        with suppress(FileNotFoundError, ConnectionRefusedError):  # the guest has just been reset
            return connect(vmm.folder / "console.sock", DEADLINE)
        return None

    client = until(attach, "a console")
    seen = ""
    while end not in seen:
        chunk = client.recv(4096)
        if not chunk:  # the one from before the reset, on its way out
            client = until(attach, "a new console")
        seen += chunk.decode()
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


@pytest.mark.parametrize("leaves", ["with all read", "as ours do", "with something unread"])
def test_whether_the_console_takes_another_client_after_one(cloud_hypervisor: Pair, leaves: str) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        _, first = console_of(vmm, "tick 1\n")  # and a second later the next one
        if leaves != "with all read":
            select.select([first], [], [], DEADLINE)
        if leaves == "as ours do":
            leave(first)
        else:
            first.close()
        with connect(vmm.folder / "console.sock", DEADLINE) as second:
            second.sendall(b"d")
            second.settimeout(DEADLINE if leaves != "with something unread" else 3.0)
            heard = ""
            with suppress(TimeoutError):
                while "DIRTY" not in heard and (more := second.recv(4096)):
                    heard += more.decode()
        return ["DIRTY" in heard, vmm.state]

    answered, _ = cloud_hypervisor.both(script)
    assert answered is (leaves != "with something unread")


def test_what_is_printed_between_two_clients_waits_for_the_second(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        _, first = console_of(vmm, "tick 1\n")
        leave(first)
        time.sleep(2.5)  # only a client could see that the guest has printed more
        seen, second = console_of(vmm, "tick 4\n")
        leave(second)
        return "tick 3\n" in seen

    assert cloud_hypervisor.both(script)


def test_a_reset_drops_the_consoles_client(cloud_hypervisor: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, cloud_hypervisor.kernel)
        _, first = console_of(vmm, "hello\n")
        first.sendall(b"r")
        rest = b""
        while chunk := first.recv(4096):
            rest += chunk
        first.close()
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
