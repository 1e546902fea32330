"""Fixtures that every test may use, and the check that a run leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import leftovers
from cocoon.guest import Guest, find_guest

# Set in the first process of a run and inherited by pytest-xdist's workers: all temp roots of one run share a folder.
RUN_FOLDER = "COCOON_TEST_RUN_DIR"


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with SIGINT ignored, nohup with SIGHUP: not so the children of tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "guest: boots a real guest")
    config.addinivalue_line("markers", "root: needs the rights of root")
    if not is_worker(config):
        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="cp-")


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last worker has ended: what is below the temp roots now was left by a test."""
    if is_worker(session.config):
        return
    left = leftovers.sweep(Path(os.environ.pop(RUN_FOLDER)))
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("left behind", red=True)
            for line in left:
                reporter.line(line)


@pytest.fixture
def tmp_root() -> Iterator[Path]:
    """A folder for one node, with a path short enough for UNIX sockets in it (`tmp_path` can be too long for them)."""
    folder = Path(tempfile.mkdtemp(dir=os.environ[RUN_FOLDER]))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def guest() -> Guest:
    """A Linux guest to boot under QEMU; the test is skipped where there is none."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 in PATH")
    found = find_guest()
    if found is None:
        pytest.skip("no guest: make it with `cocoon guest build`")
    return found


@pytest.fixture(scope="session")
def rounds() -> Callable[[int], int]:
    """`rounds(500)`: 500, or fewer (at least one) where COCOON_TEST_SCALE says so, as it does under a sanitizer."""
    scale = float(os.environ.get("COCOON_TEST_SCALE", "1"))
    return lambda full: max(1, round(full * scale))


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, "what is awaited", seconds=10)`: polls, and fails when the time is up."""
    return poll


def poll(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    nothing = threading.Event()
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        nothing.wait(0.005)


@pytest.fixture
def netns() -> Iterator[Path]:
    """The path of a network namespace that nobody else uses."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo up; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != "up\n":
        pytest.skip(f"a network namespace cannot be made: {holder.communicate()[1].strip()}")
    yield Path(f"/proc/{holder.pid}/ns/net")
    holder.communicate("\n", timeout=10)
