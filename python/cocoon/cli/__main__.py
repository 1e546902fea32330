"""`python -m cocoon.cli` is the `cocoon` command."""

from cocoon.cli import main

if __name__ == "__main__":
    main()
