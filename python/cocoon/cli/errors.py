"""Errors of the engine as exit codes, one line on stderr, and what to do next."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cocoon import CocoonError

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
REFUSED = 4
PARTIAL = 5
INTERRUPTED = 130


class UsageError(Exception):
    """The command line or the configuration asks for something that is not possible."""


class CommandError(Exception):
    """The command could not do its work, for a reason that is not an error of the engine's."""

    def __init__(self, message: str, *, code: int = FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def exit_code(error: "CocoonError") -> int:
    """The exit code of one failed operation."""
    import cocoon

    codes: tuple[tuple[type[CocoonError], int], ...] = (
        (cocoon.BulkError, PARTIAL),
        (cocoon.NotFound, NOT_FOUND),
        (cocoon.AmbiguousRef, NOT_FOUND),
        (cocoon.InvalidArgument, USAGE),
        (cocoon.AlreadyExists, REFUSED),
        (cocoon.InvalidState, REFUSED),
        (cocoon.Inconclusive, REFUSED),
    )
    for kind, code in codes:
        if isinstance(error, kind):
            return code
    return FAILED


def hint(error: "CocoonError", verb: str = "", ref: str = "") -> str:
    """What to do next, "" if we do not know. `verb` and `ref`: the operation that failed, as the command names it."""
    import cocoon

    if isinstance(error, cocoon.AmbiguousRef):
        return "give more characters, or the id: " + ", ".join(error.candidates)
    if isinstance(error, cocoon.NotFound):
        group = "snapshot" if str(error).startswith(("snapshot ", "remove snapshot ")) else "vm"
        return f"`cocoon {group} list` shows what there is"
    if isinstance(error, cocoon.AlreadyExists) and str(error).startswith("snapshot "):
        return "choose another name with --name, or remove the other one: `cocoon snapshot rm`"
    if isinstance(error, cocoon.AlreadyExists):
        return "choose another name, or remove the other one: `cocoon vm rm`"
    if isinstance(error, cocoon.InvalidState):
        return _state_hint(error.state, verb, ref)
    if isinstance(error, cocoon.Inconclusive):
        return "nothing was done; try again, and if it stays so, `cocoon doctor`"
    if isinstance(error, cocoon.VmmError) and " is not in PATH" in str(error):
        return "`cocoon doctor` checks the VMMs"
    if isinstance(error, cocoon.VmmError):
        return f"`cocoon vm logs {ref}` shows what the VMM said" if ref else "`cocoon doctor` checks the VMMs"
    if isinstance(error, cocoon.StoreError):
        return "`cocoon doctor` checks the root folder and the store"
    if isinstance(error, cocoon.LedgerError) and ", line " in str(error):
        return "`cocoon ledger audit` lists what is wrong with the ledger"
    return ""


def _state_hint(state: str, verb: str, ref: str) -> str:
    if verb == "rm" and state == "running":
        return f"`cocoon vm rm --force {ref}` stops it first"
    # Where it is running and yet refused, its VMM has died.
    if verb in {"pause", "resume", "console", "snapshot", "hibernate"} and state in {"created", "stopped", "running"}:
        return f"`cocoon vm start {ref}` first"
    if verb in {"start", "restore"} and state == "hibernated":
        return f"`cocoon vm wake {ref}`"
    return ""


def one_line(message: str) -> str:
    """The message on one line, and nothing in it that a terminal would obey."""
    lines = [line.strip() for line in message.splitlines()]
    return " | ".join(printable(line) for line in lines if line)


def printable(text: str) -> str:
    """Control characters as \\x1b: what a guest, a label or a file name says never drives the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
