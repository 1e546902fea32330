"""`cocoon vm list`, `inspect`, `logs`, `console`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cocoon.cli import output
from cocoon.cli.app import command
from cocoon.cli.errors import INTERRUPTED, REFUSED, CommandError, UsageError
from cocoon.cli.options import JsonOption, QuietOption, RefArgument, complete_hypervisor
from cocoon.cli.output import Cell
from cocoon.cli.session import Session
from cocoon.cli.units import format_local, format_size, parse_label_filter
from cocoon.cli.vm import app

if TYPE_CHECKING:
    from cocoon import VM

# Characters of an id that a table shows: enough to be unique on any node, and accepted as a reference.
_SHORT_ID = 12


@command(app, "list")
def list_vms(
    session: Session,
    *,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help="Only those in this state.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY[=VALUE]", help="Only those with it; repeatable.")
    ] = None,
    hypervisor: Annotated[
        str | None,
        typer.Option("--hypervisor", metavar="NAME", help="Only its VMs.", autocompletion=complete_hypervisor),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List VMs, in the order in which they were made."""
    from cocoon import VMState

    known = [str(s) for s in VMState]
    if state is not None and state not in known:
        raise UsageError(f"--state: {state!r} is none of {', '.join(known)}")
    wanted = parse_label_filter(label or [])
    vms = session.node.vms() if hypervisor is None else session.backend(hypervisor).list()
    chosen = [vm for vm in vms if (state is None or str(vm.state) == state) and _has_labels(vm, wanted)]
    if as_json:
        output.print_json([vm.to_dict() for vm in chosen])
    elif quiet:
        for vm in chosen:
            print(vm.id)
    else:
        print_vms(chosen)


@command(app, "inspect")
def inspect(session: Session, ref: RefArgument, *, as_json: JsonOption = False) -> None:
    """Show everything about one VM."""
    vm = session.node.find(ref)
    if as_json:
        output.print_json(vm.to_dict())
        return
    for title, value in _details(vm):
        text = value if isinstance(value, Cell) else Cell(value, "")
        output.say(f"{title + ':':<14} {text.text}", style=text.style)


@command(app, "logs")
def logs(
    session: Session,
    ref: RefArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", metavar="N", min=0, help="Only the last N lines to begin with.")
    ] = None,
    console: Annotated[
        bool, typer.Option("--console", help="What the guest printed, instead of the VMM's log.")
    ] = False,
) -> None:
    """Print the log of a VM's VMM, or with --console what its guest printed."""
    from cocoon import NotFound
    from cocoon.cli import follow as reader

    vm, backend = session.find(ref)
    path = backend.console_log_path(vm.id) if console else backend.log_path(vm.id)

    def gone() -> bool:
        try:
            session.node.find(vm.id)
        except NotFound:
            return True
        return False

    if follow:
        try:
            reader.follow(path, tail=tail, gone=gone)
        except KeyboardInterrupt:  # how one leaves it
            raise typer.Exit(INTERRUPTED) from None
    elif not reader.copy(path, tail=tail):
        what = "console log" if console else "log"
        raise CommandError(f"{vm.name} has no {what} yet", hint=f"`cocoon vm start {vm.name}` makes one")


@command(app, "console")
def console(session: Session, ref: RefArgument) -> None:
    """Attach the terminal to the guest's serial console; ^] (control and ]) leaves it.

    When the input is a pipe, it is sent to the guest until its end, and the guest's answers are printed until it has
    been quiet for a second.
    """
    from cocoon._console import GuestConsole
    from cocoon.cli.console import attach

    vm, backend = session.find(ref)
    if vm.alive is False:
        raise CommandError(
            f"{vm.name} is {vm.state}: its VMM does not run", code=REFUSED, hint=f"`cocoon vm start {vm.name}` first"
        )
    path = backend.console_path(vm.id)
    attach(
        path,
        vm.name,
        backend.console_log_path(vm.id) if path.is_fifo() else None,
        holds_back=GuestConsole.held_back_by(backend),
    )


def print_vms(vms: "list[VM]") -> None:
    """The table of `cocoon vm list`."""
    columns = ("NAME", "ID", "STATE", "PID", "CPU", "MEMORY", "STORAGE", "HYPERVISOR", "STARTED")
    rows = [
        (
            vm.name,
            vm.id[:_SHORT_ID],
            state_cell(vm),
            str(vm.pid or "-"),
            str(vm.shape.cpu),
            format_size(vm.shape.mem_bytes),
            format_size(vm.shape.storage_bytes) if vm.shape.storage_bytes else "-",
            vm.hypervisor,
            format_local(vm.started_at),
        )
        for vm in vms
    ]
    output.print_table(columns, rows, right=("PID", "CPU", "MEMORY", "STORAGE"))


def state_cell(vm: "VM") -> Cell:
    """What the record says, and where the process says otherwise, that too."""
    from cocoon import VMState

    colours = {VMState.RUNNING: "green", VMState.ERROR: "bold red", VMState.CREATING: "yellow"}
    if vm.alive is None:
        return Cell(f"{vm.state} (unknown)", "yellow")
    if vm.state == VMState.RUNNING and not vm.alive:
        return Cell(f"{vm.state} (dead)", "bold red")
    if vm.state != VMState.RUNNING and vm.alive:
        return Cell(f"{vm.state} (alive)", "yellow")
    return Cell(str(vm.state), colours.get(vm.state, ""))


def _has_labels(vm: "VM", wanted: dict[str, str | None]) -> bool:
    labels = vm.config.labels
    return all(key in labels and value in {None, labels[key]} for key, value in wanted.items())


def _details(vm: "VM") -> list[tuple[str, str | Cell]]:
    config = vm.config
    alive = {True: "yes", False: "no", None: "could not be decided"}[vm.alive]
    rows: list[tuple[str, str | Cell]] = [
        ("name", vm.name),
        ("id", vm.id),
        ("state", state_cell(vm)),
        ("alive", alive),
        ("hypervisor", vm.hypervisor),
        ("pid", str(vm.pid or "-")),
        ("vCPUs", str(vm.shape.cpu)),
        ("memory", format_size(vm.shape.mem_bytes)),
        ("storage", format_size(vm.shape.storage_bytes)),
        ("compute", "open in the ledger" if vm.interval_open else "closed in the ledger"),
        ("created", format_local(vm.created_at)),
        ("updated", format_local(vm.updated_at)),
        ("started", format_local(vm.started_at)),
        ("stopped", format_local(vm.stopped_at)),
        ("kernel", output.dashed(str(config.kernel or ""))),
        ("initrd", output.dashed(str(config.initrd or ""))),
        ("cmdline", output.dashed(config.cmdline)),
    ]
    optional = (
        ("machine", config.machine),
        ("accelerator", config.accelerator),
        ("network ns", str(config.network_namespace or "")),
    )
    rows += [(title, value) for title, value in optional if value]
    for disk in config.disks:
        words = [str(disk.path), disk.format, disk.role, "ro" if disk.readonly else "rw"]
        rows.append(("disk", " ".join([*words, *([f"serial={disk.serial}"] if disk.serial else [])])))
    rows += [("label", f"{key}={value}") for key, value in sorted(config.labels.items())]
    rows += [("snapshot", snapshot) for snapshot in vm.snapshot_ids]
    rows += [("socket", output.dashed(str(vm.socket_path or ""))), ("run dir", str(vm.run_dir))]
    rows.append(("log dir", str(vm.log_dir)))
    return rows
