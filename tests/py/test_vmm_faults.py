"""What a VMM does wrong, at any moment: the error says so, the record is true, the ledger balances, nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cocoon import Backend, Node, VMConfig, VmmError, VmmTimeout, VMState
from cocoon.testing import HYPERVISORS, Fault, SimulatedVmms
from harness import check_node, ledger_lines, reasons
from vmms import processes_below

CREATED = [("vm.storage.start", "boot")]
STARTED = [*CREATED, ("vm.compute.start", "boot")]

BOOT = {"firecracker": "PUT /actions", "cloud-hypervisor": "PUT vm.boot"}
FIRST = {"firecracker": "GET /", "cloud-hypervisor": "GET vm.info"}
PAUSE = {"firecracker": "PATCH /vm", "cloud-hypervisor": "PUT vm.pause"}
POWER_OFF = {"firecracker": "PUT /actions", "cloud-hypervisor": "PUT vm.power-button"}


@dataclass
class Stage:
    root: Path
    hypervisor: str
    vmms: SimulatedVmms
    backend: Backend

    def plan(self, *faults: Fault) -> None:
        self.vmms.plan(*faults)

    def create(self) -> str:
        return self.backend.create(VMConfig("web", memory="64M", storage="1M", kernel=self.vmms.kernel)).id

    def said(self, vm_id: str) -> list[tuple[str, str | None]]:
        return reasons(ledger_lines(self.root), vm_id)


@pytest.fixture(params=HYPERVISORS)
def stage(request: pytest.FixtureRequest, tmp_root: Path, tmp_path: Path) -> Iterator[Stage]:
    vmms = SimulatedVmms(tmp_path / "vmms")
    with Node(tmp_root, binaries=vmms.binaries) as node:
        backend = Backend(node, request.param, socket_timeout=2, stop_timeout=0.3, terminate_grace=0.3)
        yield Stage(tmp_root, request.param, vmms, backend)
        for vm in backend.list():
            backend.delete(vm.id, force=True)
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []


@pytest.mark.parametrize("where", [BOOT, FIRST], ids=["boot", "first"])
@pytest.mark.parametrize(
    "fault",
    [
        {"do": "die", "signal": "KILL"},
        {"do": "die", "exit": 7},
        {"do": "die", "signal": "SEGV", "effect": True},
        {"do": "answer", "status": 500},
        {"do": "answer", "status": 400, "effect": True},
        {"do": "garbage"},
        {"do": "close"},
        {"do": "close", "bytes": 20, "effect": True},
        {"do": "refuse"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_a_start_that_fails_leaves_nothing(stage: Stage, where: dict[str, str], fault: dict[str, object]) -> None:
    vm_id = stage.create()
    again = None if fault["do"] in ("die", "refuse") else True
    stage.plan(Fault(on=where[stage.hypervisor], repeat=again, **fault))  # type: ignore[arg-type]
    with pytest.raises(VmmError) as caught:
        stage.backend.start("web")
    assert "status 78" not in str(caught.value), "the simulator did not understand the plan"
    vm = stage.backend.inspect("web")
    assert (vm.state, vm.alive, vm.interval_open) == (VMState.ERROR, False, False)
    assert stage.said(vm_id) == CREATED, "a guest that was never well is not billed"
    assert processes_below(stage.root) == []
    stage.plan()
    stage.backend.start("web")
    assert stage.said(vm_id) == STARTED


@pytest.mark.parametrize(
    "fault", [Fault("hang"), Fault("slow", time_ms=20_000), Fault("no-socket")], ids=lambda f: f.do
)
def test_a_vmm_that_never_answers_is_a_timeout(stage: Stage, fault: Fault) -> None:
    if fault.do != "hang" and stage.hypervisor == "cloud-hypervisor":
        pytest.skip("its socket is ours")
    vm_id = stage.create()
    stage.plan(fault)
    begin = time.monotonic()
    with pytest.raises(VmmTimeout, match="did not answer within 2000 ms"):
        stage.backend.start("web")
    assert time.monotonic() - begin < 10
    assert stage.backend.inspect("web").state == VMState.ERROR
    assert stage.said(vm_id) == CREATED


def test_a_vmm_that_refuses_to_pause_runs_on(stage: Stage) -> None:
    vm_id = stage.create()
    stage.plan(Fault("answer", on=PAUSE[stage.hypervisor], status=500, body="no"))
    stage.backend.start("web")
    with pytest.raises(VmmError) as caught:
        stage.backend.pause("web")
    assert caught.value.status == 500
    assert stage.backend.inspect("web").alive
    stage.backend.pause("web")
    assert stage.said(vm_id) == STARTED


def test_a_vmm_that_dies_while_it_is_paused_is_a_crash(stage: Stage) -> None:
    vm_id = stage.create()
    stage.plan(Fault("die", on=PAUSE[stage.hypervisor], signal="KILL"))
    stage.backend.start("web")
    with pytest.raises(VmmError):
        stage.backend.pause("web")
    stage.backend.stop("web")
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-crash")]


@pytest.mark.parametrize("do", ["answer", "garbage", "close", "refuse"])
def test_a_vmm_that_does_not_pass_on_the_request_is_ended_all_the_same(stage: Stage, do: str) -> None:
    vm_id = stage.create()
    call = 2 if stage.hypervisor == "firecracker" else 1  # its first is the start
    again = None if do == "refuse" else True
    stage.plan(Fault(do, on=POWER_OFF[stage.hypervisor], call=call, repeat=again))  # type: ignore[arg-type]
    stage.backend.start("web")
    stage.backend.stop("web")
    assert stage.backend.inspect("web").state == VMState.STOPPED
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-user")]


def test_a_vmm_that_ignores_everything_is_killed(stage: Stage) -> None:
    vm_id = stage.create()
    stage.plan(Fault("ignore-sigterm"), Fault("hang", on=PAUSE[stage.hypervisor]))
    stage.backend.start("web")
    with pytest.raises(VmmTimeout):
        stage.backend.pause("web")
    stage.backend.stop("web")
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-user")]


def test_a_guest_that_powers_off_by_itself_is_found_dead(stage: Stage) -> None:
    vm_id = stage.create()
    stage.plan(Fault("power-off", after_ms=100))
    stage.backend.start("web")
    deadline = time.monotonic() + 10
    while stage.backend.inspect("web").alive is not False:
        assert time.monotonic() < deadline
    stage.plan()
    stage.backend.start("web")
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-crash"), ("vm.compute.start", "restart")]


def test_a_socket_that_is_left_behind_is_in_nobodys_way(stage: Stage) -> None:
    stage.create()
    stage.plan(Fault("keep-socket"))
    for _ in range(2):
        stage.backend.start("web")
        stage.backend.stop("web")
