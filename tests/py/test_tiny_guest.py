"""The guest of a few KB that comes with the package, under the real Firecracker and Cloud Hypervisor."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_harness import Cli
from cocoon import Backend, Node, VMConfig, VMState
from cocoon._core import kvm_status
from cocoon.guest import TINY_GUEST
from cocoon.testing import HYPERVISORS
from harness import check_node, ledger_lines, reasons, remove_everything
from vmms import Console, Vmm, console, find_vmm

UP = "COCOON-GUEST-READY tiny\n"
Wait = Callable[..., None]


@pytest.fixture(params=HYPERVISORS)
def vmm(request: pytest.FixtureRequest, tmp_path: Path) -> Vmm:
    return find_vmm(request.param, tmp_path, TINY_GUEST)


@pytest.fixture
def backend(vmm: Vmm, tmp_root: Path) -> Iterator[Backend]:
    with Node(tmp_root) as node:
        yield vmm.backend(node)
        remove_everything(node)
    assert check_node(tmp_root) == {}


@pytest.fixture
def web(vmm: Vmm, backend: Backend) -> Iterator[Console]:
    """The guest of the VM web, which is up."""
    backend.create(vmm.config("web"))
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for(UP)
        yield guest


def test_it_answers_each_line(web: Console) -> None:
    for line, answer in [
        ("echo one two", "ECHO one two"),
        ("echo ", "ECHO "),
        ("echo", "UNKNOWN echo"),
        ("up", "UNKNOWN up"),
        ("uptimes", "UNKNOWN uptimes"),
        ("ticks off", "TICKS off"),
        ("x" * 300, "UNKNOWN " + "x" * 255),
    ]:
        web.type(f"\r{line}\r")
        assert web.wait_for(f"\n{answer}\n").strip("\n") == line, "it echoes what it hears"


def test_what_nobody_reads_for_a_while_comes_all_the_same(web: Console) -> None:
    """Longer than the console's socket has room for, and then the guest is silent."""
    for _ in range(4):
        web.type("\r" + "x" * 300 + "\r")
        time.sleep(0.2)  # nobody says when the guest has printed what nobody reads
    web.type("\recho end\r")
    time.sleep(0.2)
    heard = web.wait_for("\nECHO end\n")
    assert heard.count("\nUNKNOWN " + "x" * 255 + "\n") == 4
    assert heard.count("x") == 4 * (300 + 255)


def uptime(guest: Console) -> tuple[float, float]:
    """By the guest's clock, and by ours."""
    guest.type("uptime\n")
    guest.wait_for("\nUPTIME ")
    said = re.fullmatch(r"\d+\.\d\d", guest.wait_for("\n"))
    assert said is not None
    return float(said[0]), time.monotonic()


def test_its_seconds_are_ours(web: Console) -> None:
    first = uptime(web)
    web.type("ticks on\n")
    web.wait_for("tick 3\n")
    second = uptime(web)
    assert second[0] - first[0] == pytest.approx(second[1] - first[1], rel=0.3)


def test_it_powers_off_when_it_is_asked_to(web: Console, backend: Backend, tmp_root: Path, wait_until: Wait) -> None:
    vm = backend.inspect("web")
    begin = time.monotonic()
    backend.stop("web")
    assert time.monotonic() - begin < 15, "it was not waited for in vain"
    web.wait_for("POWER-BUTTON")
    assert backend.inspect("web").state == VMState.STOPPED
    assert reasons(ledger_lines(tmp_root), vm.id)[-1] == ("vm.compute.stop", "stop-user")
    backend.start("web")
    with console(backend, "web") as guest:
        guest.wait_for(UP)
        guest.type("poweroff\n")
        wait_until(lambda: backend.inspect("web").alive is False, "the VMM has ended", seconds=30)
    backend.stop("web")
    assert reasons(ledger_lines(tmp_root), vm.id)[-1] == ("vm.compute.stop", "stop-crash")


def test_it_crashes_on_request(web: Console, vmm: Vmm, backend: Backend, wait_until: Wait) -> None:
    web.type("crash\n")
    if vmm.reset_ends_it:
        wait_until(lambda: backend.inspect("web").alive is False, "the VMM has ended", seconds=30)
    else:
        web.wait_for(UP)


def test_it_goes_on_in_clones(web: Console, backend: Backend) -> None:
    web.type("ticks on\n")
    web.wait_for("tick 2")
    snapshot = backend.snapshot("web", name="s")
    backend.clone(snapshot.id, VMConfig("clone"))
    with console(backend, "clone") as guest:
        assert "READY" not in guest.wait_for("tick 4")
        guest.type("\necho hello\n")
        guest.wait_for("ECHO hello")


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_the_demo_takes_it_where_no_linux_runs(hypervisor: str, tmp_root: Path, tmp_path: Path) -> None:
    vmm = find_vmm(hypervisor, tmp_path, TINY_GUEST)
    if not kvm_status()[1]:
        pytest.skip("KVM does not interpret its guests here")
    ran = Cli(tmp_root / "unused")(
        "demo",
        "--hypervisor",
        hypervisor,
        env={"TMPDIR": str(tmp_root), "PATH": f"{vmm.binary.parent}:{os.environ['PATH']}"},
    )
    assert ran.code == 0, ran.err + ran.out
    assert "cocoon's own, since no Linux runs here" in ran.out
    assert "'COCOON-GUEST-READY tiny'" in ran.out
    assert "the guest powered itself off" in ran.out
    assert len(re.findall(r", up \d+\.\d\d s", ran.out)) == 3, "the guest, its clone and the restored one were asked"
    assert "8 intervals opened, 8 closed: it balances" in ran.out
    assert list(tmp_root.iterdir()) == []
