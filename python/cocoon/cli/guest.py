"""`cocoon guest`: the small Linux guest of the demo and the tests."""

import shlex
import sys
from typing import Annotated

import typer

from cocoon.cli import output
from cocoon.cli.app import command, new_group
from cocoon.cli.options import JsonOption
from cocoon.cli.session import Session

app = new_group("The small Linux guest of the demo and the tests.")


@app.callback()
def _group() -> None:
    # A callback keeps `guest` a group although it has one command.
    pass


@command(app, "build")
def build(
    _session: Session,
    *,
    force: Annotated[bool, typer.Option("--force", help="Make it again although there is one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the guest, unless it is there: Debian's cloud kernel and busybox, in the cache. Nothing is installed."""
    from cocoon.guest import build_guest

    guest = build_guest(force=force, progress=lambda step: output.say(step, file=sys.stderr))
    if as_json:
        output.print_json(
            {
                "kernel": guest.kernel,
                "initrd": guest.initrd,
                "cmdline": guest.cmdline,
                "kernel_version": guest.kernel_version,
            }
        )
        return
    output.say(f"kernel:   {guest.kernel}")
    output.say(f"initrd:   {guest.initrd}")
    output.say(f"cmdline:  {guest.cmdline}")
    output.say(f"version:  Linux {guest.kernel_version}")
    options = {"--kernel": str(guest.kernel), "--initrd": str(guest.initrd), "--cmdline": guest.cmdline}
    words = " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items())
    output.say(f"to run it: cocoon vm run NAME --storage 0 {words}")
