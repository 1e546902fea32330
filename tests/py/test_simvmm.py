"""The simulator itself: what it costs, the vendors' own descriptions of what it answers, snapshots, cocoon.testing."""

from __future__ import annotations

import fcntl
import json
import re
import select
import shutil
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cocoon._sockets import connect
from cocoon.testing import HYPERVISORS, Fault, SimulatedVmms, simulated_node, simvmm_path
from harness import listening
from simvmm_client import CLOUD_HYPERVISOR, DEADLINE, FIRECRACKER, Vmm, boot, running, until

SPECS = Path(__file__).resolve().parents[1] / "data" / "vmm-specs"


@pytest.fixture
def vmms(tmp_root: Path) -> SimulatedVmms:
    return SimulatedVmms(tmp_root / "vmms", tick_ms=20)


@pytest.fixture(params=HYPERVISORS)
def vmm(request: pytest.FixtureRequest, vmms: SimulatedVmms, tmp_root: Path) -> Iterator[Vmm]:
    with running(vmms.binaries[request.param], request.param, tmp_root / "run") as started:
        yield started


def anonymous_kb(pid: int) -> int:
    """What it has for itself alone: not the pages of its program, which all of them share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (anonymous,) = (int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return anonymous


def test_its_own_memory_is_below_2_mb(vmm: Vmm, vmms: SimulatedVmms) -> None:
    """With a booted guest and after a thousand requests."""
    boot(vmm, vmms.kernel)
    for _ in range(1000):
        assert vmm.request("GET", "/" if vmm.name == FIRECRACKER else "vm.info").status == 200
    assert anonymous_kb(vmm.process.pid) < 2048


def test_it_links_no_library() -> None:
    done = subprocess.run(["ldd", simvmm_path()], capture_output=True, text=True, check=False)
    if "asan" in done.stdout or "tsan" in done.stdout:
        pytest.skip("a sanitizer is in it")
    assert done.stdout.strip() == "statically linked"


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run([simvmm_path()], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: cocoon-simvmm firecracker|cloud-hypervisor")


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["firecracker", "--version"], "Firecracker v1.17.0-dev"),
        (["cloud-hypervisor", "--version"], "cloud-hypervisor v53.0-246-gae44c2971-dirty"),
    ],
)
def test_its_first_argument_says_what_it_is(arguments: list[str], first: str) -> None:
    done = subprocess.run([simvmm_path(), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == first


# --- The vendors' descriptions ---------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The schema with no property but those it names, where it names any."""
    if isinstance(schema, dict):
        result = {key: closed(value) for key, value in schema.items()}
        if isinstance(result.get("properties"), dict) and "additionalProperties" not in result:
            result["additionalProperties"] = False
        if result.get("$ref"):
            result = {"$ref": result["$ref"]}
        return result
    return [closed(each) for each in schema] if isinstance(schema, list) else schema


def nulls_dropped(value: Any) -> Any:
    """Both VMMs write null for what is not there; OpenAPI has no word for that."""
    if isinstance(value, dict):
        return {key: nulls_dropped(each) for key, each in value.items() if each is not None}
    return [nulls_dropped(each) for each in value] if isinstance(value, list) else value


class Description:
    def __init__(self, name: str) -> None:
        self.name = name
        self.document = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
        self._closed = closed(self.document)

    def check(self, schema: dict[str, Any], value: Any) -> None:
        jsonschema.Draft4Validator({**self._closed, **closed(schema)}).validate(nulls_dropped(value))

    def operation(self, method: str, path: str) -> dict[str, Any]:
        for template, operations in self.document["paths"].items():
            parts, wanted = template.split("/"), f"/{path.lstrip('/')}".split("/")
            same = len(parts) == len(wanted) and all(
                part == want or part.startswith("{") for part, want in zip(parts, wanted, strict=True)
            )
            if same and method.lower() in operations:
                return dict(operations[method.lower()])
        raise AssertionError(f"{self.name} describes no {method} {path}")

    def check_request(self, method: str, path: str, body: Any) -> None:
        operation = self.operation(method, path)
        if self.name == FIRECRACKER:
            schemas = [each["schema"] for each in operation.get("parameters", []) if each["in"] == "body"]
        else:
            content = operation.get("requestBody", {}).get("content", {})
            schemas = [each["schema"] for each in content.values()]
        assert bool(schemas) == (body is not None), (method, path)
        for schema in schemas:
            self.check(schema, body)

    def check_answer(self, method: str, path: str, status: int, body: Any) -> None:
        responses = self.operation(method, path)["responses"]
        response = responses.get(status) or responses.get(str(status)) or responses.get("default")
        assert response is not None, f"{method} {path}: {status} is not among {list(responses)}"
        schema = response.get("schema")
        for content in response.get("content", {}).values():
            schema = content.get("schema")
        assert (schema is not None) == (body is not None), (method, path, status, body)
        if schema is not None:
            self.check(schema, body)


def firecracker_calls(kernel: Path) -> list[tuple[str, str, Any]]:
    disk = {"drive_id": "d0", "path_on_host": str(kernel), "is_root_device": False, "is_read_only": True}
    return [
        ("GET", "/version", None),
        ("GET", "/", None),
        ("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 64, "huge_pages": "None", "smt": False}),
        ("PATCH", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": True}),
        ("PUT", "/boot-source", {"kernel_image_path": str(kernel), "boot_args": "a"}),
        ("PUT", "/drives/d0", {**disk, "io_engine": "Sync", "cache_type": "Unsafe"}),
        (
            "PUT",
            "/network-interfaces/eth0",
            {"iface_id": "eth0", "host_dev_name": "t", "guest_mac": "06:00:00:00:00:01"},
        ),
        ("PUT", "/balloon", {"amount_mib": 16, "deflate_on_oom": True, "stats_polling_interval_s": 1}),
        ("PUT", "/entropy", {}),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"}),
        ("PUT", "/serial", {}),
        ("PUT", "/mmds/config", {"network_interfaces": ["eth0"]}),
        ("PUT", "/mmds", {"a": 1}),
        ("GET", "/mmds", None),
        ("GET", "/vm/config", None),
        ("GET", "/balloon", None),
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}),
        ("GET", "/balloon/statistics", None),
        ("PATCH", "/balloon", {"amount_mib": 3}),
        ("PATCH", "/drives/d0", {"drive_id": "d0", "path_on_host": str(kernel)}),
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem", "snapshot_type": "Diff"}),
        ("PATCH", "/vm", {"state": "Resumed"}),
        ("GET", "/machine-config", None),
        ("GET", "/vm/config", None),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
    ]


def cloud_hypervisor_calls(kernel: Path) -> list[tuple[str, str, Any]]:
    config = {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
        "memory": {"size": 64 << 20, "shared": True},
        "payload": {"kernel": str(kernel), "cmdline": "hello"},
        "disks": [{"path": str(kernel), "readonly": True, "image_type": "Raw", "serial": "l0"}],
        "net": [{"id": "net0", "tap": "t", "mac": "06:00:00:00:00:01"}],
        "vsock": {"cid": 3, "socket": "v.sock"},
        "balloon": {"size": 1 << 20, "deflate_on_oom": True, "free_page_reporting": True},
        "serial": {"mode": "Socket", "socket": "console.sock"},
        "console": {"mode": "Off"},
        "rng": {"src": "/dev/urandom"},
        "watchdog": True,
    }
    return [
        ("GET", "vmm.ping", None),
        ("PUT", "vm.delete", None),
        ("PUT", "vm.create", config),
        ("PUT", "vm.boot", None),
        ("GET", "vm.info", None),
        ("GET", "vm.counters", None),
        ("PUT", "vm.add-disk", {"path": str(kernel), "readonly": True, "id": "x"}),
        ("PUT", "vm.remove-device", {"id": "x"}),
        ("PUT", "vm.resize", {"desired_vcpus": 2, "desired_balloon": 0}),
        ("PUT", "vm.pause", None),
        ("PUT", "vm.snapshot", {"destination_url": "file://FOLDER"}),
        ("PUT", "vm.resume", None),
        ("PUT", "vm.reboot", None),
        ("PUT", "vm.power-button", None),
    ]


# What this Cloud Hypervisor shows and its own description does not know; the conformance test says that it does.
UNDESCRIBED = {
    "cpus": {"profile"},
    "memory": {"reserve"},
    "disks": {"disable_io_uring", "disable_aio"},
    "console": {"pci_segment"},
}


def without_undescribed(value: Any) -> Any:
    for section, names in UNDESCRIBED.items():
        parts = value.get("config", {}).get(section, {})
        for part in parts if isinstance(parts, list) else [parts]:
            for name in names:
                part.pop(name, None)
    value.pop("device_tree", None)
    value.get("config", {}).pop("landlock_enable", None)
    return value


def test_requests_and_answers_are_those_of_the_vendors_description(vmm: Vmm, vmms: SimulatedVmms) -> None:
    description = Description(vmm.name)
    calls = firecracker_calls(vmms.kernel) if vmm.name == FIRECRACKER else cloud_hypervisor_calls(vmms.kernel)
    (vmm.folder / "snapshot").mkdir()
    for method, path, body in calls:
        description.check_request(method, path, body)
        sent = body
        if path == "vm.snapshot":
            sent = {"destination_url": f"file://{vmm.folder}/snapshot"}
        answer = vmm.request(method, path, sent)
        shown = answer.json
        if path == "vm.info":
            shown = without_undescribed(shown)
        description.check_answer(method, path, answer.status, shown)
    assert vmm.wait() == 0


# --- Snapshots and consoles ------------------------------------------------------------------------------------------


def test_a_loaded_guest_goes_on_counting(vmms: SimulatedVmms, tmp_root: Path) -> None:
    with running(vmms.binaries[FIRECRACKER], FIRECRACKER, tmp_root / "first") as first:
        boot(first, vmms.kernel)
        until(lambda: "tick 3\n" in first.printed(), "three ticks")
        first.request("PATCH", "/vm", {"state": "Paused"})
        assert (
            first.request("PUT", "/snapshot/create", {"snapshot_path": "vmstate", "mem_file_path": "mem"}).status == 204
        )
        memory = (first.folder / "mem").stat()
        assert (memory.st_size, memory.st_blocks * 512 <= 16384) == (64 << 20, True)
        last = first.printed().rstrip().rpartition("tick ")[2]
    with running(vmms.binaries[FIRECRACKER], FIRECRACKER, tmp_root / "second") as second:
        for file in ("vmstate", "mem"):
            shutil.move(first.folder / file, second.folder / file)
        backend = {"backend_type": "File", "backend_path": "mem"}
        body = {"snapshot_path": "vmstate", "mem_backend": backend, "resume_vm": True}
        assert second.request("PUT", "/snapshot/load", body).status == 204
        assert until(second.printed, "it prints").startswith(f"tick {int(last) + 1}\n")


def queued(connection: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_console_that_is_read_slowly_loses_nothing(tmp_root: Path) -> None:
    vmms = SimulatedVmms(tmp_root / "vmms", tick_ms=1)
    with running(vmms.binaries[CLOUD_HYPERVISOR], CLOUD_HYPERVISOR, tmp_root / "vm") as vmm:
        boot(vmm, vmms.kernel)
        with connect(vmm.folder / "console.sock", DEADLINE) as slow:
            looks = [0, 0, 0]

            def is_full() -> bool:
                time.sleep(0.5)  # in which a guest that is heard prints hundreds of lines
                looks.append(queued(slow))
                return looks[-1] == looks[-2] == looks[-3] > 0

            until(is_full, "no more fits")
            assert vmm.request("PUT", "vm.pause").status == 204
            assert vmm.state == "Paused"  # asked when all is said that was to be said before the pause
            seen = slow.recv(1 << 20)
            # The rest stays where it is until the guest prints more, or somebody else comes.
            assert select.select([slow], [], [], 0.1)[0] == []
            with connect(vmm.folder / "console.sock", DEADLINE) as other:
                assert slow.recv(1) == b"", "it was replaced"
                held = other.recv(1 << 20)
                assert vmm.request("PUT", "vm.resume").status == 204
                seen += held + other.recv(1 << 20)
    assert held
    ticks = [int(number) for number in re.findall(rb"tick (\d+)\n", seen)]
    assert ticks == list(range(1, len(ticks) + 1))


def test_a_private_mapping_of_an_edited_snapshot_is_restored(vmms: SimulatedVmms, tmp_root: Path) -> None:
    """What cocoon does with Cloud Hypervisor's snapshots: a zone of the memory file, and no ranges to read."""
    source = tmp_root / "snapshot"
    source.mkdir()
    with running(vmms.binaries[CLOUD_HYPERVISOR], CLOUD_HYPERVISOR, tmp_root / "first") as first:
        boot(first, vmms.kernel)
        console = connect(first.folder / "console.sock", DEADLINE)
        seen = ""
        while "tick 2\n" not in seen:
            seen += console.recv(4096).decode()
        assert first.request("PUT", "vm.pause").status == 204
        assert first.request("PUT", "vm.snapshot", {"destination_url": f"file://{source}"}).status == 204
        console.close()
    config = json.loads((source / "config.json").read_text())
    size, config["memory"]["size"] = config["memory"]["size"], 0
    config["memory"]["zones"] = [{"id": "mem0", "size": size, "file": str(source / "memory-ranges"), "shared": False}]
    (source / "config.json").write_text(json.dumps(config))
    state = json.loads((source / "state.json").read_text())
    data = state["snapshots"]["memory-manager"]["snapshot_data"]
    memory = json.loads(data["state"])
    assert memory["memory_ranges"]["data"] == [{"gpa": 0, "length": size}]
    memory["memory_ranges"]["data"] = []
    data["state"] = json.dumps(memory)
    (source / "state.json").write_text(json.dumps(state))
    with running(vmms.binaries[CLOUD_HYPERVISOR], CLOUD_HYPERVISOR, tmp_root / "second") as second:
        body = {"source_url": f"file://{source}", "resume": True}
        assert second.request("PUT", "vm.restore", body).status == 204
        with connect(second.folder / "console.sock", DEADLINE) as console:
            first_tick = int(console.recv(4096).decode().split()[1])
        assert first_tick > 2


def test_cloud_hypervisor_serves_a_socket_it_was_given(vmms: SimulatedVmms, tmp_root: Path) -> None:
    path = tmp_root / "given.sock"
    with listening(path) as listener:
        process = subprocess.Popen(
            [vmms.binaries[CLOUD_HYPERVISOR], "--api-socket", f"fd={listener.fileno()}"],
            cwd=tmp_root,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    with connect(path, DEADLINE) as client:
        client.sendall(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert process.wait(20) == 0
    assert path.exists()


# --- cocoon.testing --------------------------------------------------------------------------------------------------


def test_a_fault_is_written_without_what_is_not_set() -> None:
    assert Fault("die", on="PUT /x", call=2, exit=0).to_json() == {"do": "die", "on": "PUT /x", "call": 2, "exit": 0}


def test_a_simulated_node_has_both_vmms(tmp_root: Path) -> None:
    with simulated_node(tmp_root / "node", Fault("die", after_ms=5)) as (node, vmms):
        assert node.vms() == []
        assert set(vmms.binaries) == set(HYPERVISORS)
        plan = json.loads((vmms.folder / "firecracker.json").read_text())
        assert plan["faults"] == [{"do": "die", "after_ms": 5}]
        vmms.plan(hypervisor="firecracker")
        assert json.loads((vmms.folder / "firecracker.json").read_text())["faults"] == []
        assert json.loads((vmms.folder / "cloud-hypervisor.json").read_text())["faults"] != []
