"""A real VM's life under QEMU, exactly in the ledger."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cocoon import (
    Backend,
    BulkError,
    InvalidState,
    Ledger,
    Node,
    NotFound,
    VMConfig,
    VmmError,
    VMState,
)
from harness import (
    check_node,
    console,
    engine_process,
    finish,
    guest_config,
    kill_at,
    ledger_lines,
    proc_gone,
    reasons,
    shim_of,
    tell,
    time_ns,
    traced_calls,
    vmm_processes,
    wait_ready,
)

pytestmark = pytest.mark.guest
Wait = Callable[..., None]

BOOT = [("vm.storage.start", "boot"), ("vm.compute.start", "boot")]


@pytest.fixture
def backend(tmp_root: Path, guest: object) -> Iterator[Backend]:
    with Node(tmp_root) as node:
        yield node.backend("qemu")
    with Node(tmp_root) as node:  # also when the test has closed the first one
        for vm in node.vms():
            node.backend("qemu").delete(vm.id, force=True)


def kill_behind_the_back(backend: Backend, ref: str, wait_until: Wait) -> int:
    pid = backend.inspect(ref).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: backend.inspect(ref).alive is False, "the killed VMM is seen as dead")
    return pid


def test_a_guest_boots_stops_and_restarts(backend: Backend, tmp_root: Path) -> None:
    vm = backend.create(guest_config("web"))
    assert (vm.state, vm.alive, vm.pid) == (VMState.CREATED, False, None)
    assert backend.start("web") == [vm.id]
    running = backend.inspect("web")
    assert (running.state, running.alive, running.interval_open) == (VMState.RUNNING, True, True)
    assert running.socket_path is not None
    wait_ready(backend, "web")
    assert backend.start("web") == [vm.id], "starting a running VM does nothing"
    tell(backend, "web", "echo it hears us", "ECHO it hears us")
    before = time.monotonic()
    backend.stop("web")
    assert time.monotonic() - before < 25, "the guest powered itself off, nobody had to wait for the time to run out"
    stopped = backend.inspect("web")
    assert (stopped.state, stopped.alive, stopped.pid) == (VMState.STOPPED, False, None)
    assert not stopped.interval_open
    backend.restart("web")
    backend.delete("web", force=True)
    assert reasons(ledger_lines(tmp_root), vm.id) == [
        *BOOT,
        ("vm.compute.stop", "stop-user"),
        ("vm.compute.start", "restart"),
        ("vm.compute.stop", "stop-user"),
        ("vm.storage.stop", "vm-rm"),
    ]
    assert check_node(tmp_root) == {}
    assert vmm_processes(tmp_root) == []
    assert not Path(vm.run_dir).exists()
    assert not Path(vm.log_dir).exists()


def test_start_after_a_crash_says_stop_crash_then_restart(backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    vm = backend.create(guest_config("web"))
    backend.start("web")
    kill_behind_the_back(backend, "web", wait_until)
    seen = backend.inspect("web")
    assert (seen.state, seen.alive, seen.interval_open) == (VMState.RUNNING, False, True), "looking changes nothing"
    backend.start("web")
    backend.delete("web", force=True)
    lines = ledger_lines(tmp_root)
    assert reasons(lines, vm.id) == [
        *BOOT,
        ("vm.compute.stop", "stop-crash"),
        ("vm.compute.start", "restart"),
        ("vm.compute.stop", "stop-user"),
        ("vm.storage.stop", "vm-rm"),
    ]
    crash = lines[2]
    assert crash["evidence"] == "shim"
    assert check_node(tmp_root) == {}


def test_a_crashed_guest_kernel_is_a_crash(backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    vm = backend.create(guest_config("web"))
    backend.start("web")
    wait_ready(backend, "web")
    with console(backend, "web") as serial:
        serial.sendall(b"crash\n")
        while serial.recv(4096):  # who attaches must read, or the guest's serial port waits for him
            pass
    wait_until(lambda: backend.inspect("web").alive is False, "the guest's reset ends the VMM")
    backend.delete("web")
    assert reasons(ledger_lines(tmp_root), vm.id)[2:] == [
        ("vm.compute.stop", "stop-crash"),
        ("vm.storage.stop", "vm-rm"),
    ]
    check_node(tmp_root)


def test_death_while_no_engine_exists_is_dated_by_the_shim(tmp_root: Path, guest: object, wait_until: Wait) -> None:
    code = "node = Node(sys.argv[1]); node.backend('qemu').start('web'); print(node.find('web').pid)"
    with Node(tmp_root) as node:
        vm = node.backend("qemu").create(guest_config("web"))
    late = []
    for _ in range(5):
        pid = int(finish(engine_process(code, tmp_root)))
        watched = os.pidfd_open(pid)
        about_to_kill = time.clock_gettime_ns(time.CLOCK_REALTIME)
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        select.select([watched], [], [])
        dead = time.clock_gettime_ns(time.CLOCK_REALTIME)  # on a busy machine the kernel takes its time to tear it down
        os.close(watched)
        threading.Event().wait(0.3)  # what must not be billed
        with Node(tmp_root) as node:
            assert node.reconcile(fix=True).ok
        crash = ledger_lines(tmp_root)[-1]
        assert (crash["kind"], crash["reason"], crash["evidence"]) == ("vm.compute.stop", "stop-crash", "shim")
        assert time_ns(crash["ended_at"]) >= about_to_kill
        late.append(time_ns(crash["ended_at"]) - dead)
        assert time_ns(crash["emitted_at"]) - about_to_kill > 250_000_000
        if late[-1] < 5_000_000:
            break
    assert late[-1] < 5_000_000, f"within 5 ms of the death, once at least where the machine is busy: {late}"
    lines = ledger_lines(tmp_root)
    ran = [
        stop["ended_uptime_ns"] - start["uptime_ns"]
        for start in lines
        for stop in lines
        if start["kind"] == "vm.compute.start" and stop["interval"] == start["seq"] and stop is not start
    ]
    with Node(tmp_root) as node:
        usage = node.ledger.usage(by=("vm_id",)).to_pylist()
        billed = next(row for row in usage if row["vm_id"] == vm.id)["vcpu_seconds"]
        assert billed == pytest.approx(sum(ran) / 1e9, abs=1e-6), "usage counts to the death"
        node.backend("qemu").delete("web")
    check_node(tmp_root)


def test_shim_killed_first_loses_only_the_moment(backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    vm = backend.create(guest_config("web"))
    backend.start("web")
    pid = backend.inspect("web").pid
    assert pid is not None
    shim = shim_of(pid)
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: proc_gone(shim), "the shim is gone")
    assert backend.inspect("web").alive is True, "the VMM lives on"
    kill_behind_the_back(backend, "web", wait_until)
    backend.stop("web")
    crash = ledger_lines(tmp_root)[-1]
    assert (crash["kind"], crash["reason"]) == ("vm.compute.stop", "stop-crash")
    assert "ended_at" not in crash
    assert crash["alive_until"] == ledger_lines(tmp_root)[1]["emitted_at"], "last proven alive when it was started"
    backend.delete(vm.id)
    assert check_node(tmp_root) == {}


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda line: line.replace(line.split()[0], "1", 1), id="another pid"),
        pytest.param(lambda line: " ".join([line.split()[0], "1", *line.split()[2:]]), id="another start time"),
        pytest.param(lambda line: " ".join([*line.split()[:6], "deadbeef"]), id="another boot"),
        pytest.param(lambda line: " ".join([*line.split()[:2], "1", *line.split()[3:]]), id="before the start"),
        pytest.param(lambda line: " ".join([*line.split()[:2], str(2**60), *line.split()[3:]]), id="in the future"),
        pytest.param(lambda line: "garbage", id="garbage"),
        pytest.param(lambda line: "", id="empty"),
    ],
)
def test_a_forged_exit_file_is_not_believed(
    backend: Backend, tmp_root: Path, wait_until: Wait, forge: Callable[[str], str]
) -> None:
    backend.create(guest_config("web"))
    backend.start("web")
    kill_behind_the_back(backend, "web", wait_until)
    exit_file = Path(backend.inspect("web").run_dir) / "exit"
    wait_until(lambda: exit_file.exists() and exit_file.read_text().endswith("\n"), "the shim wrote its line")
    exit_file.write_text(forge(exit_file.read_text().strip()) + "\n")
    backend.stop("web")
    crash = ledger_lines(tmp_root)[-1]
    assert (crash["kind"], crash["reason"]) == ("vm.compute.stop", "stop-crash")
    assert "ended_at" not in crash
    assert "alive_until" in crash
    backend.delete("web")
    check_node(tmp_root)


def test_an_exit_file_of_the_run_before_is_not_believed(backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    backend.create(guest_config("web"))
    backend.start("web")
    exit_file = Path(backend.inspect("web").run_dir) / "exit"
    kill_behind_the_back(backend, "web", wait_until)
    wait_until(lambda: exit_file.exists() and exit_file.read_text().endswith("\n"), "the shim wrote its line")
    stale = exit_file.read_text()
    backend.start("web")
    pid = backend.inspect("web").pid
    assert pid is not None
    os.kill(shim_of(pid), signal.SIGKILL)
    kill_behind_the_back(backend, "web", wait_until)
    exit_file.write_text(stale)
    backend.delete("web")
    assert "ended_at" not in ledger_lines(tmp_root)[-2]
    check_node(tmp_root)


def test_relabel_of_a_running_vm_splits_usage_exactly(tmp_root: Path, guest: object) -> None:
    with Node(tmp_root, ledger_labels=["team"]) as node:
        backend = node.backend("qemu")
        vm = backend.create(guest_config("web", labels={"team": "a", "note": "unmetered"}))
        backend.start("web")
        backend.relabel("web", {"note": "still unmetered"})
        assert len(ledger_lines(tmp_root)) == 2, "an unmetered label is nobody's business"
        for team in ("b", None, "c"):
            backend.relabel("web", {"team": team})
        assert backend.inspect("web").config.labels == {"note": "still unmetered", "team": "c"}
        backend.delete("web", force=True)
        lines = ledger_lines(tmp_root)
        relabels = [line for line in lines if line.get("reason") == "relabel"]
        assert len(relabels) == 12
        assert len({line["emitted_at"] for line in relabels}) == 3, "each at one instant"
        (whole,) = node.ledger.usage(by=("vm_id",)).to_pylist()
        parts = node.ledger.usage(by=("label:team",)).to_pylist()
        assert {part["label:team"] for part in parts} == {"a", "b", "c", None}
        for column in ("vcpu_seconds", "mem_byte_seconds", "storage_byte_seconds"):
            assert sum(part[column] for part in parts) == pytest.approx(whole[column], rel=1e-12)
        first, last = lines[1]["uptime_ns"], lines[-1]["uptime_ns"]
        assert whole["vcpu_seconds"] == pytest.approx((last - first) / 1e9, abs=1e-9)
        assert whole["vm_id"] == vm.id
    check_node(tmp_root)


def test_a_living_vmm_that_the_record_calls_stopped_is_adopted(tmp_root: Path, guest: object, tmp_path: Path) -> None:
    # The engine of the VM's start is killed at the first call after the guest was let run: its commit never happens.
    with Node(tmp_root) as node:
        node.backend("qemu").create(guest_config("web"))
    starter = "from cocoon import Node; import sys; Node(sys.argv[1]).backend('qemu').start('web')"
    command = [sys.executable, "-c", starter, str(tmp_root)]
    flocks = traced_calls(command, tmp_path / "trace", "flock").count("flock")
    for when in range(flocks, 0, -1):
        with Node(tmp_root) as node:
            node.backend("qemu").delete("web", force=True)
            node.backend("qemu").create(guest_config("web"))
        kill_at(command, "flock", when, tmp_path / "trace")
        with Node(tmp_root) as node:
            if not node.find("web").interval_open:
                break
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        vm = backend.inspect("web")
        assert (vm.state, vm.alive, vm.interval_open) == (VMState.CREATED, True, False)
        (row,) = node.reconcile().rows
        assert row["status"] == "process-without-interval"
        assert row["pid"] == vm.pid
        before = len(ledger_lines(tmp_root))
        backend.start("web")
        adopted = backend.inspect("web")
        assert (adopted.state, adopted.pid, adopted.interval_open) == (VMState.RUNNING, vm.pid, True)
        assert [(x["kind"], x["reason"]) for x in ledger_lines(tmp_root)[before:]] == [("vm.compute.start", "boot")]
        backend.delete("web", force=True)
    assert check_node(tmp_root) == {}
    assert vmm_processes(tmp_root) == []


def test_a_process_with_a_reused_pid_is_never_signalled(backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    # The record is made to name a stranger: same pid as some process, another start time. Its argv looks right too.
    vm = backend.create(guest_config("web"))
    backend.start("web")
    pid = kill_behind_the_back(backend, "web", wait_until)
    stranger = subprocess.Popen(
        ["qemu-system-x86_64", "-c", "read line", "-name", f"cocoon-{vm.id}"],
        executable="/bin/bash",
        cwd=vm.run_dir,
        stdin=subprocess.PIPE,
    )
    try:
        backend.node.close()
        db = tmp_root / "db" / "meta.db"
        with closing(sqlite3.connect(db)) as connection, connection:
            (text,) = connection.execute("SELECT document FROM vm").fetchone()
            document = json.loads(text)
            assert document["process"]["pid"] == pid
            document["process"]["pid"] = stranger.pid
            connection.execute("UPDATE vm SET document = ?", (json.dumps(document, separators=(",", ":")),))
        with Node(tmp_root) as node:
            again = node.backend("qemu")
            assert again.inspect("web").alive is False
            again.stop("web", force=True)
            again.delete("web", force=True)
        assert stranger.poll() is None, "a stranger was signalled"
    finally:
        stranger.kill()
        stranger.communicate()
    assert check_node(tmp_root) == {}


def test_start_fails_with_the_last_lines_of_the_vmms_log(backend: Backend, tmp_root: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"this is no kernel" * 64)
    vm = backend.create(VMConfig("web", kernel=kernel, storage=0, memory="128M", accelerator="tcg"))
    with pytest.raises(VmmError) as caught:
        backend.start("web")
    assert "kernel" in caught.value.log_tail.lower()
    assert caught.value.log_tail.strip() in str(caught.value)
    failed = backend.inspect("web")
    assert (failed.state, failed.alive, failed.interval_open) == (VMState.ERROR, False, False)
    assert reasons(ledger_lines(tmp_root), vm.id) == [("vm.storage.start", "boot")]
    backend.delete("web")
    assert check_node(tmp_root) == {}


def test_a_running_vm_is_not_removed_without_force(backend: Backend, tmp_root: Path) -> None:
    backend.create(guest_config("web"))
    backend.start("web")
    with pytest.raises(InvalidState) as caught:
        backend.delete("web")
    assert caught.value.state == "running"
    with pytest.raises(InvalidState, match="alive"):
        backend.mark_stopped("web")
    assert backend.inspect("web").alive is True
    backend.delete("web", force=True)
    assert check_node(tmp_root) == {}


def test_pause_and_resume(backend: Backend, tmp_root: Path) -> None:
    backend.create(guest_config("web"))
    with pytest.raises(InvalidState):
        backend.pause("web")
    backend.start("web")
    wait_ready(backend, "web")
    backend.pause("web")
    backend.pause("web")
    assert backend.inspect("web").interval_open, "a paused VM holds its memory and is billed"
    backend.resume("web")
    backend.pause("web")
    backend.stop("web")  # a paused guest can be stopped gracefully too
    assert backend.inspect("web").state == VMState.STOPPED
    backend.delete("web")
    assert check_node(tmp_root) == {}


def test_a_guest_that_ignores_the_button_is_ended_all_the_same(tmp_root: Path, guest: object) -> None:
    with Node(tmp_root) as node:
        backend = Backend(node, "qemu", stop_timeout=1.0, terminate_grace=2.0)
        backend.create(guest_config("web"))
        backend.start("web")
        wait_ready(backend, "web")
        tell(backend, "web", "ignore-power-button", "IGNORE-POWER-BUTTON on")
        backend.stop("web")
        assert backend.inspect("web").state == VMState.STOPPED
        assert ledger_lines(tmp_root)[-1]["reason"] == "stop-user"
        backend.delete("web")
    assert check_node(tmp_root) == {}


def test_batches_run_in_parallel_and_report_each_failure(backend: Backend, tmp_root: Path) -> None:
    ids = [backend.create(guest_config(f"v{i}", memory="128M")).id for i in range(3)]
    assert backend.start("v0", "v1", "v2", "v1") == ids
    with pytest.raises(BulkError) as caught:
        backend.stop("v0", "nobody", "v2", force=True)
    assert caught.value.succeeded == [ids[0], ids[2]]
    assert set(caught.value.errors) == {"nobody"}
    assert isinstance(caught.value.errors["nobody"], NotFound)
    with pytest.raises(BulkError) as caught:
        backend.delete("v0", "v1", "v2")
    assert set(caught.value.errors) == {"v1"}
    assert isinstance(caught.value.errors["v1"], InvalidState)
    backend.delete("v1", force=True)
    assert check_node(tmp_root) == {}


def test_ctrl_c_interrupts_a_stop_and_leaves_the_vm_running(tmp_root: Path, guest: object, wait_until: Wait) -> None:
    code = """
import time
node = Node(sys.argv[1])
backend = node.backend("qemu")
print("stopping", flush=True)
try:
    backend.stop("web", timeout=60)
except KeyboardInterrupt:
    print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), node.find("web").alive, node.find("web").state)
"""
    with Node(tmp_root) as node:
        backend = node.backend("qemu")
        backend.create(guest_config("web"))
        backend.start("web")
        wait_ready(backend, "web")
        tell(backend, "web", "ignore-power-button", "IGNORE-POWER-BUTTON on")
        stopper = engine_process(code, tmp_root)
        assert stopper.stdout is not None
        assert stopper.stdout.readline() == "stopping\n"
        threading.Event().wait(0.5)
        sent = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        stopper.send_signal(signal.SIGINT)
        returned, alive, state = finish(stopper).split()
        assert (alive, state) == ("True", "running")
        assert int(returned) - sent < 500_000_000, "it is 100 ms on a quiet machine"
        backend.delete("web", force=True)
    assert check_node(tmp_root) == {}


def test_network_namespace_of_the_vmm(backend: Backend, tmp_root: Path, netns: Path) -> None:
    backend.create(guest_config("web", network_namespace=netns))
    backend.start("web")
    pid = backend.inspect("web").pid
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == netns.stat().st_ino
    backend.delete("web", force=True)
    backend.create(guest_config("lost", network_namespace=tmp_root / "no-such-namespace"))
    with pytest.raises(Exception, match="no-such-namespace"):
        backend.start("lost")
    backend.delete("lost")
    assert check_node(tmp_root) == {}


def test_a_vmm_holds_nothing_of_ours(backend: Backend, tmp_root: Path) -> None:
    backend.create(guest_config("web"))
    os.environ["COCOON_SECRET_OF_THE_ENGINE"] = "1"
    try:
        backend.start("web")
    finally:
        del os.environ["COCOON_SECRET_OF_THE_ENGINE"]
    vm = backend.inspect("web")
    fds = {os.readlink(f"/proc/{vm.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{vm.pid}/fd")}
    assert str(Path(vm.run_dir) / "vm.lock") in fds
    assert not {fd for fd in fds if "meta.db" in fd or "ledger" in fd or "/locks/" in fd}
    assert b"COCOON_SECRET" not in Path(f"/proc/{vm.pid}/environ").read_bytes()
    assert os.getsid(vm.pid or 0) != os.getsid(0)
    assert Path(vm.run_dir).stat().st_mode & 0o777 == 0o700
    assert (vm.socket_path or Path()).stat().st_mode & 0o077 == 0
    backend.delete("web", force=True)


def test_ledger_reads_the_same_from_files_and_node(backend: Backend, tmp_root: Path) -> None:
    backend.create(guest_config("web"))
    backend.start("web")
    backend.delete("web", force=True)
    path = tmp_root / "metering" / "ledger.jsonl"
    entries = list(Ledger(path))
    assert [json.loads(entry.to_json()) for entry in entries] == ledger_lines(tmp_root)
    intervals = backend.node.ledger.intervals().to_pylist()
    assert sorted((row["kind"], row["start_reason"], row["stop_reason"], row["open"]) for row in intervals) == [
        ("vm.compute", "boot", "stop-user", False),
        ("vm.storage", "boot", "vm-rm", False),
    ]
