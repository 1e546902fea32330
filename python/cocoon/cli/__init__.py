"""The `cocoon` command. `main` is its entry point; app.py says which module holds which command."""

__all__ = ["main"]


def main() -> None:
    """Runs the command with the process's arguments, and exits with its code."""
    try:
        from cocoon.cli.app import build

        command = build()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command.main(prog_name="cocoon")
