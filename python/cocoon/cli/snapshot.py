"""`cocoon snapshot`: the node's snapshots, and their archives."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocoon.cli import errors, output
from cocoon.cli.app import command, new_group
from cocoon.cli.errors import UsageError
from cocoon.cli.ledger import short_id
from cocoon.cli.options import JsonOption, QuietOption, complete_snapshot
from cocoon.cli.session import Session
from cocoon.cli.units import absolute, format_local, format_size

if TYPE_CHECKING:
    from cocoon import CocoonError, Snapshot

app = new_group("List, inspect, remove, export and import snapshots.")

SnapshotArgument = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT",
        help="A snapshot: name, id, or first characters of it.",
        autocompletion=complete_snapshot,
    ),
]
SnapshotsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SNAPSHOT...",
        help="Snapshots: names, ids, or first characters of them.",
        autocompletion=complete_snapshot,
    ),
]
_COMPRESSIONS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}


@command(app, "list")
def list_snapshots(
    session: Session,
    *,
    vm: Annotated[str | None, typer.Option("--vm", metavar="REF", help="Only those taken of this VM.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List snapshots, the newest first."""
    found = session.node.snapshots.list()
    if vm is not None:
        vm_id = session.node.find(vm).id
        found = [snapshot for snapshot in found if snapshot.vm_id == vm_id]
    if as_json:
        output.print_json([snapshot.to_dict() for snapshot in found])
    elif quiet:
        for snapshot in found:
            print(snapshot.id)
    else:
        columns = ("NAME", "ID", "HYPERVISOR", "CPU", "MEMORY", "SIZE", "CREATED", "DESCRIPTION")
        output.print_table(columns, [_row(snapshot) for snapshot in found], right=("CPU", "MEMORY", "SIZE"))


def _row(snapshot: "Snapshot") -> tuple[str, ...]:
    return (
        output.dashed(snapshot.name),
        short_id(snapshot.id),
        output.dashed(snapshot.hypervisor),
        output.dashed(str(snapshot.cpu or "")),
        format_size(snapshot.memory) if snapshot.memory else "-",
        format_size(snapshot.size_bytes),
        format_local(snapshot.created_at),
        output.dashed(snapshot.description),
    )


@command(app, "inspect")
def inspect(session: Session, ref: SnapshotArgument, *, as_json: JsonOption = False) -> None:
    """Show everything about one snapshot."""
    snapshots = session.node.snapshots
    snapshot = snapshots.inspect(ref)
    if as_json:
        output.print_json(snapshot.to_dict())
        return
    facts = {
        "id": snapshot.id,
        "name": output.dashed(snapshot.name),
        "description": output.dashed(snapshot.description),
        "hypervisor": output.dashed(snapshot.hypervisor),
        "taken of": output.dashed(snapshot.vm_id),
        "cpu": output.dashed(str(snapshot.cpu or "")),
        "memory": format_size(snapshot.memory) if snapshot.memory else "-",
        "storage": format_size(snapshot.storage) if snapshot.storage else "-",
        "size": f"{format_size(snapshot.size_bytes)} ({snapshot.size_bytes} bytes)",
        "created": format_local(snapshot.created_at),
        "folder": str(snapshots.data_dir(snapshot.id)),
    }
    if snapshot.kept:
        facts["kept"] = "it holds the memory of a hibernated VM"
    for title, value in facts.items():
        output.say(f"{title + ':':<14} {value}")


@command(app, "rm")
def remove(
    session: Session, refs: SnapshotsArgument, *, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Remove snapshots. One that is in use is left alone."""
    from cocoon import BulkError, CocoonError

    snapshots = session.node.snapshots
    done: list[str] = []
    failed: dict[str, CocoonError] = {}
    try:
        done = snapshots.delete(*refs)
    except BulkError as error:
        done, failed = error.succeeded, error.errors
    except CocoonError as error:
        if not as_json:
            raise
        failed = dict.fromkeys(refs[:1], error) if len(refs) == 1 else {getattr(error, "ref", refs[0]): error}
    if as_json:
        output.print_json({"succeeded": done, "errors": {ref: str(error) for ref, error in failed.items()}})
    else:
        for snapshot_id in done:
            output.say(snapshot_id if quiet else f"removed snapshot {snapshot_id}")
    _fail(failed, several=len(done) + len(failed) > 1)


def _fail(failed: "dict[str, CocoonError]", *, several: bool) -> None:
    for ref, error in failed.items():
        output.fail(str(error), errors.hint(error, "snapshot rm", ref), ref=ref if several else "")
    if failed:
        alone = next(iter(failed.values()))
        raise typer.Exit(errors.PARTIAL if several else errors.exit_code(alone))


@command(app, "export")
def export(
    session: Session,
    ref: SnapshotArgument,
    *,
    to: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The archive, - for stdout; default: its name, here."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="A folder, empty or absent, instead of an archive.")
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option("--compress", metavar="HOW", help="none, gzip or zstd; default: as the file's name ends."),
    ] = None,
    sparse_records: Annotated[
        str, typer.Option("--sparse-records", metavar="KIND", help="How holes are noted: gnu, or the Go engine's cocoon.")
    ] = "gnu",
    as_json: JsonOption = False,
) -> None:
    """Write a snapshot into a tar archive that any tar restores, or into a folder."""
    snapshots = session.node.snapshots
    snapshot = snapshots.inspect(ref)
    if folder is not None:
        if to is not None or compress is not None:
            raise UsageError("--dir: it is neither compressed nor combined with --output")
        with output.working(f"exporting {snapshot.name or snapshot.id}"):
            snapshots.export_dir(snapshot.id, absolute(folder))
        _say_exported(snapshot, str(absolute(folder)), None, as_json=as_json)
        return
    how = _compression(to, compress)
    suffix = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}[how]
    options: dict[str, Any] = {"compression": how, "sparse_records": sparse_records}
    with output.progress(f"exporting {snapshot.name or snapshot.id}") as progress:
        if to == "-":
            if sys.stdout.isatty():
                raise UsageError("--output -: an archive is not written to a terminal")
            snapshots.export(snapshot.id, sys.stdout.buffer, progress=progress, **options)
            sys.stdout.buffer.flush()
            return
        path = absolute(to if to is not None else (snapshot.name or snapshot.id) + suffix)
        written = snapshots.export(snapshot.id, path, progress=progress, **options)
    _say_exported(snapshot, str(path), written, as_json=as_json)


def _compression(to: str | None, compress: str | None) -> Any:
    known = ("none", "gzip", "zstd")
    if compress is None:
        return _COMPRESSIONS.get(Path(to).suffix, "none") if to is not None else "none"
    if compress not in known:
        raise UsageError(f"--compress: {compress!r} is none of {', '.join(known)}")
    return compress


def _say_exported(snapshot: "Snapshot", path: str, written: int | None, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"id": snapshot.id, "path": path, "bytes": written})
    else:
        size = f" ({format_size(written)})" if written is not None else ""
        output.say(f"exported {snapshot.name or snapshot.id} to {path}{size}")


@command(app, "import")
def import_snapshot(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FILE", help="An archive, an exported folder, or - for stdin.")],
    *,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Instead of its own name.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="Instead of its own description.")
    ] = None,
    allow_path: Annotated[
        list[str] | None,
        typer.Option("--allow-path", metavar="DIR", help="It may name files in this folder; repeatable."),
    ] = None,
    max_ratio: Annotated[
        int | None,
        typer.Option("--max-ratio", metavar="N", min=1, help="How many bytes each compressed one may become."),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="How large its files may be in all.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Import an exported snapshot; how it is compressed is found out. Nothing in it is trusted."""
    options: dict[str, Any] = {"allow_paths": allow_path or [], "max_ratio": max_ratio, "max_bytes": max_size}
    from_stdin = source == "-"
    with output.progress(f"importing {'from stdin' if from_stdin else source}") as progress:
        snapshot = session.node.snapshots.import_(
            sys.stdin.buffer if from_stdin else absolute(source),
            name=name,
            description=description,
            progress=progress,
            **options,
        )
    if as_json:
        output.print_json(snapshot.to_dict())
    elif quiet:
        print(snapshot.id)
    else:
        output.say(f"imported {snapshot.name or 'a snapshot'} ({snapshot.id}), {format_size(snapshot.size_bytes)}")
