"""The steps of `cocoon demo`. Whatever it says was looked up after it happened: in the record, the process, the guest's
console or the ledger."""

import os
import secrets
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cocoon._paths import TINY_GUEST
from cocoon.cli import output
from cocoon.cli.asked import ask
from cocoon.cli.config import Config
from cocoon.cli.errors import CommandError, one_line
from cocoon.cli.ledger import print_intervals, print_usage
from cocoon.cli.printed import Printed
from cocoon.cli.session import open_backend
from cocoon.cli.units import format_duration, format_local, format_size
from cocoon.cli.vm_show import print_vms

if TYPE_CHECKING:
    from cocoon import VM, Node
    from cocoon.guest import Guest

_READY = "COCOON-GUEST-READY"
_POWERED_OFF = "POWER-BUTTON"
_UPTIME = ("uptime", r"\nUPTIME ([0-9.]+)\s")


@dataclass(frozen=True)
class Cast:
    """The guest of a story."""

    kernel: Path
    initrd: Path | None
    cmdline: str
    name: str
    ready: str  # what it prints when it is up; "": anything
    powers_off: str  # what it prints when it powers itself off; "": nothing that we know of
    uptime: tuple[str, str] | None = None  # how it is asked how long it is up, and the pattern of its answer


def built_guest(guest: "Guest") -> Cast:
    """The one of `cocoon guest build`."""
    return Cast(
        guest.kernel,
        guest.initrd,
        guest.cmdline,
        f"Linux {guest.kernel_version}, busybox",
        _READY,
        _POWERED_OFF,
        _UPTIME,
    )


def tiny_guest() -> Cast:
    """The one that comes with the package, for a KVM that runs no Linux."""
    name = f"{TINY_GUEST.stat().st_size / 1024:.0f} KB of cocoon's own, since no Linux runs here"
    return Cast(TINY_GUEST, None, "", name, _READY, _POWERED_OFF, _UPTIME)


# A guest under TCG on a busy host may hang before it prints anything (QEMU, not us): then it is started once more.
_BOOT_SECONDS = 20.0
_DEATH_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.02
_MEMORY = "256M"
_STORAGE = "64M"


class Story:
    """One VM's life on one node, and that of a clone of it."""

    def __init__(self, node: "Node", hypervisor: str, config: Config, guest: Cast) -> None:
        self._node = node
        self._backend = open_backend(node, hypervisor, config)
        self._hypervisor = hypervisor
        self._guest = guest
        self._printed: Printed | None = None
        self._name = f"demo-{secrets.token_hex(2)}"
        self._id = ""
        self._clone_id = ""
        self._snapshot_id = ""
        self._sound = True
        self._begin = time.monotonic()

    def introduce(self, program: str) -> None:
        """What is going to run."""
        from cocoon import __version__
        from cocoon._core import kvm_status

        usable, _, reason = kvm_status()
        output.say(f"cocoon {__version__}", style="bold")
        output.say(f"  VMM    {program}")
        emulated = ", so the guest is emulated (TCG)" if self._hypervisor == "qemu" else " for an ordinary Linux"
        output.say(f"  KVM    {'yes' if usable else 'no' + emulated}: {one_line(reason)}")
        output.say(f"  guest  {self._guest.name}")
        output.say(f"  root   {self._node.root}")
        output.say("")
        self._begin = time.monotonic()

    def live(self) -> None:
        """Create, start, snapshot, clone, crash, start, stop, restore, remove."""
        self._create()
        self._start()
        self._snapshot()
        self._clone()
        killed_at = self._crash()
        self._start()
        self._compare_death(killed_at)
        self._stop()
        self._restore()
        self._remove()

    def account(self) -> bool:
        """Prints intervals, usage and audit. True: all that was opened was closed, and nothing was amiss."""
        self._node.flush()
        ledger = self._node.ledger
        names = {self._id: self._name, self._clone_id: f"{self._name}-clone", self._snapshot_id: self._name}
        mine = [row for row in ledger.intervals().to_pylist() if row["id"] in names]
        output.say("")
        output.say("Intervals", style="bold")
        print_intervals(mine, names=names)
        output.say("")
        output.say("Usage", style="bold")
        print_usage([row for row in ledger.usage().to_pylist() if row["vm_id"] in names], names=names)
        output.say("")
        output.say("Audit", style="bold")
        report = ledger.audit()
        opened = len(mine)
        closed = sum(1 for row in mine if not row["open"])
        balanced = bool(report.ok) and opened == closed > 0 and self._node.pending == 0
        for finding in report.findings:
            output.say(f"{finding.code}: {finding.message}", style="red")
        output.say(
            f"{report.entries} entries, {len(report.findings)} findings; {opened} intervals opened, {closed} closed: "
            + ("it balances" if balanced else "it does NOT balance"),
            style="bold green" if balanced else "bold red",
        )
        return balanced and self._sound

    def clean_up(self) -> None:
        """No process and no file of the VMs is left, however far they got."""
        from cocoon import NotFound

        self._forget_console()
        for vm in self._node.vms():
            if vm.name.startswith(self._name):
                with suppress(NotFound):
                    self._backend.delete(vm.id, force=True)
        for snapshot in self._node.snapshots.list():
            if snapshot.name == self._name:
                with suppress(NotFound):
                    self._node.snapshots.delete(snapshot.id)

    # ---- the steps

    def _create(self) -> None:
        from cocoon import VMConfig

        config = VMConfig(
            self._name,
            cpu=1,
            memory=_MEMORY,
            storage=_STORAGE,
            kernel=self._guest.kernel,
            initrd=self._guest.initrd,
            cmdline=self._guest.cmdline,
        )
        vm = self._backend.create(config)
        self._id = vm.id
        shape = f"{vm.shape.cpu} vCPU, {format_size(vm.shape.mem_bytes)}, disk {format_size(vm.shape.storage_bytes)}"
        self._say(f"created {vm.name}: {shape}; id {vm.id}")

    def _start(self) -> None:
        for attempt in (1, 2):
            begin = time.monotonic()
            self._forget_console()
            self._backend.start(self._id)
            self._printed = Printed(self._backend, self._id)
            vm = self._inspect()
            self._say(f"started its VMM, pid {vm.pid}, in {format_duration(time.monotonic() - begin)}")
            with output.working("waiting for the guest"):
                said = self._await_guest()
            if said is not None:
                how = _accelerator(vm.pid)
                self._say(f"the guest is up after {format_duration(time.monotonic() - begin)} ({how}): {said!r}")
                return
            if attempt == 1:
                self._say(f"the guest was not ready after {_BOOT_SECONDS:.0f} s: killing it and starting it again")
                self._backend.stop(self._id, force=True)
        raise CommandError(
            f"the guest was not ready after {_BOOT_SECONDS:.0f} s, twice; last it said: {self._last_words()}"
        )

    def _snapshot(self) -> None:
        begin = time.monotonic()
        with output.working("taking a snapshot"):
            snapshot = self._backend.snapshot(self._id, name=self._name)
        self._snapshot_id = snapshot.id
        self._say(
            f"took a snapshot in {format_duration(time.monotonic() - begin)}: {format_size(snapshot.size_bytes)}; "
            f"the guest runs on{self._proof_of_life(self._id)}"
        )

    def _clone(self) -> None:
        from cocoon import VMConfig

        begin = time.monotonic()
        with output.working("cloning"):
            clone = self._backend.clone(self._snapshot_id, VMConfig(f"{self._name}-clone"))
        self._clone_id = clone.id
        self._say(
            f"cloned it in {format_duration(time.monotonic() - begin)}: {clone.name}, pid {clone.pid}; its guest did "
            f"not boot, it goes on{self._proof_of_life(clone.id)}"
        )

    def _restore(self) -> None:
        begin = time.monotonic()
        self._forget_console()
        with output.working("restoring"):
            vm = self._backend.restore(self._id, self._snapshot_id)
        self._printed = Printed(self._backend, self._id)
        self._say(
            f"restored it from the snapshot in {format_duration(time.monotonic() - begin)}: pid {vm.pid}, the guest is "
            f"back{self._proof_of_life(self._id)}"
        )

    def _proof_of_life(self, vm_id: str) -> str:
        """ ", up 5.21 s": what the guest says itself, if it can be asked."""
        if self._guest.uptime is None:
            return ""
        question, answer = self._guest.uptime
        seconds = ask(self._backend, vm_id, question, answer, _ANSWER_SECONDS)
        if seconds is None:
            self._sound = False
            return ", but it does NOT answer"
        return f", up {seconds} s"

    def _stop(self) -> None:
        begin = time.monotonic()
        with output.working("waiting for the guest to power off"):
            self._backend.stop(self._id)
        seconds = format_duration(time.monotonic() - begin)
        if not self._guest.powers_off:
            how = "its VMM has ended"
        elif self._guest.powers_off in self._console():
            how = "the guest powered itself off"
        else:
            how = "the guest did not power off, its VMM was ended"
        self._say(f"stopped in {seconds}: {how}; the record says {self._inspect().state}")

    def _crash(self) -> datetime:
        before = self._inspect()
        if before.pid is None:
            raise CommandError(f"{self._name} has no VMM to be killed")
        killed_at = _kill(before.pid)
        deadline = time.monotonic() + _DEATH_SECONDS
        while (after := self._inspect()).alive is not False:
            if time.monotonic() > deadline:
                raise CommandError(f"the VMM, pid {before.pid}, still lives after SIGKILL")
            time.sleep(_POLL_SECONDS)
        self._say(f"killed the VMM, pid {before.pid}, with SIGKILL, behind the engine's back; looking at it:")
        print_vms([after])
        unchanged = (before.state, before.updated_at, before.interval_open) == (
            after.state,
            after.updated_at,
            after.interval_open,
        )
        self._say(
            f"alive={after.alive}, the record still says {after.state} and is "
            + ("unchanged: looking changes nothing" if unchanged else "CHANGED, which looking must not do")
        )
        self._sound &= unchanged
        return killed_at

    def _compare_death(self, killed_at: datetime) -> None:
        crashes = [e for e in self._node.ledger if e.vm_id == self._id and e.reason == "stop-crash"]
        if not crashes:
            self._say("the ledger does NOT know of the crash")
            self._sound = False
            return
        crash = crashes[-1]
        if crash.ended_at is None:
            self._say("the ledger knows of the crash, not of its moment: nobody saw it")
            return
        late = (crash.ended_at - killed_at).total_seconds() * 1000
        self._say(
            f"the ledger closed the crashed run at {format_local(crash.ended_at, millis=True)}, {late:.1f} ms after "
            f"the kill (seen by: {crash.evidence})"
        )

    def _remove(self) -> None:
        self._backend.delete(self._id, self._clone_id, force=True)
        self._node.snapshots.delete(self._snapshot_id)
        left = [vm.name for vm in self._node.vms() if vm.id in {self._id, self._clone_id}]
        left += [snapshot.id for snapshot in self._node.snapshots.list() if snapshot.id == self._snapshot_id]
        self._say(
            "removed both with force, while they ran, and the snapshot"
            + (f"; but there is STILL {left[0]}" if left else "")
        )
        self._sound &= not left

    # ---- what is really so

    def _inspect(self) -> "VM":
        return self._backend.inspect(self._id)

    def _await_guest(self) -> str | None:
        """The line that the guest says when it is up; None: it did not in time."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < deadline:
            text = self._console().lstrip()
            at = text.find(self._guest.ready)
            if at >= 0 and "\n" in text[at:]:
                return one_line(text[at:].partition("\n")[0])
            if self._inspect().alive is False:
                raise CommandError(f"the VMM ended while its guest booted; last it said: {self._last_words()}")
            time.sleep(_POLL_SECONDS)
        return None

    def _console(self) -> str:
        return self._printed.text() if self._printed is not None else ""

    def _forget_console(self) -> None:
        if self._printed is not None:
            self._printed.close()
            self._printed = None

    def _last_words(self) -> str:
        log = Path(self._backend.log_path(self._id))
        said = self._console() or (log.read_text(errors="replace") if log.exists() else "")
        return one_line("\n".join(said.splitlines()[-5:])) or "nothing"

    def _say(self, text: str) -> None:
        output.say(f"{time.monotonic() - self._begin:6.2f}s  {text}")


def _kill(pid: int) -> datetime:
    """When it was killed."""
    process = os.pidfd_open(pid)
    try:
        killed_at = datetime.now(UTC)
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)
    return killed_at


def _accelerator(pid: int | None) -> str:
    """What the VMM's process really uses: one that runs a guest under KVM holds KVM's descriptor of it."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink().name.startswith("anon_inode:kvm-vm"):
                return "under KVM"
        except FileNotFoundError:
            continue
    return "emulated, TCG"
