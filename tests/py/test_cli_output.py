"""Tables, plain in a pipe and coloured on a terminal."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cocoon.cli import output
from cocoon.cli.output import Cell


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROWS = [("web-1", Cell("running", "green"), "512M"), ("a-longer-name", Cell("error", "bold red"), "1G")]


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_pipe_gets_aligned_columns_without_escapes(colours: None) -> None:
    pipe = io.StringIO()
    output.print_table(("NAME", "STATE", "MEMORY"), ROWS, right=("MEMORY",), file=pipe)
    assert pipe.getvalue().splitlines() == [
        "NAME           STATE    MEMORY",
        "web-1          running    512M",
        "a-longer-name  error        1G",
    ]


def test_no_rows_leave_the_heading(colours: None) -> None:
    pipe = io.StringIO()
    output.print_table(("NAME", "STATE"), [], file=pipe)
    assert pipe.getvalue() == "NAME  STATE\n"


def test_a_terminal_gets_the_same_table_in_colour(colours: None) -> None:
    screen = FakeTerminal()
    output.print_table(("NAME", "STATE", "MEMORY"), ROWS, right=("MEMORY",), file=screen)
    assert "\x1b[32m" in screen.getvalue(), "green"
    for text in ("NAME", "web-1", "running", "a-longer-name"):
        assert text in screen.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_colours_gets_none(
    colours: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    screen = FakeTerminal()
    output.print_table(("NAME", "STATE", "MEMORY"), ROWS, file=screen)
    assert "\x1b" not in screen.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, FakeTerminal])
def test_what_a_label_says_never_drives_the_terminal(colours: None, stream: type[io.StringIO]) -> None:
    file = stream()
    output.print_table(("LABEL",), [("\x1b]0;title\x07",), (Cell("[red]\x1b[2J", "green"),)], file=file)
    text = file.getvalue()
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "[red]" in text, "rich's markup is text like any other"


def test_json_is_one_document_with_utc_times(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"at": datetime(2026, 3, 1, 12, tzinfo=UTC), "path": Path("/x"), "text": "ä"})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-03-01T12:00:00Z", "path": "/x", "text": "ä"}
    with pytest.raises(TypeError, match="set"):
        output.print_json({1})


def test_errors_go_to_stderr_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.fail("start web: it failed\nbadly", "try again", ref="web")
    output.fail("no such thing", ref="ref-1")
    output.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: start web: it failed | badly",
        "hint: try again",
        "error: ref-1: no such thing",
        "warning: careful",
    ]
