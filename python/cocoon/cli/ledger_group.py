"""`cocoon ledger`, all of it."""

from cocoon.cli import ledger_files, ledger_rotate
from cocoon.cli.ledger import app

__all__ = ["app", "ledger_files", "ledger_rotate"]
