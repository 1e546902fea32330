"""What a VMM does wrong, at any moment: the error says so, the record is true, the ledger balances, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cocoon import Backend, Node, VMConfig, VmmError, VmmTimeout, VMState
from cocoon.testing import HYPERVISORS, Fault, SimulatedVmms
from harness import check_node, ledger_lines, reasons, shim_of
from vmms import processes_below

Wait = Callable[..., None]

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
    node: Node
    backend: Backend

    def plan(self, *faults: Fault) -> None:
        self.vmms.plan(*faults)

    def create(self) -> str:
        return self.backend.create(VMConfig("web", memory="64M", storage="1M", kernel=self.vmms.kernel)).id

    def start_forking(self) -> tuple[str, int, int]:
        """The VM's id, its VMM, and a child of that which looks like it and would live for a minute."""
        vm_id = self.create()
        self.plan(Fault("fork", on=FIRST[self.hypervisor]))
        self.backend.start("web")
        self.plan()
        pid = self.backend.inspect("web").pid
        assert pid is not None
        (child,) = set(processes_below(self.root)) - {pid}
        return vm_id, pid, child

    def said(self, vm_id: str) -> list[tuple[str, str | None]]:
        return reasons(ledger_lines(self.root), vm_id)


@pytest.fixture(params=HYPERVISORS)
def stage(request: pytest.FixtureRequest, tmp_root: Path, tmp_path: Path) -> Iterator[Stage]:
    vmms = SimulatedVmms(tmp_path / "vmms")
    with Node(tmp_root, binaries=vmms.binaries) as node:
        backend = Backend(node, request.param, socket_timeout=2, stop_timeout=0.3, terminate_grace=0.3)
        yield Stage(tmp_root, request.param, vmms, node, backend)
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


# ------------------------------------------------------------------ a VMM that forks


@pytest.mark.parametrize("force", [False, True])
def test_what_a_vmm_has_forked_ends_with_it(stage: Stage, force: bool) -> None:
    vm_id, _, _ = stage.start_forking()
    stage.backend.stop("web", force=force)
    vm = stage.backend.inspect("web")
    assert (vm.state, vm.alive, vm.interval_open) == (VMState.STOPPED, False, False)
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-user")]
    assert processes_below(stage.root) == []
    stage.backend.start("web")
    assert stage.said(vm_id)[-1] == ("vm.compute.start", "restart")


def test_what_a_vmm_has_forked_goes_with_the_vm(stage: Stage) -> None:
    vm_id, _, _ = stage.start_forking()
    stage.backend.delete("web", force=True)
    assert processes_below(stage.root) == []
    assert stage.said(vm_id) == [*STARTED, ("vm.compute.stop", "stop-user"), ("vm.storage.stop", "vm-rm")]


def test_a_start_that_fails_takes_along_what_its_vmm_has_forked(stage: Stage) -> None:
    vm_id = stage.create()
    stage.plan(Fault("fork", on=FIRST[stage.hypervisor]), Fault("die", on=BOOT[stage.hypervisor], signal="KILL"))
    with pytest.raises(VmmError, match="simulated fault: fork"):
        stage.backend.start("web")
    vm = stage.backend.inspect("web")
    assert (vm.state, vm.alive, vm.interval_open) == (VMState.ERROR, False, False)
    assert processes_below(stage.root) == []
    stage.plan()
    stage.backend.start("web")
    assert stage.said(vm_id) == STARTED


CRASHED = [*STARTED, ("vm.compute.stop", "stop-crash")]


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        (lambda stage: stage.backend.start("web"), [*CRASHED, ("vm.compute.start", "restart")]),
        (lambda stage: stage.backend.stop("web"), CRASHED),
        (lambda stage: stage.backend.delete("web"), [*CRASHED, ("vm.storage.stop", "vm-rm")]),
        (lambda stage: stage.node.reconcile(fix=True), CRASHED),
        (lambda stage: stage.node.gc(), CRASHED),
    ],
    ids=["start", "stop", "rm", "reconcile", "gc"],
)
def test_a_child_that_outlives_its_vmm_is_not_taken_for_it(
    stage: Stage, wait_until: Wait, sequence: Callable[[Stage], object], said: list[tuple[str, str]]
) -> None:
    vm_id, pid, child = stage.start_forking()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.backend.inspect("web").alive is False, "it is seen to be dead")
    (row,) = stage.node.reconcile().rows
    assert (row["status"], row["action"]) == ("open-but-process-dead", "")
    assert processes_below(stage.root) == [child], "a look changes nothing"
    sequence(stage)
    assert child not in processes_below(stage.root)
    assert stage.said(vm_id) == said
    stops = [line for line in ledger_lines(stage.root) if line["kind"] == "vm.compute.stop"]
    assert [line.get("evidence") for line in stops] == ["shim"], "the child's end is not the VMM's"
    assert stage.node.reconcile().ok


def test_a_child_that_outlives_a_stopped_vm_is_an_orphan(stage: Stage, wait_until: Wait) -> None:
    vm_id, pid, child = stage.start_forking()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.backend.inspect("web").alive is False, "it is seen to be dead")
    stage.backend.mark_stopped("web")
    said = stage.said(vm_id)
    assert [(row["status"], row["pid"], row["action"]) for row in stage.node.reconcile().rows] == [
        ("orphan-process", child, "")
    ]
    assert processes_below(stage.root) == [child]
    report = stage.node.reconcile(fix=True)
    assert report.ok
    assert [(row["status"], row["action"]) for row in report.rows] == [("orphan-process", "killed, its VMM is dead")]
    assert processes_below(stage.root) == []
    assert [row["status"] for row in stage.node.reconcile().rows] == ["ok"]
    assert stage.said(vm_id) == said, "nothing more is said of what was closed"


def test_a_child_whose_vmm_died_unseen_is_ended_by_a_stop(stage: Stage, wait_until: Wait) -> None:
    vm_id, pid, child = stage.start_forking()
    os.kill(shim_of(pid), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.backend.inspect("web").pid == child, "only the child is left")
    stage.backend.stop("web", force=True)
    assert stage.backend.inspect("web").state == VMState.STOPPED
    assert processes_below(stage.root) == []
    assert stage.said(vm_id) == CRASHED
