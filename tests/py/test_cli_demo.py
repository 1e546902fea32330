"""`cocoon demo` with a real guest, and VMs that live through the command alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli_harness import COMMAND, SECONDS, Cli
from harness import check_node, vmm_processes

if TYPE_CHECKING:
    from cocoon.guest import Guest

pytestmark = pytest.mark.guest


@pytest.fixture
def cli(tmp_root: Path, guest: Guest) -> Cli:
    return Cli(tmp_root / "unused")


def test_the_demo_tells_a_true_story_and_leaves_nothing(cli: Cli, tmp_root: Path) -> None:
    begin = time.monotonic()
    ran = cli("demo", env={"TMPDIR": str(tmp_root)})
    seconds = time.monotonic() - begin
    assert ran.code == 0, ran.err + ran.out
    said = ran.out
    assert re.search(r"VMM +QEMU emulator version", said)
    assert re.search(r"guest is up after .*'COCOON-GUEST-READY \d", said)
    assert "the guest powered itself off" in said
    assert "running (dead)" in said
    assert "alive=False, the record still says running and is unchanged" in said
    late = re.search(r"(-?[\d.]+) ms after the kill \(seen by: shim\)", said)
    assert late is not None
    assert 0 <= float(late[1]) < 1000
    assert re.search(r"took a snapshot in .*; the guest runs on, up [\d.]+ s", said)
    assert re.search(r"cloned it in .*its guest did not boot, it goes on, up [\d.]+ s", said)
    assert re.search(r"restored it from the snapshot in .*the guest is back, up [\d.]+ s", said)
    for interval in ("boot … stop-crash", "restart … stop-user", "restore … vm-rm", "clone … vm-rm"):
        assert interval in said
    assert re.search(r"16 entries, 0 findings; 8 intervals opened, 8 closed: it balances", said)
    assert "\x1b" not in said
    assert list(tmp_root.iterdir()) == []
    # Its own promise is 30 s; a host that runs many tests at once may need longer.
    assert seconds < 120


def test_a_demo_in_a_root_of_ones_own_keeps_its_ledger(cli: Cli, tmp_root: Path) -> None:
    root = tmp_root / "node"
    ran = cli("demo", "--root", root)
    assert ran.code == 0, ran.err + ran.out
    assert check_node(root) == {}
    assert vmm_processes(root) == []
    assert f"cocoon ledger show --root {root}" in ran.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_folder(
    cli: Cli, tmp_root: Path, number: signal.Signals
) -> None:
    environment = cli.environment({"TMPDIR": str(tmp_root)})
    process = subprocess.Popen(
        [*COMMAND, "demo"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "started its VMM" in line:
                break
        else:
            pytest.fail(f"it never started a VM: {process.communicate()[1]}")
        (folder,) = tmp_root.iterdir()
        assert vmm_processes(folder) != []
        process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + number, err
        assert vmm_processes(folder) == []
        assert list(tmp_root.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_a_vm_lives_through_the_command_alone(cli: Cli, tmp_root: Path, guest: Guest) -> None:
    root = tmp_root / "node"
    cli = Cli(root)
    made = cli.ok(
        "vm", "run", "web", "--memory", "192M", "--storage", "0", "--kernel", guest.kernel, "--initrd", guest.initrd,
        "--cmdline", guest.cmdline, "--json",
    ).json()  # fmt: skip
    try:
        assert (made["state"], made["alive"]) == ("running", True)
        assert cli("vm", "rm", "web").code == 4, "it runs"
        follower = cli.start("vm", "logs", "web", "--console", "-f", stdout=subprocess.PIPE)
        assert follower.stdout is not None
        try:
            for line in follower.stdout:
                if line.startswith(b"COCOON-GUEST-READY"):
                    break
        finally:
            follower.kill()
            follower.wait()
            follower.stdout.close()
        talked = cli("vm", "console", "web", stdin=b"echo from a pipe\n")
        assert talked.code == 0, talked.err
        assert "ECHO from a pipe" in talked.out
        cli.ok("vm", "pause", "web")
        cli.ok("vm", "resume", "web")
        cli.ok("vm", "stop", "web", "--timeout", "60")
        assert cli.ok("vm", "inspect", "web", "--json").json()["state"] == "stopped"
        cli.ok("vm", "start", "web")
        pid = cli.ok("vm", "inspect", "web", "--json").json()["pid"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while "running (dead)" not in cli.ok("vm", "list").out:
            assert time.monotonic() < deadline
        cli.ok("vm", "restart", "web", "--force")
    finally:
        removed = cli("vm", "rm", "--force", "web")
    assert removed.code == 0, removed.err
    assert check_node(root) == {}
    assert vmm_processes(root) == []
    reasons = [entry["reason"] for entry in cli.ok("ledger", "show", "--json").json()]
    assert reasons[:5] == ["boot", "boot", "stop-user", "restart", "stop-crash"]


def test_a_vm_that_does_not_start_stays_and_its_log_is_named(cli: Cli, tmp_root: Path) -> None:
    cli = Cli(tmp_root / "node")
    kernel = tmp_root / "kernel"
    kernel.write_text("this is no kernel")
    ran = cli("vm", "run", "bad", "--storage", "0", "--kernel", kernel)
    assert (ran.code, ran.out) == (1, "")
    error, hint = ran.err.splitlines()
    assert error.startswith("error: start bad: ")
    assert "invalid kernel header" in error
    assert hint == "hint: `cocoon vm logs bad` shows what the VMM said"
    assert "invalid kernel header" in cli.ok("vm", "logs", "bad").out
    assert cli.ok("vm", "inspect", "bad", "--json").json()["state"] == "error"
    cli.ok("vm", "rm", "bad")
    assert check_node(cli.root) == {}
