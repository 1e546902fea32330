"""`cocoon reconcile`: ledger, records and processes, three ways."""

from typing import Annotated

import typer

from cocoon.cli import output
from cocoon.cli.app import command
from cocoon.cli.errors import FAILED
from cocoon.cli.ledger import short_id
from cocoon.cli.options import JsonOption
from cocoon.cli.output import Cell
from cocoon.cli.session import Session

app = typer.Typer(add_completion=False)

_LEDGER_DIFFERS = {"record-open-ledger-closed", "record-closed-ledger-open", "ledger-open-no-record"}
_NOT_MENDED = _LEDGER_DIFFERS | {"inconclusive", "failed"}


@command(app, "reconcile")
def reconcile(
    session: Session,
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put right what is not, through ordinary transitions of the ledger.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the ledger with the records and with the processes that live. Exits with 1 if they do not agree."""
    with output.working("looking at records, ledger and processes"):
        report = session.node.reconcile(fix=fix)
    if as_json:
        output.print_json({"ok": report.ok, "rows": report.rows})
    else:
        columns = ("KIND", "NAME", "ID", "STATUS", "RECORD", "LEDGER", "PID", "ACTION")
        rows = [
            (
                output.plain(row["kind"]),
                output.plain(row["name"]),
                short_id(row["id"]),
                Cell(row["status"], "green" if row["status"] == "ok" else "red"),
                output.plain(row["record_state"]),
                output.plain(row["ledger_state"]),
                str(row["pid"] or "-"),
                output.plain(row["action"]),
            )
            for row in report.rows
        ]
        output.print_table(columns, rows, right=("PID",))
        amiss = {row["status"].partition(":")[0] for row in report.rows} - {"ok", "busy"}
        if amiss - _NOT_MENDED and not fix:
            output.warn("not everything agrees; `cocoon reconcile --fix` puts right what can be")
        if amiss & _LEDGER_DIFFERS:
            output.warn("the ledger was cut, or others wrote to it, and is not edited; `cocoon ledger audit`")
    if not report.ok:
        raise typer.Exit(FAILED)
