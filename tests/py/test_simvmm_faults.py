"""Each fault that the simulator can be asked for, seen from outside; and what its plan refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cocoon.testing import HYPERVISORS, Fault, SimulatedVmms
from simvmm_client import CLOUD_HYPERVISOR, FIRECRACKER, Answer, Vmm, boot, running, until

PING = {FIRECRACKER: ("GET", "/version"), CLOUD_HYPERVISOR: ("GET", "vmm.ping")}
BOOT = {FIRECRACKER: "PUT /actions", CLOUD_HYPERVISOR: "PUT vm.boot"}


@pytest.fixture(params=HYPERVISORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def simulated(root: Path, name: str, *faults: Fault, **options: Any) -> Iterator[Vmm]:
    vmms = SimulatedVmms(root / "vmms", tick_ms=20)
    vmms.plan(*faults)
    with running(vmms.binaries[name], name, root / "run", **options) as vmm:
        yield vmm


def kernel_of(root: Path) -> Path:
    return root / "vmms" / "kernel"


def ping(vmm: Vmm) -> Answer:
    return vmm.request(*PING[vmm.name])


def on_ping(name: str) -> str:
    return " ".join(PING[name])


def boot_call(vmm: Vmm) -> Answer:
    """The last call of a boot, which the faults are on."""
    method, _, path = BOOT[vmm.name].partition(" ")
    return vmm.request(method, path, {"action_type": "InstanceStart"} if vmm.name == FIRECRACKER else None)


def configure(vmm: Vmm, kernel: Path) -> None:
    if vmm.name == FIRECRACKER:
        assert vmm.request("PUT", "/boot-source", {"kernel_image_path": str(kernel)}).status == 204
    else:
        assert vmm.request("PUT", "vm.create", {"payload": {"kernel": str(kernel)}}).status == 204


@pytest.mark.parametrize(
    ("how", "code"), [({"exit": 3}, 3), ({"signal": "KILL"}, -9), ({"signal": "SEGV"}, -11), ({}, 1)]
)
def test_die_at_a_call(tmp_root: Path, name: str, how: dict[str, Any], code: int) -> None:
    with simulated(tmp_root, name, Fault("die", on=BOOT[name], **how)) as vmm:
        configure(vmm, kernel_of(tmp_root))
        assert boot_call(vmm) == Answer(0)
        assert vmm.wait() == code
        assert "simulated fault: die" in vmm.log()
        assert vmm.socket_path.exists()


def test_die_at_the_second_call_of_its_kind(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("die", on=on_ping(name), call=2)) as vmm:
        assert ping(vmm).status == 200
        assert ping(vmm) == Answer(0)
        assert vmm.wait() == 1


def test_die_after_a_time(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("die", after_ms=50, exit=7)) as vmm:
        assert vmm.wait() == 7


def test_die_at_the_start(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("die", exit=9), wait=False) as vmm:
        assert vmm.wait() == 9


def test_hang(tmp_root: Path, name: str) -> None:
    with (
        simulated(tmp_root, name, Fault("hang", on=on_ping(name))) as vmm,
        vmm.connect() as asked,
        vmm.connect() as other,
    ):
        path = PING[name][1] if name == FIRECRACKER else f"/api/v1/{PING[name][1]}"
        for connection in (asked, other):
            connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        assert vmm.process.poll() is None
        vmm.process.send_signal(signal.SIGTERM)
        assert vmm.wait() == {FIRECRACKER: -signal.SIGTERM, CLOUD_HYPERVISOR: 0}[name]


def test_hang_with_effect_leaves_a_running_guest(tmp_root: Path) -> None:
    with simulated(tmp_root, FIRECRACKER, Fault("hang", on=BOOT[FIRECRACKER], effect=True)) as vmm:
        configure(vmm, kernel_of(tmp_root))
        with vmm.connect() as connection:
            body = b'{"action_type":"InstanceStart"}'
            connection.sendall(b"PUT /actions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            until(lambda: "tick 2" in vmm.printed(), "the guest runs on")


def test_refuse(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("refuse", on=on_ping(name))) as vmm:
        assert ping(vmm) == Answer(0)
        assert vmm.socket_path.exists()
        with pytest.raises(ConnectionRefusedError):
            vmm.connect()
        assert vmm.process.poll() is None


def test_answer_in_the_vmms_own_shape(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("answer", on=BOOT[name], status=500)) as vmm:
        configure(vmm, kernel_of(tmp_root))
        answer = boot_call(vmm)
        assert answer.status == 500
        shape = {
            FIRECRACKER: {"fault_message": "simulated fault"},
            CLOUD_HYPERVISOR: ["Error from API", "simulated fault"],
        }
        assert answer.json == shape[name]
        assert vmm.state == {FIRECRACKER: "Not started", CLOUD_HYPERVISOR: "Created"}[name]
        assert boot_call(vmm).status == 204


def test_answer_with_effect_hides_a_success(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("answer", on=BOOT[name], effect=True, body="no", status=503)) as vmm:
        configure(vmm, kernel_of(tmp_root))
        assert boot_call(vmm) == Answer(503, "no")
        assert vmm.state == "Running"


def test_answer_repeats(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("answer", on="*", call=2, repeat=True, status=500)) as vmm:
        assert [ping(vmm).status for _ in range(4)] == [200, 500, 500, 500]


def test_garbage(tmp_root: Path, name: str) -> None:
    with simulated(
        tmp_root, name, Fault("garbage", on="*"), Fault("garbage", on="*", call=2, body="HTTP/9 what")
    ) as vmm:
        assert vmm.raw(b"GET / HTTP/1.1\r\n\r\n") == b"\x7f\0 this is not HTTP\r\n\r\n\xff"
        assert vmm.raw(b"GET / HTTP/1.1\r\n\r\n") == b"HTTP/9 what"
        assert vmm.raw(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 ")


def test_close(tmp_root: Path, name: str) -> None:
    with simulated(
        tmp_root, name, Fault("close", on="*"), Fault("close", on="*", call=2, effect=True, bytes=12)
    ) as vmm:
        assert vmm.raw(b"GET / HTTP/1.1\r\n\r\n") == b""
        assert vmm.raw(b"GET / HTTP/1.1\r\n\r\n") in {b"HTTP/1.1 200", b"HTTP/1.1 404"}


def test_slow(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("slow", on="*", time_ms=300)) as vmm, vmm.connect() as other:
        began = time.monotonic()
        assert ping(vmm).status == 200
        assert time.monotonic() - began >= 0.3
        other.close()
        assert ping(vmm).status == 200


def test_slow_serves_nobody_else_meanwhile(tmp_root: Path, name: str) -> None:
    with (
        simulated(tmp_root, name, Fault("slow", on="*", time_ms=200)) as vmm,
        vmm.connect() as slow,
        vmm.connect() as other,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\n\r\n")
        # Accepted and read in this order.
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        assert other.recv(4096)
        assert time.monotonic() - began >= 0.1
        assert slow.recv(4096)


def test_slow_at_the_start(tmp_root: Path, name: str) -> None:
    began = time.monotonic()
    with simulated(tmp_root, name, Fault("slow", time_ms=300)) as vmm:
        assert time.monotonic() - began >= 0.3
        assert ping(vmm).status == 200


def test_fork_leaves_a_child_with_what_it_had_open(tmp_root: Path, name: str) -> None:
    reader, writer = os.pipe()
    try:
        vmms = SimulatedVmms(tmp_root / "vmms")
        vmms.plan(Fault("fork", on="*", time_ms=600))
        folder = tmp_root / "run"
        folder.mkdir()
        argv = {FIRECRACKER: ["--api-sock", "api.sock"], CLOUD_HYPERVISOR: ["--api-socket", "api.sock"]}[name]
        process = subprocess.Popen(
            [vmms.binaries[name], *argv],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writer],
        )
        os.close(writer)
        writer = -1
        with socket.socket(socket.AF_UNIX) as connection:
            until(lambda: connection.connect_ex(os.fspath(folder / "api.sock")) == 0, "it listens")
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 ")
        process.kill()
        process.wait()
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)  # its child still holds the other end
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""  # until it ends
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_power_off_by_itself(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("power-off", after_ms=500)) as vmm:
        configure(vmm, kernel_of(tmp_root))
        assert boot_call(vmm).status == 204
        assert vmm.wait() == 0
        if name == FIRECRACKER:
            assert vmm.printed().endswith("DOWN q\n")


def test_ignore_sigterm(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("ignore-sigterm")) as vmm:
        vmm.process.send_signal(signal.SIGTERM)
        assert ping(vmm).status == 200
        vmm.process.send_signal(signal.SIGKILL)
        assert vmm.wait() == -signal.SIGKILL


def test_keep_socket(tmp_root: Path) -> None:
    with simulated(tmp_root, CLOUD_HYPERVISOR, Fault("keep-socket")) as vmm:
        assert vmm.request("PUT", "vmm.shutdown").status == 200
        assert vmm.wait() == 0
        assert vmm.socket_path.exists()


def test_no_socket(tmp_root: Path, name: str) -> None:
    with simulated(tmp_root, name, Fault("no-socket"), Fault("die", after_ms=200, exit=4), wait=False) as vmm:
        assert vmm.wait() == 4
        assert not vmm.socket_path.exists()


def test_a_guest_that_ignores_shutdown_requests(tmp_root: Path) -> None:
    vmms = SimulatedVmms(tmp_root / "vmms", tick_ms=20, ignores_requests=True)
    with running(vmms.binaries[FIRECRACKER], FIRECRACKER, tmp_root / "run") as vmm:
        boot(vmm, vmms.kernel)
        assert vmm.request("PUT", "/actions", {"action_type": "SendCtrlAltDel"}).status == 204
        until(lambda: "IGNORED ctrl-alt-del" in vmm.printed(), "it says so")
        assert vmm.state == "Running"


def test_where_the_plan_comes_from(tmp_root: Path, name: str) -> None:
    """The environment before the working directory before the program's own folder."""
    vmms = SimulatedVmms(tmp_root / "vmms")
    vmms.plan(Fault("die", exit=10))
    folder = tmp_root / "run"

    def code(**options: Any) -> int:
        (folder / "api.sock").unlink(missing_ok=True)
        with running(vmms.binaries[name], name, folder, wait=False, **options) as vmm:
            return vmm.wait()

    assert code() == 10
    (folder / "simvmm.json").write_text(json.dumps({"faults": [{"do": "die", "exit": 11}]}))
    assert code() == 11
    assert code(env={"COCOON_SIMVMM_FAULTS": '{"faults": [{"do": "die", "exit": 12}]}'}) == 12
    (folder / "other.json").write_text('{"faults": [{"do": "die", "exit": 13}]}')
    assert code(env={"COCOON_SIMVMM_FAULTS": "other.json"}) == 13


@pytest.mark.parametrize("text", ["{", '{"faults": [{"do": "dye"}]}', '{"faults": [{"do": "die", "Exit": 1}]}'])
def test_a_mistake_in_the_plan_ends_it_at_once(tmp_root: Path, name: str, text: str) -> None:
    vmms = SimulatedVmms(tmp_root / "vmms")
    (vmms.folder / f"{name}.json").write_text(text)
    with running(vmms.binaries[name], name, tmp_root / "run", wait=False) as vmm:
        assert vmm.wait() == 78
        assert f"cocoon-simvmm: {vmms.folder}/{name}.json: " in vmm.log()
        assert not vmm.socket_path.exists()


def test_the_environments_file_must_be_there(tmp_root: Path, name: str) -> None:
    env = {"COCOON_SIMVMM_FAULTS": "nope.json"}
    with running(SimulatedVmms(tmp_root / "vmms").binaries[name], name, tmp_root / "run", wait=False, env=env) as vmm:
        assert vmm.wait() == 78
