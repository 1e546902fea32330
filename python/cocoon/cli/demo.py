"""`cocoon demo`: a real guest's life, and what the ledger says of it. The steps are in story.py."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cocoon.cli import checks, output
from cocoon.cli.app import command
from cocoon.cli.config import Config, load_config
from cocoon.cli.errors import CommandError
from cocoon.cli.options import complete_hypervisor
from cocoon.cli.session import Session, open_node
from cocoon.cli.story import Story

app = typer.Typer(add_completion=False)


@command(app, "demo")
def demo(
    session: Session,
    *,
    hypervisor: Annotated[
        str | None,
        typer.Option("--hypervisor", metavar="NAME", help="Default: qemu.", autocompletion=complete_hypervisor),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary root folder, with its ledger.")] = False,
) -> None:
    """Boot a real guest, stop, restart and crash it, remove it, and show that the ledger is exact.

    Runs in a temporary root folder, which is gone afterwards; with --root in that one, which stays.
    """
    from cocoon.guest import build_guest

    with _terminable():
        temporary = session.root_flag is None
        config = session.config
        program = _program(hypervisor or config.hypervisor, session)
        guest = build_guest(progress=lambda step: output.say(step, file=sys.stderr))
        root = Path(tempfile.mkdtemp(prefix="cocoon-demo-")) if temporary else session.root
        try:
            if temporary:
                # Neither the files nor the settings of another node.
                config = replace(load_config(session.config_flag, root), run_dir=None, log_dir=None)
            _tell(root, config, hypervisor or config.hypervisor, program, guest)
        finally:
            if temporary and not keep:
                with _undisturbed():
                    shutil.rmtree(root)
    if keep or not temporary:
        output.say(f"\nthe ledger is in {root}: cocoon ledger show --root {root}")


def _program(hypervisor: str, session: Session) -> str:
    # Said before anything is made. A hypervisor that is not known is refused by the engine, which knows them all.
    for vmm in checks.VMMS:
        if vmm.hypervisor == hypervisor:
            path = checks.find_program(session, vmm)
            if path is None:
                raise CommandError(f"{vmm.program} is not there", hint=vmm.install)
            return f"{checks.program_version(path, vmm)} ({path})"
    return hypervisor


def _tell(root: Path, config: Config, hypervisor: str, program: str, guest: Any) -> None:
    node = open_node(root, config)
    story = Story(node, hypervisor, config, guest)
    try:
        story.introduce(program)
        story.live()
        balanced = story.account()
    finally:
        with _undisturbed():
            story.clean_up()
            node.close()
    if not balanced:
        raise CommandError("the ledger does not balance: that is a defect of cocoon's, please report it")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that they leave as little behind."""

    def unwind(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The cleaning up is short, and a second Ctrl-C must not leave half of it undone."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
