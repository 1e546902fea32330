"""`cocoon demo`: a real guest's life, and what the ledger says of it. The steps are in story.py."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocoon._paths import TINY_GUEST
from cocoon.cli import checks, output
from cocoon.cli.app import command
from cocoon.cli.config import load_config
from cocoon.cli.errors import CommandError, UsageError, one_line
from cocoon.cli.options import complete_hypervisor
from cocoon.cli.session import Session, open_node
from cocoon.cli.story import Cast, Story, built_guest, tiny_guest

if TYPE_CHECKING:
    from cocoon import Node

app = typer.Typer(add_completion=False)

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@command(app, "demo")
def demo(
    session: Session,
    *,
    hypervisor: Annotated[
        str | None,
        typer.Option("--hypervisor", metavar="NAME", help="Default: qemu.", autocompletion=complete_hypervisor),
    ] = None,
    kernel: Annotated[
        Path | None,
        typer.Option(
            "--kernel", metavar="FILE", exists=True, dir_okay=False, help="Boot this instead of a small Linux."
        ),
    ] = None,
    initrd: Annotated[
        Path | None,
        typer.Option("--initrd", metavar="FILE", exists=True, dir_okay=False, help="With --kernel: its initramfs."),
    ] = None,
    cmdline: Annotated[str, typer.Option("--cmdline", metavar="TEXT", help="With --kernel: its command line.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary root folder, with its ledger.")] = False,
) -> None:
    """Boot a real guest, stop, restart and crash it, remove it, and show that the ledger is exact.

    Runs in a temporary root folder, which is gone afterwards; with --root in that one, which stays. Where KVM is
    emulated, Firecracker and Cloud Hypervisor boot a tiny guest instead of Linux. A kernel of your own counts as up
    when it prints something.
    """
    name = hypervisor or session.config.hypervisor
    program = _program(name, session)
    guest = _cast(name, kernel, initrd, cmdline)
    stage = _Stage(session, name, keep=keep)
    with _unwound_once():
        try:
            # Twice: a first Ctrl-C may cut the first one short, and there is no second one.
            try:
                sound = stage.play(program, guest)
            finally:
                stage.clear()
        finally:
            stage.clear()
    if stage.kept:
        output.say("")
        output.say(f"the ledger is in {stage.root}: cocoon ledger show --root {stage.root}")
    if not sound:
        raise CommandError("something above is not as it must be: that is a defect of cocoon's, please report it")


class _Stage:
    """The root folder and the node that the demo runs on."""

    def __init__(self, session: Session, hypervisor: str, *, keep: bool) -> None:
        self.root = None if session.root_flag is None else session.root
        self.kept = keep or self.root is not None
        self._session = session
        self._hypervisor = hypervisor
        self._node: Node | None = None
        self._story: Story | None = None

    def play(self, program: str, guest: Cast) -> bool:
        """True: all was as it must be, and the ledger balances."""
        config = self._session.config
        if self.root is None:
            # Neither the files nor the settings of another node. A signal waits until we know what to remove.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            self.root = Path(tempfile.mkdtemp(prefix="cocoon-demo-"))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            config = replace(load_config(self._session.config_flag, self.root), run_dir=None, log_dir=None)
        self._node = open_node(self.root, config)
        self._story = Story(self._node, self._hypervisor, config, guest)
        self._story.introduce(program)
        self._story.live()
        return self._story.account()

    def clear(self) -> None:
        """No process and no folder is left. If the VM cannot be removed, its folder stays: it is needed to find it."""
        if self._node is not None:
            if self._story is not None:
                self._story.clean_up()
            self._node.close()
            self._node = None
        if not self.kept and self.root is not None and self.root.exists():
            shutil.rmtree(self.root)


def _cast(hypervisor: str, kernel: Path | None, initrd: Path | None, cmdline: str) -> Cast:
    if kernel is not None:
        return Cast(kernel.absolute(), initrd and initrd.absolute(), cmdline, str(kernel), ready="", powers_off="")
    if initrd is not None or cmdline:
        raise UsageError("--initrd and --cmdline go with a --kernel")
    if hypervisor in ("cloud-hypervisor", "firecracker"):
        from cocoon._core import kvm_status

        usable, interprets, reason = kvm_status()
        if interprets and TINY_GUEST.exists():
            return tiny_guest()
        if not usable:
            raise CommandError(
                f"{hypervisor} needs KVM, which runs no Linux here: {one_line(reason)}",
                hint="--kernel boots another guest, if KVM runs any; --hypervisor qemu emulates",
            )
    from cocoon.guest import build_guest

    return built_guest(build_guest(progress=lambda step: output.say(step, file=sys.stderr)))


def _program(hypervisor: str, session: Session) -> str:
    # Said before anything is made. A hypervisor that is not known is refused by the engine, which knows them all.
    for vmm in checks.VMMS:
        if vmm.hypervisor == hypervisor:
            path = checks.find_program(session, vmm)
            if path is None:
                raise CommandError(f"{vmm.program} is not there", hint=vmm.install)
            return f"{checks.program_version(path, vmm)} ({path})"
    return hypervisor


@contextmanager
def _unwound_once() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP unwind; any that come after the first are ignored: the cleaning up is short."""

    def unwind(number: int, _frame: Any) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
