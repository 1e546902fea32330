"""`cocoon gc`: what dead processes left, and snapshots to give up."""

from typing import Annotated, Any

import typer

from cocoon.cli import output
from cocoon.cli.app import command
from cocoon.cli.errors import FAILED
from cocoon.cli.ledger import short_id
from cocoon.cli.options import JsonOption
from cocoon.cli.output import Cell
from cocoon.cli.session import Session
from cocoon.cli.units import format_size, parse_duration

app = typer.Typer(add_completion=False)


@command(app, "gc")
def gc(
    session: Session,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keep_last: Annotated[
        int | None,
        typer.Option("--keep-last", metavar="N", min=0, help="Remove all snapshots but the newest N."),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="TIME", help="Remove snapshots unused for longer, such as 30d."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Remove the longest unused snapshots until the others fit."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what dead processes left behind; snapshots only as the options say. Exits with 1 if something stays."""
    age = None if max_age is None else parse_duration(max_age, "--max-age")
    with output.working("looking for what nobody needs"):
        report = session.node.gc(dry_run=dry_run, keep_last=keep_last, max_age=age, max_bytes=max_size)
    if as_json:
        document = {"dry_run": dry_run, "removed": report.removed, "failed": report.failed, "kept": report.kept}
        output.print_json(document)
    else:
        _print(report.removed, report.failed, "would be removed" if dry_run else "removed")
    if report.failed:
        raise typer.Exit(FAILED)


def _print(removed: list[dict[str, Any]], failed: list[dict[str, Any]], done: str) -> None:
    if not removed and not failed:
        output.say("nothing to collect")
        return
    rows = [
        (
            row["module"],
            row["what"],
            short_id(row["id"]),
            format_size(row["bytes"]) if row["bytes"] else "-",
            Cell(done, "green"),
            row["reason"],
        )
        for row in removed
    ]
    rows += [(row["module"], row["what"], short_id(row["id"]), "-", Cell("failed", "red"), row["error"]) for row in failed]
    output.print_table(("MODULE", "WHAT", "ID", "SIZE", "", "WHY"), rows, right=("SIZE",))
