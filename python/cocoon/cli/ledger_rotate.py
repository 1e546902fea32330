"""`cocoon ledger rotate`."""

from cocoon.cli import output
from cocoon.cli.app import command
from cocoon.cli.errors import CommandError
from cocoon.cli.ledger import app
from cocoon.cli.options import JsonOption
from cocoon.cli.session import Session


@command(app, "rotate")
def rotate(session: Session, *, as_json: JsonOption = False) -> None:
    """Pack what is in the node's ledger into a part of its own, and begin a new file."""
    if not (session.root / "db").is_dir():
        raise CommandError(f"{session.root} holds no node yet", hint="name the root folder: --root")
    part = session.node.rotate_ledger()
    if as_json:
        output.print_json({"part": None if part is None else str(part)})
    elif part is None:
        output.say("the ledger holds no entries that could be rotated")
    else:
        output.say(str(part))
