"""`cocoon doctor`: what could keep this host from running VMs, and what to do about it. The checks are in checks.py."""

import typer

from cocoon.cli import checks, output
from cocoon.cli.app import command
from cocoon.cli.errors import FAILED
from cocoon.cli.options import JsonOption
from cocoon.cli.output import Cell
from cocoon.cli.session import Session

app = typer.Typer(add_completion=False)

_STYLES = {checks.OK: "green", checks.WARN: "yellow", checks.FAIL: "bold red"}


@command(app, "doctor")
def doctor(session: Session, *, as_json: JsonOption = False) -> None:
    """Check this host and this node. Every line is ok, warn or fail, with what to do. Exits with 1 if any failed."""
    with output.working("checking"):
        results = list(checks.run(session))
    failed = any(result.status == checks.FAIL for result in results)
    if as_json:
        output.print_json({"ok": not failed, "checks": [result.to_dict() for result in results]})
    else:
        rows: list[tuple[Cell | str, ...]] = []
        for result in results:
            rows.append((Cell(result.status, _STYLES[result.status]), result.name, result.detail))
            if result.hint:
                rows.append(("", "", Cell(f"→ {result.hint}", "italic")))
        output.print_table(("", "CHECK", "FOUND"), rows)
    if failed:
        raise typer.Exit(FAILED)
