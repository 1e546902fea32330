"""`cocoon vm snapshot`, `clone`, `restore`, `hibernate`, `wake`."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from cocoon.cli import batch, errors, output
from cocoon.cli.app import command
from cocoon.cli.errors import CommandError
from cocoon.cli.options import JsonOption, QuietOption, RefArgument, RefsArgument
from cocoon.cli.session import Session
from cocoon.cli.units import absolute, format_size, parse_labels
from cocoon.cli.vm import app

if TYPE_CHECKING:
    from cocoon import VM, CocoonError

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Name, id, or the first three or more characters of the id.")
]
CloneNamesArgument = Annotated[list[str], typer.Argument(metavar="NAME…", help="A name for each clone.")]


@command(app, "snapshot")
def snapshot(
    session: Session,
    ref: RefArgument,
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="A name for it. Default: none.")] = "",
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="For people.")] = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep a VM's memory, devices and disks as they are now. The guest goes on at once."""
    from cocoon import CocoonError

    vm = session.node.find(ref)
    try:
        with output.working(f"taking a snapshot of {vm.name}"):
            made = session.backend(vm.hypervisor).snapshot(vm.id, name=name, description=description)
    except CocoonError as error:
        hint = errors.hint(error, "snapshot", ref)
        raise CommandError(str(error), code=errors.exit_code(error), hint=hint) from error
    if as_json:
        output.print_json(made.to_dict())
    else:
        label = f"{made.name} ({made.id})" if made.name else made.id
        output.say(made.id if quiet else f"snapshot {label} of {vm.name}: {format_size(made.size_bytes)}")


@command(app, "clone")
def clone(
    session: Session,
    source: SnapshotArgument,
    names: CloneNamesArgument,
    *,
    kernel: Annotated[str | None, typer.Option("--kernel", metavar="FILE", help="Another copy of its kernel.")] = None,
    initrd: Annotated[str | None, typer.Option("--initrd", metavar="FILE", help="Another copy of its initrd.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make VMs that go on where a snapshot's VM stood: one for each NAME, all at once."""
    from cocoon import CocoonError, VMConfig

    backend = session.backend(session.node.snapshots.inspect(source).hypervisor)
    labels = parse_labels(label or [])
    configs = [
        VMConfig(
            name,
            labels=labels,
            kernel=absolute(kernel) if kernel else None,
            initrd=absolute(initrd) if initrd else None,
        )
        for name in dict.fromkeys(names)
    ]

    def make(config: VMConfig) -> "VM | CocoonError":
        try:
            return backend.clone(source, config)
        except CocoonError as error:
            return error

    with output.working(f"cloning {source}"), ThreadPoolExecutor(min(len(configs), 16)) as pool:
        results = list(pool.map(make, configs))
    made = [vm for vm in results if not isinstance(vm, CocoonError)]
    failed = {c.name: r for c, r in zip(configs, results, strict=True) if isinstance(r, CocoonError)}
    if as_json:
        output.print_json(
            {"clones": [vm.to_dict() for vm in made], "errors": {name: str(error) for name, error in failed.items()}}
        )
    else:
        for vm in made:
            output.say(vm.id if quiet else f"cloned {vm.name} ({vm.id})")
    for name, error in failed.items():
        output.fail(str(error), errors.hint(error, "clone", name), ref=name if len(configs) > 1 else "")
    if failed:
        alone = next(iter(failed.values()))
        raise typer.Exit(errors.PARTIAL if len(configs) > 1 else errors.exit_code(alone))


@command(app, "restore")
def restore(session: Session, ref: RefArgument, source: SnapshotArgument, *, as_json: JsonOption = False) -> None:
    """Put a VM back to where a snapshot was taken, whatever it does now. What it did since is lost."""
    from cocoon import CocoonError

    vm = session.node.find(ref)
    backend = session.backend(vm.hypervisor)
    try:
        with output.working(f"restoring {vm.name}"):
            after = backend.restore(vm.id, source)
    except CocoonError as error:
        hint = errors.hint(error, "restore", ref)
        with suppress(CocoonError):
            if not hint and backend.inspect(vm.id).state == "error":
                hint = f"its disks are the old ones again; `cocoon vm start {vm.name}` boots from them"
        raise CommandError(str(error), code=errors.exit_code(error), hint=hint) from error
    if as_json:
        output.print_json(after.to_dict())
    else:
        output.say(f"restored {after.name} ({after.id})")


@command(app, "hibernate")
def hibernate(session: Session, refs: RefsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Stop VMs and keep their memory, so that `wake` lets them go on. Only their disks are billed then."""
    with output.working("hibernating " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.one_by_one(lambda backend, ref: backend.hibernate(ref)))
    batch.report(outcome, "hibernate", "hibernated", as_json=as_json, quiet=quiet)


@command(app, "wake")
def wake(session: Session, refs: RefsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Let hibernated VMs go on."""
    with output.working("waking " + " ".join(refs)):
        outcome = batch.apply(session, refs, batch.one_by_one(lambda backend, ref: backend.wake(ref)))
    batch.report(outcome, "wake", "woken", as_json=as_json, quiet=quiet)
