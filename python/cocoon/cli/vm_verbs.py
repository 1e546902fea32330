"""`cocoon vm create`, `run`, `start`, `stop`, `restart`, `rm`, `pause`, `resume`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocoon.cli import batch, errors, output
from cocoon.cli.app import command
from cocoon.cli.errors import CommandError, UsageError
from cocoon.cli.options import JsonOption, QuietOption, RefsArgument, TimeoutOption, complete_hypervisor
from cocoon.cli.session import Session
from cocoon.cli.units import absolute, parse_duration, parse_labels
from cocoon.cli.vm import app

if TYPE_CHECKING:
    from cocoon import VM, Backend, Disk, VMConfig

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '.', '_' and '-', at most 63.")]
KillOption = Annotated[bool, typer.Option("--force", help="Kill the VMM at once instead of asking the guest.")]


@dataclass(frozen=True)
class Shape:
    """What a VM is to be: the options of `create` and `run`."""

    hypervisor: Annotated[
        str | None,
        typer.Option("--hypervisor", metavar="NAME", help="Default: qemu.", autocompletion=complete_hypervisor),
    ] = None
    cpu: Annotated[int | None, typer.Option("--cpu", metavar="N", help="vCPUs. Default: 1.")] = None
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Such as 512M (the default) or 2G.")
    ] = None
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="SIZE", help="Of the VM's own disk. Default: 10G; 0: it has none."),
    ] = None
    kernel: Annotated[str | None, typer.Option("--kernel", metavar="FILE", help="Kernel to boot.")] = None
    initrd: Annotated[str | None, typer.Option("--initrd", metavar="FILE", help="Initial RAM file system.")] = None
    cmdline: Annotated[str, typer.Option("--cmdline", metavar="TEXT", help="The kernel's command line.")] = ""
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="PATH[,ro][,format=…][,role=…][,serial=…]",
            help="A disk; repeatable. Formats: raw, qcow2; roles: layer, cow, cidata, data. No commas in the path.",
        ),
    ] = None
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")] = None
    machine: Annotated[
        str, typer.Option("--machine", metavar="NAME", help="The hypervisor's machine type, such as q35.")
    ] = ""
    accelerator: Annotated[
        str,
        typer.Option("--accelerator", metavar="NAME", help="kvm or tcg. Default: kvm where it runs guests, else tcg."),
    ] = ""
    network_namespace: Annotated[
        str | None,
        typer.Option("--network-namespace", metavar="PATH", help="Run the VMM there, such as /run/netns/blue."),
    ] = None

    def config(self, name: str) -> "VMConfig":
        """As a configuration, which the engine checks."""
        from cocoon import VMConfig

        return VMConfig(
            name,
            cpu=self.cpu,
            memory=_size(self.memory),
            storage=_size(self.storage),
            kernel=_file(self.kernel),
            initrd=_file(self.initrd),
            cmdline=self.cmdline,
            disks=[parse_disk(text) for text in self.disk or ()],
            labels=parse_labels(self.label or []),
            machine=self.machine,
            accelerator=self.accelerator,
            network_namespace=_file(self.network_namespace),
        )


@command(app, "create")
def create(
    session: Session, name: NameArgument, shape: Shape, *, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Make a VM. It is not started."""
    config = shape.config(name)
    with output.working(f"creating {name}"):
        vm = session.backend(shape.hypervisor or session.config.hypervisor).create(config)
    _made(vm, "created", as_json=as_json, quiet=quiet)


@command(app, "run")
def run(
    session: Session, name: NameArgument, shape: Shape, *, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Make a VM and start it. If the start fails, the VM stays: see its logs, then start or remove it."""
    from cocoon import CocoonError

    config = shape.config(name)
    backend = session.backend(shape.hypervisor or session.config.hypervisor)
    with output.working(f"starting {name}"):
        vm_id = backend.create(config).id
        try:
            backend.start(vm_id)
        except CocoonError as error:
            code, hint = errors.exit_code(error), errors.hint(error, "start", name)
            raise CommandError(str(error), code=code, hint=hint) from error
    _made(backend.inspect(vm_id), "started", as_json=as_json, quiet=quiet)


@command(app, "start")
def start(session: Session, refs: RefsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Start VMs. One that runs is left alone; one whose VMM died is started again."""
    with output.working("starting " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.together(lambda backend, ids: backend.start(*ids)))
    batch.report(outcome, "start", "started", as_json=as_json, quiet=quiet)


@command(app, "stop")
def stop(
    session: Session,
    refs: RefsArgument,
    *,
    force: KillOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stop VMs: the guest is asked to power off; if it does not, its VMM is ended."""
    options: dict[str, Any] = {"force": force}
    if timeout is not None:
        options["timeout"] = parse_duration(timeout, "--timeout")
    with output.working("stopping " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.together(lambda backend, ids: backend.stop(*ids, **options)))
    batch.report(outcome, "stop", "stopped", as_json=as_json, quiet=quiet)


@command(app, "restart")
def restart(
    session: Session,
    refs: RefsArgument,
    *,
    force: KillOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stop VMs and start them again."""
    seconds = None if timeout is None else parse_duration(timeout, "--timeout")

    def stop_and_start(backend: "Backend", ids: Sequence[str]) -> list[str]:
        if seconds is not None:
            backend = session.backend(backend.hypervisor, stop_timeout=seconds)
        return backend.restart(*ids, force=force)

    with output.working("restarting " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.together(stop_and_start))
    batch.report(outcome, "restart", "restarted", as_json=as_json, quiet=quiet)


@command(app, "rm")
def rm(
    session: Session,
    refs: RefsArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="Kill those that run; without it they are refused.")] = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove VMs with their disks and logs. What they used stays in the ledger."""
    from cocoon import CocoonError

    if timeout is not None and not force:
        raise UsageError("--timeout: only with --force, which stops a running VM before it is removed")
    seconds = None if timeout is None else parse_duration(timeout, "--timeout")

    def remove(backend: "Backend", ids: Sequence[str]) -> list[str]:
        if seconds is not None:
            # Those that do not stop are killed by the removal, which says what it could not do.
            with suppress(CocoonError):
                backend.stop(*ids, timeout=seconds)
        return backend.delete(*ids, force=force)

    with output.working("removing " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.together(remove))
    batch.report(outcome, "rm", "removed", as_json=as_json, quiet=quiet)


@command(app, "pause")
def pause(session: Session, refs: RefsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Freeze guests where they are. Their VMs go on running, and are billed."""
    outcome = batch.apply(session, refs, batch.one_by_one(lambda backend, ref: backend.pause(ref)))
    batch.report(outcome, "pause", "paused", as_json=as_json, quiet=quiet)


@command(app, "resume")
def resume(session: Session, refs: RefsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Let paused guests go on."""
    outcome = batch.apply(session, refs, batch.one_by_one(lambda backend, ref: backend.resume(ref)))
    batch.report(outcome, "resume", "resumed", as_json=as_json, quiet=quiet)


def parse_disk(text: str) -> "Disk":
    """A disk of PATH[,ro][,format=…][,role=…][,serial=…]."""
    from cocoon import Disk

    path, *rest = text.split(",")
    if not path:
        raise UsageError(f"--disk {text}: a path comes first")
    options: dict[str, Any] = {}
    for item in rest:
        key, sign, value = item.partition("=")
        if item == "ro":
            key, value = "readonly", ""
        elif key not in {"format", "role", "serial"} or not sign:
            raise UsageError(
                f"--disk {text}: {item!r} is none of ro, format=…, role=…, serial=… "
                "(a path with a comma cannot be given here)"
            )
        if key in options:
            raise UsageError(f"--disk {text}: {key} is given twice")
        options[key] = value or True
    return Disk(absolute(path), **options)


def _file(text: str | None) -> Path | None:
    return None if text is None else absolute(text)


def _size(text: str | None) -> int | str | None:
    # "0" and "4096" are bytes; a unit is the engine's to read.
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def _made(vm: "VM", done: str, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json(vm.to_dict())
    else:
        output.say(vm.id if quiet else f"{done} {vm.name} ({vm.id})")
