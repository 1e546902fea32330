"""What a VMM does wrong while its guest is saved or loaded: the error says so, the guest is where it was, nothing is
left. And what is loaded is not removed under its VMM."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import test_vmm_faults
from cocoon import VM, Backend, CocoonError, InvalidState, Node, NotFound, VMConfig, VmmError, VmmTimeout, VMState
from cocoon.testing import HYPERVISORS, Fault, SimulatedVmms
from harness import check_node, engine_process, finish, in_threads, remove_everything
from test_sequences import (
    BOOT,
    CRASH,
    KILLED,
    REMOVE,
    RESTORED,
    STOP,
    WOKEN,
    read_disk,
    write_disk,
)
from test_vmm_faults import FIRST, PAUSE
from vmms import console, processes_below

Wait = Callable[..., None]

SAVE = {"firecracker": "PUT /snapshot/create", "cloud-hypervisor": "PUT vm.snapshot"}
RESUME = {"firecracker": "PATCH /vm", "cloud-hypervisor": "PUT vm.resume"}
LOAD = {"firecracker": "PUT /snapshot/load", "cloud-hypervisor": "PUT vm.restore"}

ANSWERS: list[dict[str, Any]] = [
    {"do": "answer", "status": 500},
    {"do": "answer", "status": 400, "effect": True},
    {"do": "garbage"},
    {"do": "close"},
    {"do": "close", "bytes": 20, "effect": True},
]
DEATHS: list[dict[str, Any]] = [{"do": "die", "signal": "KILL"}, {"do": "die", "exit": 7, "effect": True}]


def words(value: dict[str, Any] | str) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


def pairs(faults: list[dict[str, Any]], first: str, *others: str) -> list[tuple[str, dict[str, Any]]]:
    """(verb, fault): all faults with the first verb, and with the others, which share its way, one of each kind."""
    some = list({fault["do"]: fault for fault in faults}.values())
    return [(first, fault) for fault in faults] + [(verb, fault) for verb in others for fault in some]


class Stage(test_vmm_faults.Stage):
    def fault(self, where: str, **fault: Any) -> Fault:
        """At one of the requests of a snapshot."""
        requests = {"pause": PAUSE, "save": SAVE, "resume": RESUME}
        # Firecracker pauses and resumes by the same request.
        call = 2 if (self.hypervisor, where) == ("firecracker", "resume") else 1
        return Fault(on=requests[where][self.hypervisor], call=call, **fault)

    def has_gone_wrong(self, vm: VM) -> bool:
        return "simulated fault" in self.backend.log_path(vm.id).read_text()

    def start(self, name: str, *faults: Fault) -> VM:
        """A VM that runs, in a VMM that goes wrong so."""
        self.plan(*faults)
        self.backend.create(VMConfig(name, memory="64M", storage="1M", kernel=self.vmms.kernel))
        self.backend.start(name)
        self.plan()
        return self.backend.inspect(name)

    def save(self, verb: str, name: str) -> None:
        (self.backend.snapshot if verb == "snapshot" else self.backend.hibernate)(name)

    def prepare(self, verb: str) -> VM:
        """`web` runs, was saved as `one`, and has written to its disk since; for a wake it is hibernated."""
        vm = self.start("web")
        write_disk(vm, b"saved")
        self.backend.snapshot("web", name="one")
        write_disk(vm, b"later")
        if verb == "wake":
            self.backend.hibernate("web")
        return vm

    def load(self, verb: str, backend: Backend | None = None) -> VM:
        backend = backend or self.backend
        if verb == "clone":
            return backend.clone("one", VMConfig("c1"))
        return backend.restore("web", "one") if verb == "restore" else backend.wake("web")

    def count(self, name: str) -> None:
        """Its guest runs: it counts."""
        with console(self.backend, name) as guest:
            guest.skip()
            guest.wait_for("tick ")

    def vmms_beside(self, others: set[int]) -> list[int]:
        """VMMs that run, but for these processes."""
        found = []
        for pid in processes_below(self.root):
            with suppress(OSError):  # it ended meanwhile
                program = os.readlink(f"/proc/{pid}/exe")
                if pid not in others and program == str(self.vmms.binaries[self.hypervisor]):
                    found.append(pid)
        return found

    def check_nothing_saved(self, vm: VM) -> None:
        """No snapshot and nothing half made, and it is billed as if nobody had asked for one."""
        assert self.node.snapshots.list() == []
        assert list((self.root / "snapshots" / ".staging").iterdir()) == []
        assert [p.name for p in (self.root / "snapshots").iterdir() if not p.name.startswith(".")] == []
        after = self.backend.inspect(vm.id)
        assert (after.state, after.interval_open, after.snapshot_ids) == (VMState.RUNNING, True, [])
        assert self.said(vm.id) == BOOT
        check_node(self.root)

    def check_not_loaded(self, verb: str, vm: VM) -> None:
        """Nothing of the load is left, and it can be had again."""
        after = self.backend.inspect("web")
        assert [v.name for v in self.node.vms()] == ["web"]
        for folder in ("run", "log"):
            assert [p.name for p in (self.root / folder / self.hypervisor).iterdir()] == [vm.id]
        assert list(Path(vm.run_dir).glob("*.cocoon-*")) == []
        assert read_disk(vm, 5) == b"later"
        if verb == "clone":
            assert (after.state, after.pid, self.said(vm.id)) == (VMState.RUNNING, vm.pid, BOOT)
            assert self.vmms_beside({vm.pid or 0}) == []
        else:
            expected = (VMState.ERROR, [*BOOT, *KILLED]) if verb == "restore" else (VMState.HIBERNATED, [*BOOT, *STOP])
            assert (after.state, self.said(vm.id)) == expected
            assert (after.alive, after.interval_open) == (False, False)
            assert processes_below(self.root) == []
        assert self.node.reconcile().ok
        assert self.node.gc().removed == []
        check_node(self.root)

        self.plan()
        if verb == "restore":
            self.backend.start("web")
        self.load(verb)
        self.count("c1" if verb == "clone" else "web")
        again = {
            "clone": BOOT,
            "restore": [*BOOT, *KILLED, ("vm.compute.start", "restart"), *KILLED, *RESTORED],
            "wake": [*BOOT, *STOP, *WOKEN],
        }
        assert self.said(vm.id) == again[verb]
        assert read_disk(vm, 5) == (b"saved" if verb == "restore" else b"later")
        self.node.snapshots.delete("one")  # nobody reads it any more
        assert self.node.snapshots.list() == []


@pytest.fixture(params=HYPERVISORS)
def stage(request: pytest.FixtureRequest, tmp_root: Path, tmp_path: Path) -> Iterator[Stage]:
    vmms = SimulatedVmms(tmp_path / "vmms", tick_ms=50)
    with Node(tmp_root, binaries=vmms.binaries) as node:
        yield Stage(tmp_root, request.param, vmms, node, Backend(node, request.param, socket_timeout=30))
        remove_everything(node)
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []


def check_told_death(error: VmmError, begin: str, fault: dict[str, Any]) -> None:
    """It says how the VMM ended, and its last words."""
    assert str(error).startswith(begin), error
    assert ("signal 9" if "signal" in fault else "status 7") in str(error), error
    assert error.log_tail
    assert error.log_tail in str(error)


def saving_mark(vm: VM) -> Path:
    return Path(vm.run_dir) / "saving"


# ------------------------------------------------------------------ saving


@pytest.mark.parametrize("where", ["pause", "save"])
@pytest.mark.parametrize(("verb", "fault"), pairs(ANSWERS, "snapshot", "hibernate"), ids=words)
def test_a_guest_whose_saving_fails_goes_on(stage: Stage, verb: str, where: str, fault: dict[str, Any]) -> None:
    vm = stage.start("web", stage.fault(where, **fault))
    with pytest.raises(VmmError) as caught:
        stage.save(verb, "web")
    assert caught.value.status == fault.get("status", 0)
    stage.check_nothing_saved(vm)
    assert not saving_mark(vm).exists()
    assert stage.backend.inspect("web").pid == vm.pid
    stage.count("web")
    assert stage.node.reconcile().ok
    stage.save(verb, "web")
    assert len(stage.node.snapshots.list()) == 1


@pytest.mark.parametrize("fault", ANSWERS, ids=words)
def test_a_guest_that_is_not_let_go_on_is_by_reconcile(stage: Stage, fault: dict[str, Any]) -> None:
    vm = stage.start("web", stage.fault("resume", **fault))
    with pytest.raises(VmmError, match="could not be let go on, reconcile tries again") as caught:
        stage.backend.snapshot("web")
    assert caught.value.status == fault.get("status", 0)
    stage.check_nothing_saved(vm)
    assert saving_mark(vm).exists()
    assert [row["status"] for row in stage.node.reconcile().rows] == ["left-paused"]
    assert [row["action"] for row in stage.node.reconcile(fix=True).rows] == ["resumed"]
    assert not saving_mark(vm).exists()
    stage.count("web")
    assert stage.node.reconcile().ok
    assert stage.said(vm.id) == BOOT
    stage.backend.snapshot("web")


@pytest.mark.parametrize(
    ("where", "verb", "fault"),
    [
        (where, verb, fault)
        for where in ("pause", "save", "resume")
        for verb, fault in pairs(DEATHS, "snapshot", "hibernate")
        if (verb, where) != ("hibernate", "resume")  # it is not let go on
    ],
    ids=words,
)
def test_a_vmm_that_dies_while_it_is_saved_is_a_crash(
    stage: Stage, wait_until: Wait, verb: str, where: str, fault: dict[str, Any]
) -> None:
    vm = stage.start("web", stage.fault(where, **fault))
    with pytest.raises(VmmError) as caught:
        stage.save(verb, "web")
    check_told_death(caught.value, f"{verb} web: {stage.hypervisor} ended while it was saved", fault)
    wait_until(lambda: stage.backend.inspect("web").alive is False, "the dead VMM is seen as dead")
    stage.check_nothing_saved(vm)
    assert processes_below(stage.root) == []
    stage.node.reconcile(fix=True)
    assert stage.said(vm.id) == [*BOOT, *CRASH]
    assert not saving_mark(vm).exists()
    stage.backend.start("web")
    stage.save(verb, "web")
    assert len(stage.node.snapshots.list()) == 1


@pytest.mark.parametrize("where", ["pause", "save", "resume"])
def test_a_vmm_that_hears_nobody_any_more_is_still_billed_and_can_be_ended(stage: Stage, where: str) -> None:
    vm = stage.start("web", stage.fault(where, do="refuse"))
    with pytest.raises(VmmError):
        stage.backend.snapshot("web")
    stage.check_nothing_saved(vm)
    assert saving_mark(vm).exists(), "nobody knows whether its guest stands still"
    assert stage.backend.inspect("web").pid == vm.pid
    report = stage.node.reconcile(fix=True)
    assert not report.ok
    assert stage.said(vm.id) == BOOT
    stage.backend.stop("web", force=True)
    assert stage.said(vm.id) == [*BOOT, *STOP]
    stage.backend.start("web")
    assert not saving_mark(vm).exists()
    stage.backend.snapshot("web")


@pytest.mark.parametrize("verb", ["snapshot", "hibernate"])
@pytest.mark.parametrize("where", ["pause", "save"])
def test_a_vm_that_is_removed_while_it_is_saved_is_gone(stage: Stage, wait_until: Wait, verb: str, where: str) -> None:
    vm = stage.start("web", stage.fault(where, do="slow", time_ms=20_000))
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(stage.save, verb, "web")
        wait_until(partial(stage.has_gone_wrong, vm), "it is asked")
        stage.backend.delete("web", force=True)
        with pytest.raises(CocoonError) as caught:
            saving.result()
    # The VMM goes first, the record a moment later.
    assert isinstance(caught.value, NotFound) or "ended while it was saved" in str(caught.value)
    assert stage.said(vm.id) == [*BOOT, *STOP, *REMOVE]
    assert list((stage.root / "run" / stage.hypervisor).iterdir()) == []
    assert list((stage.root / "snapshots" / ".staging").iterdir()) == []
    assert stage.node.snapshots.list() == []


INTERRUPTED = """
node = Node(sys.argv[1], binaries=json.loads(sys.argv[2]))
backend = Backend(node, sys.argv[3], socket_timeout=30)
print("up", flush=True)
try:
    {call}
    print("came to its end")
except KeyboardInterrupt:
    print("interrupted")
node.close()
"""
CALLS = {
    "snapshot": "backend.snapshot(sys.argv[4])",
    "hibernate": "backend.hibernate(sys.argv[4])",
    "clone": "backend.clone('one', VMConfig('c1'))",
    "restore": "backend.restore(sys.argv[4], 'one')",
    "wake": "backend.wake(sys.argv[4])",
}


def interrupt(stage: Stage, verb: str, wait_until: Wait, ready: Callable[[], object], *, name: str = "web") -> str:
    """Ctrl-C in an engine of its own, once `ready`."""
    binaries = json.dumps({name: str(path) for name, path in stage.vmms.binaries.items()})
    code = INTERRUPTED.format(call=CALLS[verb])
    process = engine_process(code, stage.root, binaries, stage.hypervisor, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    wait_until(ready, f"{verb} is under way")
    process.send_signal(signal.SIGINT)
    return finish(process).strip()


@pytest.mark.parametrize("verb", ["snapshot", "hibernate"])
def test_ctrl_c_while_a_vmm_saves_lets_the_guest_go_on(stage: Stage, wait_until: Wait, verb: str) -> None:
    vm = stage.start("web", stage.fault("save", do="slow", time_ms=1500))
    assert interrupt(stage, verb, wait_until, partial(stage.has_gone_wrong, vm)) == "interrupted"
    stage.check_nothing_saved(vm)
    assert not saving_mark(vm).exists()
    stage.count("web")
    assert stage.node.reconcile().ok
    stage.save(verb, "web")


def test_vmms_that_hang_while_they_are_saved_are_timeouts(tmp_root: Path, tmp_path: Path, wait_until: Wait) -> None:
    """All at once: the engine's patience is 10 s for each request but the saving itself, which Ctrl-C ends."""
    vmms = SimulatedVmms(tmp_path / "vmms")
    with Node(tmp_root, binaries=vmms.binaries) as node:
        stages = {
            name: Stage(tmp_root, name, vmms, node, Backend(node, name, socket_timeout=30)) for name in HYPERVISORS
        }
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for hypervisor, stage in stages.items():
            for where, save in (("pause", stage.backend.hibernate), ("resume", stage.backend.snapshot)):
                vm = stage.start(f"{where}-{hypervisor}", stage.fault(where, do="hang"))
                calls[hypervisor, where] = partial(save, vm.id)
            vm = stage.start(f"save-{hypervisor}", stage.fault("save", do="hang"))
            calls[hypervisor, "save"] = partial(
                interrupt, stage, "snapshot", wait_until, partial(stage.has_gone_wrong, vm), name=vm.name
            )
        results = dict(zip(calls, in_threads(*calls.values()), strict=True))
        for hypervisor, stage in stages.items():
            assert isinstance(results[hypervisor, "pause"], VmmTimeout)
            assert isinstance(results[hypervisor, "resume"], VmmTimeout)
            assert "could not be let go on, reconcile tries again" in str(results[hypervisor, "resume"])
            assert results[hypervisor, "save"] == "interrupted"
            for vm in stage.backend.list():
                stage.check_nothing_saved(vm)
                assert vm.alive
                assert saving_mark(vm).exists(), "whoever comes next knows that its guest may stand still"
                stage.backend.stop(vm.id, force=True)
                assert stage.said(vm.id) == [*BOOT, *STOP]
                stage.backend.delete(vm.id)
    assert check_node(tmp_root) == {}
    assert processes_below(tmp_root) == []


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    ("verb", "fault"), pairs([*ANSWERS, {"do": "refuse"}, *DEATHS], "clone", "restore", "wake"), ids=words
)
def test_a_load_that_fails_leaves_nothing(stage: Stage, verb: str, fault: dict[str, Any]) -> None:
    vm = stage.prepare(verb)
    # Cloud Hypervisor is asked in other ways too when it refuses one.
    again = None if fault["do"] in ("die", "refuse") else True
    stage.plan(Fault(on=LOAD[stage.hypervisor], repeat=again, **fault))
    with pytest.raises(VmmError) as caught:
        stage.load(verb)
    assert "status 78" not in str(caught.value), "the simulator did not understand the plan"
    assert not isinstance(caught.value, VmmTimeout)
    if fault["do"] == "answer":
        assert caught.value.status == fault["status"]
    if fault["do"] == "die":
        name = "c1" if verb == "clone" else "web"
        check_told_death(caught.value, f"{verb} {name}: {stage.hypervisor} ended while it loaded the snapshot", fault)
    stage.check_not_loaded(verb, vm)


@pytest.mark.parametrize("verb", ["clone", "restore", "wake"])
@pytest.mark.parametrize("fault", [ANSWERS[0], DEATHS[0]], ids=words)
def test_a_vmm_that_fails_before_it_loads_leaves_nothing(stage: Stage, verb: str, fault: dict[str, Any]) -> None:
    vm = stage.prepare(verb)
    stage.plan(Fault(on=FIRST[stage.hypervisor], **fault))
    with pytest.raises(VmmError):
        stage.load(verb)
    stage.check_not_loaded(verb, vm)


@pytest.mark.parametrize("verb", ["clone", "restore", "wake"])
def test_a_vmm_that_never_answers_loads_nothing(stage: Stage, verb: str) -> None:
    vm = stage.prepare(verb)
    stage.plan(Fault("hang"))
    with pytest.raises(VmmTimeout, match="did not answer within 300 ms"):
        stage.load(verb, Backend(stage.node, stage.hypervisor, socket_timeout=0.3))
    stage.check_not_loaded(verb, vm)


def test_a_vmm_that_lost_its_folder_is_not_waited_for(stage: Stage, wait_until: Wait) -> None:
    """As one that is spawned just after a removal has looked for processes."""
    vm = stage.prepare("clone")
    stage.plan(Fault("refuse"))
    others = {vm.pid or 0}
    with ThreadPoolExecutor(1) as pool:
        cloning = pool.submit(stage.load, "clone", Backend(stage.node, stage.hypervisor, socket_timeout=60))
        wait_until(lambda: stage.vmms_beside(others), "a VMM that nobody reaches")
        (clone,) = (v for v in stage.node.vms() if v.name == "c1")
        shutil.rmtree(clone.run_dir)
        with pytest.raises(NotFound, match="clone c1: it was removed meanwhile"):
            cloning.result()
    stage.check_not_loaded("clone", vm)


@pytest.mark.parametrize("verb", ["clone", "restore", "wake"])
def test_ctrl_c_ends_a_load_that_hangs(stage: Stage, wait_until: Wait, verb: str) -> None:
    vm = stage.prepare(verb)
    stage.plan(Fault("hang", on=LOAD[stage.hypervisor]))
    others = {vm.pid or 0}
    assert interrupt(stage, verb, wait_until, lambda: stage.vmms_beside(others)) == "interrupted"
    stage.check_not_loaded(verb, vm)


@pytest.mark.parametrize("stage", ["cloud-hypervisor"], indirect=True)
def test_a_vmm_that_refuses_one_way_of_loading_is_asked_in_another(stage: Stage) -> None:
    stage.prepare("clone")
    stage.plan(*(Fault("answer", on=LOAD[stage.hypervisor], call=call, status=500) for call in (1, 2)))
    clone = stage.load("clone")
    assert read_disk(clone, 5) == b"saved"
    stage.count("c1")


# ------------------------------------------------------------------ removing what is loaded


IN_USE = "in use by a clone, a restore or an export"
DELETE = """
with Node(sys.argv[1]) as node:
    try:
        node.snapshots.delete(sys.argv[2])
    except InvalidState as error:
        print(error)
"""


@pytest.mark.parametrize("verb", ["clone", "restore", "wake"])
def test_a_snapshot_is_not_removed_under_the_vmm_that_loads_it(stage: Stage, wait_until: Wait, verb: str) -> None:
    vm = stage.prepare(verb)
    if verb == "wake":
        stage.node.snapshots.delete("one")
    (loaded,) = stage.node.snapshots.list()
    stage.plan(Fault("slow", on=LOAD[stage.hypervisor], time_ms=1000))
    others = {vm.pid or 0}
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(stage.load, verb)
        wait_until(lambda: stage.vmms_beside(others), "a VMM that loads it")
        (pid,) = stage.vmms_beside(others)
        os.kill(pid, signal.SIGSTOP)  # from now on it takes as long as we like
        try:
            with pytest.raises(InvalidState, match=IN_USE):
                stage.node.snapshots.delete(loaded.id)
            assert IN_USE in finish(engine_process(DELETE, stage.root, loaded.id))
            assert stage.node.gc(keep_last=0, max_bytes=0, max_age=0).removed == []
            assert stage.node.snapshots.inspect(loaded.id) == loaded
            assert not loading.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        loading.result()
    name = "c1" if verb == "clone" else "web"
    stage.count(name)
    if verb != "wake":
        stage.node.snapshots.delete("one")
    assert stage.node.snapshots.list() == []
    stage.count(name)
