"""`cocoon vm console`: bytes both ways, and a terminal that is given back whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cli_harness import SECONDS, Cli, Terminal, terminal
from harness import listening

ATTACH = "import sys\nfrom pathlib import Path\nfrom cocoon.cli.console import attach\nattach(Path(sys.argv[1]), 'web')"


class Guest:
    """Stands for the VMM's side of a console: answers what it hears, in capitals, until it hears "bye"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard = b""
        self._server = listening(path)
        self._server.settimeout(SECONDS)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        # Whoever leaves does not wait for what we had to say.
        with self._server, self._server.accept()[0] as client, suppress(ConnectionError):
            client.settimeout(SECONDS)
            client.sendall(b"login: ")
            while block := client.recv(65536):
                self.heard += block
                client.sendall(block.upper())
                if self.heard.endswith(b"bye\n"):
                    return

    def finish(self) -> bytes:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.heard


@pytest.fixture
def guest(tmp_root: Path) -> Iterator[Guest]:
    folder = tmp_root / ("long" * 40)
    folder.mkdir()
    server = Guest(folder / "console.sock")
    yield server
    server.finish()


class Attached(Cli):
    def start(self, *args: str | Path, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", ATTACH, *map(str, args)], env=self.environment(), **options)  # type: ignore[call-overload, no-any-return]


def settings(screen: Terminal) -> list[object]:
    return termios.tcgetattr(screen.descriptor)


def test_what_is_typed_reaches_the_guest_and_its_answer_the_terminal(guest: Guest, tmp_root: Path) -> None:
    with terminal(Attached(tmp_root), guest.path) as screen:
        screen.read_until(b"login: ")
        assert settings(screen) != screen.before, "raw while attached"
        screen.type(b"hello\x03")
        screen.read_until(b"HELLO\x03")
        screen.type(b"last\x1dnever")
        assert screen.finish() == 0
        assert settings(screen) == screen.before
    assert guest.finish() == b"hello\x03last", "Ctrl-C is the guest's, and nothing after ^] is"


def test_the_terminal_is_given_back_when_the_guest_ends(guest: Guest, tmp_root: Path) -> None:
    with terminal(Attached(tmp_root), guest.path) as screen:
        screen.read_until(b"login: ")
        screen.type(b"bye\n")
        assert screen.finish() == 0
        assert b"the VMM closed the console" in screen.shown
        assert settings(screen) == screen.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_given_back_when_a_signal_ends_the_command(
    guest: Guest, tmp_root: Path, number: signal.Signals
) -> None:
    with terminal(Attached(tmp_root), guest.path) as screen:
        screen.read_until(b"login: ")
        screen.process.send_signal(number)
        assert screen.finish() == 128 + number
        assert settings(screen) == screen.before


def test_a_pipe_is_sent_to_its_end_and_the_answer_is_printed(guest: Guest, tmp_root: Path) -> None:
    text = b"".join(b"line %d\n" % i for i in range(20000)) + b"\x1d is no key here\n"
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, guest.path], input=text, capture_output=True, timeout=SECONDS, check=True
    )
    assert guest.finish() == text
    assert done.stdout == b"login: " + text.upper()
    assert done.stderr == b""


def test_a_signal_that_is_ignored_stays_so(guest: Guest) -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", sys.executable, "-c", ATTACH, guest.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        assert attached.stdout.read(7) == b"login: "
        attached.send_signal(signal.SIGHUP)
        attached.send_signal(signal.SIGINT)
        out, _ = attached.communicate(b"bye\n", timeout=SECONDS)
    assert (attached.returncode, out) == (0, b"BYE\n")


def test_a_console_that_is_not_there_is_one_line(tmp_root: Path) -> None:
    code = (
        "from pathlib import Path\nfrom cocoon.cli.app import run\nfrom cocoon.cli.console import attach\n"
        f"raise SystemExit(run(lambda: attach(Path({str(tmp_root / 'none.sock')!r}), 'web')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: console of web: {tmp_root / 'none.sock'}: No such file")
