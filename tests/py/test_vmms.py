"""One life, on every hypervisor: what happens to processes, files and the ledger is the same."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cocoon import (
    AmbiguousRef,
    Backend,
    BulkError,
    Inconclusive,
    InvalidArgument,
    InvalidState,
    Node,
    NotFound,
    VmmError,
    VmmTimeout,
    VMState,
)
from cocoon._sockets import connect
from cocoon.testing import HYPERVISORS
from harness import check_node, in_threads, ledger_lines, listening, proc_gone, reasons
from vmms import SECONDS, Vmm, console, find_vmm, processes_below

Wait = Callable[..., None]
Rounds = Callable[[int], int]

Books = list[tuple[str, str | None]]

BOOT: Books = [("vm.storage.start", "boot"), ("vm.compute.start", "boot")]
STOP: Books = [("vm.compute.stop", "stop-user")]
CRASH: Books = [("vm.compute.stop", "stop-crash")]
RESTART: Books = [("vm.compute.start", "restart")]
REMOVE: Books = [("vm.storage.stop", "vm-rm")]

DEAF = "the guest of 5 KB hears nothing under QEMU"


@pytest.fixture(params=[*HYPERVISORS, "qemu", "sim-firecracker", "sim-cloud-hypervisor"])
def vmm(request: pytest.FixtureRequest, tmp_path: Path) -> Vmm:
    return find_vmm(request.param, tmp_path / "vmms")


@pytest.fixture
def backend(vmm: Vmm, tmp_root: Path) -> Iterator[Backend]:
    with Node(tmp_root) as node:
        yield vmm.backend(node)
    with Node(tmp_root) as node:  # also when the test has closed the first one
        left = vmm.backend(node)
        for vm in left.list():
            left.delete(vm.id, force=True)
    assert processes_below(tmp_root) == []


def pid_of(backend: Backend, ref: str) -> int:
    pid = backend.inspect(ref).pid
    assert pid is not None
    return pid


def kill_behind_the_back(backend: Backend, ref: str, wait_until: Wait) -> None:
    os.kill(pid_of(backend, ref), signal.SIGKILL)
    wait_until(lambda: backend.inspect(ref).alive is False, "the killed VMM is seen as dead")


def wait_up(backend: Backend, ref: str) -> None:
    with console(backend, ref) as guest:
        guest.wait_for("GUEST-UP")


def wrapper(folder: Path, program: str, script: str) -> Path:
    """A program of that name that runs a shell script."""
    path = folder / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_life(vmm: Vmm, backend: Backend, tmp_root: Path) -> None:
    vm = backend.create(vmm.config("web", cmdline="hello"))
    assert (vm.state, vm.alive, vm.pid) == (VMState.CREATED, False, None)
    assert backend.start("web") == [vm.id]
    running = backend.inspect("web")
    assert (running.state, running.alive, running.interval_open) == (VMState.RUNNING, True, True)
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        guest.wait_for("MEM 64")
        guest.wait_for("CMDLINE hello")
        if vmm.guest_listens:
            key, answer = vmm.key
            guest.type(key)
            guest.wait_for(answer)
    assert backend.start("web") == [vm.id], "starting a running VM does nothing"
    assert backend.inspect("web").pid == running.pid
    opened = check_node(tmp_root)
    assert {dimension for _, dimension in opened} == {"vm.storage", "vm.compute"}

    backend.stop("web", force=True)
    stopped = backend.inspect("web")
    assert (stopped.state, stopped.alive, stopped.interval_open) == (VMState.STOPPED, False, False)
    assert {dimension for _, dimension in check_node(tmp_root)} == {"vm.storage"}
    backend.restart("web")
    wait_up(backend, "web")
    with pytest.raises(InvalidState, match="running"):
        backend.delete("web")
    backend.delete("web", force=True)
    assert reasons(ledger_lines(tmp_root), vm.id) == [*BOOT, *STOP, *RESTART, *STOP, *REMOVE]
    assert check_node(tmp_root) == {}
    assert not Path(vm.run_dir).exists()
    assert not Path(vm.log_dir).exists()


def test_stop_asks_the_guest_which_powers_itself_off(vmm: Vmm, backend: Backend, tmp_root: Path) -> None:
    if not vmm.guest_listens:
        pytest.skip(DEAF)
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        begin = time.monotonic()
        backend.stop("web")
        assert time.monotonic() - begin < 15, "nobody had to wait for the time to run out"
        guest.wait_for("DOWN ")
    assert backend.inspect("web").state == VMState.STOPPED
    assert reasons(ledger_lines(tmp_root), vm.id) == [*BOOT, *STOP]


def test_a_paused_guest_is_stopped_gracefully_too(vmm: Vmm, backend: Backend) -> None:
    if not vmm.guest_listens:
        pytest.skip(DEAF)
    backend.create(vmm.config("web"))
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        backend.pause("web")
        begin = time.monotonic()
        backend.stop("web")
        assert time.monotonic() - begin < 15
        guest.wait_for("DOWN ")


def test_a_guest_that_ignores_the_button_is_ended_all_the_same(vmm: Vmm, tmp_root: Path, backend: Backend) -> None:
    if not vmm.guest_listens:
        pytest.skip(DEAF)
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        guest.type("z")
        guest.wait_for("z")
    begin = time.monotonic()
    backend.stop("web", timeout=0.5)
    assert 0.5 <= time.monotonic() - begin < 15
    assert backend.inspect("web").state == VMState.STOPPED
    assert reasons(ledger_lines(tmp_root), vm.id) == [*BOOT, *STOP]


def test_a_vmm_that_hangs_is_killed_in_the_end(vmm: Vmm, tmp_root: Path, backend: Backend) -> None:
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    pid = pid_of(backend, "web")
    impatient = vmm.backend(backend.node, stop_timeout=0.2, terminate_grace=0.2)
    os.kill(pid, signal.SIGSTOP)
    assert backend.inspect("web").alive is True
    impatient.stop("web")
    assert proc_gone(pid)
    assert reasons(ledger_lines(tmp_root), vm.id) == [*BOOT, *STOP]
    assert {dimension for _, dimension in check_node(tmp_root)} == {"vm.storage"}


def test_start_after_a_crash_says_stop_crash_then_restart(
    vmm: Vmm, backend: Backend, tmp_root: Path, wait_until: Wait
) -> None:
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    kill_behind_the_back(backend, "web", wait_until)
    seen = backend.inspect("web")
    assert (seen.state, seen.interval_open) == (VMState.RUNNING, True), "looking changes nothing"
    backend.start("web")
    wait_up(backend, "web")
    backend.delete("web", force=True)
    lines = ledger_lines(tmp_root)
    assert reasons(lines, vm.id) == [*BOOT, *CRASH, *RESTART, *STOP, *REMOVE]
    assert lines[2]["evidence"] == "shim"
    assert check_node(tmp_root) == {}


@pytest.mark.parametrize("key", ["q", "r", "x"])
def test_a_guest_that_ends_by_itself(vmm: Vmm, backend: Backend, tmp_root: Path, key: str, wait_until: Wait) -> None:
    if not vmm.guest_listens:
        pytest.skip(DEAF)
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    pid = pid_of(backend, "web")
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        guest.type(key)
        if key != "q" and not vmm.reset_ends_it:
            guest.wait_for("GUEST-UP")
            assert backend.inspect("web").pid == pid, "the same process, and the same interval"
            assert reasons(ledger_lines(tmp_root), vm.id) == BOOT
            return
    wait_until(lambda: backend.inspect("web").alive is False, "the VMM has ended")
    backend.stop("web")
    assert backend.inspect("web").state in (VMState.STOPPED, VMState.ERROR)
    assert reasons(ledger_lines(tmp_root), vm.id) == [*BOOT, *CRASH]
    assert {dimension for _, dimension in check_node(tmp_root)} == {"vm.storage"}


def test_pause_and_resume(vmm: Vmm, backend: Backend, tmp_root: Path) -> None:
    vm = backend.create(vmm.config("web"))
    with pytest.raises(InvalidState):
        backend.pause("web")
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for("GUEST-UP")
        for _ in range(2):
            backend.pause("web")
        assert backend.inspect("web").interval_open, "a paused guest is billed"
        for _ in range(2):
            backend.resume("web")
        if vmm.guest_listens:
            key, answer = vmm.key
            guest.type(key)
            guest.wait_for(answer)
    assert reasons(ledger_lines(tmp_root), vm.id) == BOOT


def test_batches_run_in_parallel_and_report_each_failure(vmm: Vmm, backend: Backend, tmp_root: Path) -> None:
    ids = [backend.create(vmm.config(f"web-{i}")).id for i in range(8)]
    assert backend.start(*ids) == ids
    with pytest.raises(BulkError) as caught:
        backend.stop(*ids[:4], "nobody", force=True)
    assert list(caught.value.errors) == ["nobody"]
    assert isinstance(caught.value.errors["nobody"], NotFound)
    assert caught.value.succeeded == ids[:4]
    with pytest.raises(BulkError) as caught:
        backend.delete(*ids)
    assert set(caught.value.errors) == set(ids[4:])
    assert backend.delete(*ids[4:], force=True) == ids[4:]
    assert check_node(tmp_root) == {}


def test_start_against_rm_force_leaves_no_orphan(vmm: Vmm, backend: Backend, tmp_root: Path, rounds: Rounds) -> None:
    for at in range(rounds(12)):
        vm = backend.create(vmm.config(f"web-{at}"))
        _, removed = in_threads(partial(backend.start, vm.id), partial(backend.delete, vm.id, force=True))
        assert removed == [vm.id]
        assert processes_below(tmp_root) == []
        assert not Path(vm.run_dir).exists()
    assert check_node(tmp_root) == {}


def test_what_a_killed_vmm_left_is_in_nobodys_way(vmm: Vmm, backend: Backend, wait_until: Wait) -> None:
    vm = backend.create(vmm.config("web"))
    for _ in range(3):
        backend.start("web")
        kill_behind_the_back(backend, "web", wait_until)
        left = [path.name for path in Path(vm.run_dir).iterdir() if not path.is_file()]
        assert left, "sockets or fifos of the dead one"


def test_what_is_removed_after_a_stop_is_all_but_disk_and_evidence(vmm: Vmm, backend: Backend) -> None:
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    backend.stop("web", force=True)
    left = {path.name for path in Path(vm.run_dir).iterdir()}
    assert left <= {"cow.raw", "vm.lock", "exit"}, left
    assert stat.S_IMODE(Path(vm.run_dir).stat().st_mode) == 0o700


def test_something_that_answers_without_a_process_is_refused(vmm: Vmm, backend: Backend, tmp_root: Path) -> None:
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    path = backend.inspect("web").socket_path
    assert path is not None
    backend.stop("web", force=True)
    with listening(path):
        with pytest.raises(Inconclusive, match="still answers"):
            backend.delete("web")
        assert Path(vm.run_dir).exists()
    backend.delete("web")
    assert check_node(tmp_root) == {}


def test_a_program_of_another_name_is_refused(vmm: Vmm, backend: Backend, tmp_path: Path) -> None:
    backend.create(vmm.config("web"))
    odd = wrapper(tmp_path, "vmm", "exec sleep 60")
    with pytest.raises(InvalidArgument, match="must begin with"):
        Backend(backend.node, vmm.hypervisor, binary=odd).start("web")
    with pytest.raises(VmmError, match="configured binary"):
        Backend(backend.node, vmm.hypervisor, binary=tmp_path / "none").start("web")
    assert backend.inspect("web").state == VMState.CREATED, "nothing was started"


def test_a_program_that_dies_at_once_is_an_error_with_its_last_words(
    vmm: Vmm, backend: Backend, tmp_root: Path, tmp_path: Path
) -> None:
    vm = backend.create(vmm.config("web"))
    wrong = wrapper(tmp_path, vmm.binary.name, "echo 'what is this?' >&2; exit 3")
    with pytest.raises(VmmError) as caught:
        Backend(backend.node, vmm.hypervisor, binary=wrong).start("web")
    assert "what is this?" in caught.value.log_tail
    assert "status 3" in str(caught.value)
    assert backend.inspect("web").state == VMState.ERROR
    assert reasons(ledger_lines(tmp_root), vm.id) == [("vm.storage.start", "boot")]
    backend.start("web")
    assert reasons(ledger_lines(tmp_root), vm.id) == BOOT


def test_a_program_that_never_answers_is_killed(vmm: Vmm, backend: Backend, tmp_root: Path, tmp_path: Path) -> None:
    vm = backend.create(vmm.config("web"))
    deaf = wrapper(tmp_path, vmm.binary.name, "exec sleep 60")
    with pytest.raises(VmmTimeout):
        Backend(backend.node, vmm.hypervisor, binary=deaf, socket_timeout=0.3).start("web")
    assert backend.inspect("web").state == VMState.ERROR
    assert processes_below(tmp_root) == []
    assert reasons(ledger_lines(tmp_root), vm.id) == [("vm.storage.start", "boot")]


def test_a_kernel_that_is_none_is_refused_in_the_vmms_words(vmm: Vmm, backend: Backend, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_text("not a kernel")
    backend.create(vmm.config("web", kernel=kernel))
    with pytest.raises(VmmError) as caught:
        backend.start("web")
    assert "kernel" in str(caught.value).lower()
    assert backend.inspect("web").state == VMState.ERROR


def test_reconcile_finds_the_crashed_and_the_orphan(vmm: Vmm, backend: Backend, wait_until: Wait) -> None:
    vm = backend.create(vmm.config("web"))
    backend.start("web")
    assert backend.node.reconcile().ok
    kill_behind_the_back(backend, "web", wait_until)
    assert [row["status"] for row in backend.node.reconcile(fix=True).rows] == ["open-but-process-dead"]
    backend.start("web")
    backend.mark_error("web")
    assert [row["action"] for row in backend.node.reconcile(fix=True).rows] == ["adopted"]
    assert backend.inspect(vm.id).state == VMState.RUNNING


def test_a_reference_that_two_hypervisors_know_is_ambiguous(tmp_root: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_text("k")
    with Node(tmp_root) as node:
        created = {}
        for hypervisor in ("qemu", *HYPERVISORS):
            vmm = Vmm(hypervisor, tmp_path, kernel)
            created[hypervisor] = node.backend(hypervisor).create(vmm.config("web"))
        with pytest.raises(AmbiguousRef) as caught:
            node.find("web")
        assert len(caught.value.candidates) == 3
        for hypervisor, vm in created.items():
            assert node.find(vm.id).hypervisor == hypervisor
            assert node.backend(hypervisor).inspect("web").id == vm.id
            node.backend(hypervisor).delete("web")


def test_disks_in_every_role(vmm: Vmm, backend: Backend, tmp_path: Path) -> None:
    from cocoon import Disk

    disks = []
    for role in ("layer", "cow", "data", "cidata"):
        path = tmp_path / role
        path.write_bytes(b"\0" * (1 << 20))
        disks.append(Disk(path, role=role))
    vm = backend.create(vmm.config("web", disks=disks, storage="2M"))
    backend.start("web")
    wait_up(backend, "web")
    assert (Path(vm.run_dir) / "cow.raw").stat().st_size == 2 << 20
    if vmm.key[1] != "DIRTY":
        return  # the simulated one closes what it has looked at
    open_files = links_of(Path(f"/proc/{pid_of(backend, 'web')}/fd")).values()
    assert {str(tmp_path / "layer"), f"{vm.run_dir}/cow.raw", str(tmp_path / "data")} <= set(open_files)


def links_of(fds: Path) -> dict[int, str]:
    """Descriptor to file; one that is closed meanwhile is left out."""
    links = {}
    for link in fds.iterdir():
        with contextlib.suppress(FileNotFoundError):
            links[int(link.name)] = os.readlink(link)
    return links


@pytest.mark.parametrize("name", HYPERVISORS)
def test_the_vsock_is_a_socket_in_the_run_dir(name: str, tmp_root: Path, tmp_path: Path) -> None:
    vmm = find_vmm(name, tmp_path)
    with Node(tmp_root) as node:
        backend = vmm.backend(node)
        vm = backend.create(vmm.config("web"))
        assert vm.vsock_path is None
        backend.start("web")
        path = backend.inspect("web").vsock_path
        assert path is not None
        assert path.parent == vm.run_dir
        connect(path).close()
        backend.delete("web", force=True)


@pytest.mark.parametrize("name", HYPERVISORS)
def test_a_vmm_holds_nothing_of_ours(name: str, tmp_root: Path, tmp_path: Path) -> None:
    vmm = find_vmm(name, tmp_path)
    with Node(tmp_root) as node:
        backend = vmm.backend(node)
        backend.create(vmm.config("web"))
        backend.start("web")
        fds = Path(f"/proc/{pid_of(backend, 'web')}/fd")
        links = links_of(fds)
        assert links[3].endswith("/vm.lock")
        assert not any("meta.db" in link or "ledger" in link for link in links.values()), links
        assert not any(link.startswith("/dev/pts") for link in links.values())
        backend.delete("web", force=True)


def test_cloud_hypervisor_has_no_console_log(tmp_root: Path, tmp_path: Path) -> None:
    vmm = find_vmm("cloud-hypervisor", tmp_path)
    with Node(tmp_root) as node:
        backend = vmm.backend(node)
        backend.create(vmm.config("web"))
        with pytest.raises(InvalidArgument, match="waits at its console"):
            backend.console_log_path("web")
        backend.delete("web")


@pytest.mark.parametrize("name", [*HYPERVISORS, "sim-firecracker", "sim-cloud-hypervisor"])
def test_the_console_of_the_command_line_hears_and_speaks_also_after_one_was_ended(
    name: str, tmp_root: Path, tmp_path: Path
) -> None:
    vmm = find_vmm(name, tmp_path)
    with Node(tmp_root) as node:
        backend = vmm.backend(node)
        backend.create(vmm.config("web"))
        backend.start("web")
        wait_up(backend, "web")
        for _ in range(2):
            with subprocess.Popen(
                [sys.executable, "-m", "cocoon.cli", "--root", str(tmp_root), "vm", "console", "web"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as attached:
                assert attached.stdin is not None
                assert attached.stdout is not None
                attached.stdin.write(b"d")
                attached.stdin.flush()
                heard = b""
                deadline = time.monotonic() + SECONDS
                while b"DIRTY" not in heard:
                    left = max(0.0, deadline - time.monotonic())
                    assert select.select([attached.stdout], [], [], left)[0], f"the guest did not answer: {heard!r}"
                    more = os.read(attached.stdout.fileno(), 4096)
                    assert more, f"it ended before the guest answered: {heard!r}"
                    heard += more
                # It ends with some of what the guest prints, a line each second, not yet read.
                attached.send_signal(signal.SIGSTOP)
                threading.Event().wait(1.5)
                attached.terminate()
                attached.send_signal(signal.SIGCONT)
                assert attached.wait(SECONDS) == 128 + signal.SIGTERM
        backend.delete("web", force=True)


@pytest.mark.parametrize("name", HYPERVISORS)
def test_a_guest_whose_vmm_is_stopped_answers_in_bounded_time(name: str, tmp_root: Path, tmp_path: Path) -> None:
    vmm = find_vmm(name, tmp_path)
    with Node(tmp_root) as node:
        backend = vmm.backend(node)
        backend.create(vmm.config("web"))
        backend.start("web")
        pid = pid_of(backend, "web")
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        backend.delete("web", force=True)
        assert time.monotonic() - begin < 5
        assert proc_gone(pid)


def test_many_start_at_once(vmm: Vmm, backend: Backend, rounds: Rounds) -> None:
    simulated = vmm.key[1] != "DIRTY"
    count = rounds(256 if simulated else 6 if vmm.hypervisor == "qemu" else 24)
    ids = [backend.create(vmm.config(f"web-{i}", storage="0", memory="32M")).id for i in range(count)]
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, len(os.listdir("/proc/self/task")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = collections.Counter(links_of(Path("/proc/self/fd")).values())
    try:
        assert backend.start(*ids) == ids
    finally:
        done.set()
        watcher.join()
    assert most < 60, "threads are bounded"
    # Locks and readers of the store are kept open: a few, however many VMs there are. Nothing else is.
    added = collections.Counter(links_of(Path("/proc/self/fd")).values()) - before
    store = f"{backend.node.root}/db/"
    assert [link for link in added if not link.startswith(store)] == [], "no descriptor of a VM stays open"
    assert added.total() < max(count // 2, 16)
    assert all(backend.inspect(each).alive for each in ids)
    backend.delete(*ids, force=True)


@pytest.mark.parametrize("name", HYPERVISORS)
def test_the_demo_runs_and_balances(name: str, tmp_path: Path) -> None:
    vmm = find_vmm(name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "cocoon.cli", "demo", "--hypervisor", name, "--kernel", str(vmm.kernel)],
        env=os.environ | {"PATH": f"{vmm.binary.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GUEST-UP" in done.stdout
    assert "it balances" in done.stdout
