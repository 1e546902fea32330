"""Options and arguments that several commands share."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cocoon import Node


def complete_ref(ctx: typer.Context, _args: list[str], incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of VMs for the shell's completion."""
    names = _from_node(ctx, lambda node: [(vm.name, f"{vm.hypervisor}, {vm.state}") for vm in node.vms()])
    yield from (found for found in names if found[0].startswith(incomplete))


def complete_snapshot(ctx: typer.Context, _args: list[str], incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of snapshots, ids of those without, for the shell's completion."""
    names = _from_node(ctx, lambda node: [(s.name or s.id, s.description) for s in node.snapshots.list()])
    yield from (found for found in names if found[0].startswith(incomplete))


def _from_node(
    ctx: typer.Context, look: "Callable[[Node], list[tuple[str, str]]]"
) -> list[tuple[str, str]]:
    """Completion never complains: nothing when the node cannot be read."""
    from cocoon import CocoonError
    from cocoon.cli.errors import UsageError
    from cocoon.cli.session import Session

    above = ctx.find_root().params
    session = Session(ctx.params.get("root") or above.get("root"), ctx.params.get("config") or above.get("config"))
    try:
        if not (session.root / "db" / "meta.db").exists():
            return []  # completing a word makes no root folder
        with session:
            return look(session.node)
    except (CocoonError, UsageError, OSError):
        return []


def complete_hypervisor(_ctx: typer.Context, _args: list[str], incomplete: str) -> Iterator[str]:
    """Hypervisors that can be named."""
    yield from (name for name in ("cloud-hypervisor", "firecracker", "qemu") if name.startswith(incomplete))


RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="A VM: name, id, or first characters of it.", autocompletion=complete_ref)
]
RefsArgument = Annotated[
    list[str],
    typer.Argument(metavar="REF...", help="VMs: names, ids, or first characters of them.", autocompletion=complete_ref),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")]
TimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long the guest may take to power off, such as 30s."),
]
