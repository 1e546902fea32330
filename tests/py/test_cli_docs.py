"""docs/cli.md and the command know of each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocoon.cli import app, config

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
# Said once for all commands.
EVERYWHERE = {"--help", "--json", "--quiet", "-q", "--root", "--config", "--show-completion"}


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        found = group.get_command(None, name)
        if hasattr(found, "list_commands"):
            yield from commands(found, f"{path} {name}")
        else:
            yield f"{path} {name}", found


COMMANDS = dict(commands(app.build(), "cocoon"))


@pytest.mark.parametrize("path", COMMANDS)
def test_each_command_and_each_option_is_documented(path: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    name = path.rpartition(" ")[2]
    assert path in text or f"`{name}`" in text, path
    for param in COMMANDS[path].params:
        for option in param.opts:
            if option.startswith("-") and option not in EVERYWHERE:
                assert option in text, f"{path} {option}"


@pytest.mark.parametrize("path", COMMANDS)
def test_each_command_says_what_it_does(path: str) -> None:
    found = COMMANDS[path]
    assert found.help
    assert found.help[0].isupper()
    for param in found.params:
        assert param.help, f"{path}: {param.name}"


def test_each_key_of_the_configuration_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for key in config.KEYS:
        assert f"\n{key.rpartition('.')[2]} = " in text or f"[{key}]" in text, key
