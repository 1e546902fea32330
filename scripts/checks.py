"""Runs every check of the project, one step after the other; scripts/test sets up what it needs and calls this.

Each step's output is in build/logs/<step>.log; when the step fails, the end of it is shown, or what its failed tests
said. A failed step does not stop the others unless they need what it makes. The last line is
"N passed, N failed, N skipped": the tests of all configurations together, and one failure for each failed step that is
not a test suite.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leftovers import sweep
from results import Counts, read_junit

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "logs"
BIN = Path(sys.executable).parent
TAIL = 60  # lines that are shown of the log of a failed step, or of what each failed test said
SHOWN_FAILURES = 10

Words = Sequence[str | Path]


@dataclass
class Step:
    name: str
    run: Callable[[], Counts | None]  # None: not a test suite. Raises Failed.
    needs: tuple[str, ...] = ()
    result: str = "not run"
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)


class Failed(Exception):
    """A step failed; `counts` are those of its tests that ran, if it has tests."""

    def __init__(self, message: str, counts: Counts | None = None) -> None:
        super().__init__(message)
        self.counts = counts or Counts()


class Checks:
    def __init__(self, options: argparse.Namespace, temporary: Path) -> None:
        self.options = options
        self.temporary = temporary
        self.child: subprocess.Popen[bytes] | None = None
        self.steps = self._plan()

    # ------------------------------------------------------------------ what is run

    def _plan(self) -> list[Step]:
        options = self.options
        filtered: bool = options.k is not None
        steps: list[Step] = []

        def add(name: str, run: Callable[[], Counts | None], *needs: str) -> None:
            steps.append(Step(name, run, needs))

        def command(name: str, *words: str | Path) -> Callable[[], None]:
            return lambda: self.command(name, words)

        cpp, shell = cpp_files(), shell_files()
        if not filtered:
            add("clang-format", command("clang-format", BIN / "clang-format", "--dry-run", "-Werror", *cpp))
            add("ruff", command("ruff", BIN / "ruff", "check", "."))
            add("ruff-format", command("ruff-format", BIN / "ruff", "format", "--check", "."))
            add("mypy", command("mypy", BIN / "mypy"))
            add("codespell", command("codespell", BIN / "codespell"))
            add("shellcheck", command("shellcheck", BIN / "shellcheck", "-x", *shell))
        add("install", command("install", "bash", "-c", ". scripts/lib.sh; install_package"))
        if not filtered:
            add("stubs", command("stubs", "scripts/stubs", "--check"), "install")
        add("guest", command("guest", BIN / "cocoon", "guest", "build"), "install")
        add("build-dev", lambda: self.build("dev"))
        add("cpp-dev", lambda: self.ctest("dev"), "build-dev")
        add("python", lambda: self.pytest("python", {}), "install")
        if not filtered and not options.quick:
            databases = [BUILD / folder / "compile_commands.json" for folder in ("dev", "wheel")]
            tidy = command("clang-tidy", sys.executable, "scripts/tidy.py", *databases)
            add("clang-tidy", tidy, "install", "build-dev")
        if not options.quick:
            for preset in ("asan", "tsan"):
                add(f"build-{preset}", functools.partial(self.build, preset))
                add(f"cpp-{preset}", functools.partial(self.ctest, preset), f"build-{preset}")
        if options.long:
            add("python-asan", self.pytest_asan, "build-asan")
        return steps

    # ------------------------------------------------------------------ how

    def build(self, preset: str) -> None:
        configure: list[str | Path] = ["cmake", "--preset", preset]
        if preset == "asan" and self.options.long:
            configure += ["-DCOCOON_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
            configure += [f"-Dpybind11_DIR={output(BIN / 'pybind11-config', '--cmakedir')}"]
        self.command(f"configure-{preset}", configure)
        self.command(f"build-{preset}", ["cmake", "--build", "--preset", preset, "--", "-k", "0"])

    def ctest(self, preset: str) -> Counts:
        name = f"cpp-{preset}"
        jobs = len(os.sched_getaffinity(0))
        report = LOGS / f"{name}.xml"
        words: list[str | Path] = ["ctest", "--preset", preset, "-j", str(jobs), "--output-junit", report]
        if self.options.k is not None:
            words += ["-R", self.options.k, "--no-tests=ignore"]
        if preset == "tsan":
            words = [*without_randomization(), *words]
        return self.tests(name, words, report, {"COCOON_TEST_SCALE": self.scale(sanitized=preset != "dev")})

    def pytest(self, name: str, environment: Mapping[str, str]) -> Counts:
        report = LOGS / f"{name}.xml"
        words = [sys.executable, "-m", "pytest", "-n", "auto", "--dist=worksteal", f"--junitxml={report}"]
        if self.options.long:
            words += ["--timeout=7200"]  # a test that takes every kill point there is takes its time
        if self.options.k is not None:
            words += ["-k", self.options.k]
        # 5: the expression fits no test.
        allowed = (0, 5) if self.options.k is not None else (0,)
        scale = {"COCOON_TEST_SCALE": self.scale(sanitized=bool(environment))}
        return self.tests(name, words, report, scale | dict(environment), allowed)

    def pytest_asan(self) -> Counts:
        """The Python tests on a sanitized module. No leak check: it would report what the interpreter never frees."""
        site = BUILD / "asan" / "site"
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(ROOT / "python", site, ignore=shutil.ignore_patterns("__pycache__"))
        for made in (*(BUILD / "asan" / "cpp" / "bindings").glob("_core.*.so"), BUILD / "asan" / "bin" / "cocoon-shim"):
            shutil.copy(made, site / "cocoon")
        libraries = [output("g++", f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so")]
        environment = {
            "PYTHONPATH": str(site),
            "LD_PRELOAD": " ".join(str(Path(library).resolve()) for library in libraries),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        return self.pytest("python-asan", environment)

    def scale(self, *, sanitized: bool) -> str:
        """How much of their rounds long tests do: a sanitizer makes each of them up to ten times as long."""
        return "0.2" if sanitized and not self.options.long else "1"

    def tests(
        self, name: str, words: Words, report: Path, environment: Mapping[str, str], allowed: Sequence[int] = (0,)
    ) -> Counts:
        """Runs a test program in a temp folder of its own and sees that it leaves nothing behind."""
        temporary = self.temporary / name
        temporary.mkdir()
        report.unlink(missing_ok=True)
        try:
            long = {"COCOON_TEST_LONG": "1"} if self.options.long else {}
            self.command(name, words, {**environment, **long, "TMPDIR": str(temporary)}, allowed)
            message = ""
        except Failed as failure:
            message = str(failure)
        left = sweep(temporary)
        counts = read_junit(report) if report.exists() else Counts()
        if message and counts.failures:
            message = f"{message.splitlines()[0]}\n\n{described(counts.failures)}"
        if left:
            with (LOGS / f"{name}.log").open("a") as log:
                print("\nleft behind:", *left, sep="\n  ", file=log)
            message = message or "left behind: " + "; ".join(left)
            counts.failed += 1
        elif message and not counts.failed:
            counts.failed = 1  # it did not get as far as its report
        if message:
            raise Failed(message, counts)
        return counts

    def command(
        self, name: str, words: Words, environment: Mapping[str, str] | None = None, allowed: Sequence[int] = (0,)
    ) -> None:
        with (LOGS / f"{name}.log").open("wb") as log:
            # A session of its own: all of it can be killed, and Ctrl-C reaches only us.
            self.child = subprocess.Popen(
                words,
                cwd=ROOT,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = self.child.wait()
            except BaseException:
                self.kill()
                raise
        if status not in allowed:
            log_text = (LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise Failed(f"status {status}, see build/logs/{name}.log\n{tail(log_text)}")

    def kill(self) -> None:
        if self.child is not None and self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()

    # ------------------------------------------------------------------ running and reporting

    def run(self) -> None:
        for step in self.steps:
            print(f"{step.name:<14}", end="", flush=True)
            begin = time.monotonic()
            missing = [need.name for need in self.steps if need.name in step.needs and need.result != "ok"]
            if missing:
                step.result, step.counts = "not run", Counts()
                print(f"not run: {', '.join(missing)} failed", flush=True)
                continue
            try:
                step.result = "interrupted"
                step.counts = step.run() or Counts()
                step.result = "ok"
            except (Failed, OSError, subprocess.CalledProcessError) as failure:
                step.result = "FAILED"
                step.counts = failure.counts if isinstance(failure, Failed) else Counts()
                step.counts.failed = step.counts.failed or 1
                message = f"\n{failure}"
            finally:
                step.seconds = time.monotonic() - begin
            print(f"{step.result:<7}{step.seconds:8.1f} s  {step.counts.text()}", flush=True)
            if step.result == "FAILED":
                print(message, flush=True)

    def report(self) -> int:
        total = Counts()
        reasons: collections.Counter[str] = collections.Counter()
        print(f"\n{'step':<14}{'result':<12}{'seconds':>8}{'passed':>8}{'failed':>8}{'skipped':>8}")
        for step in self.steps:
            counts = step.counts
            numbers = f"{counts.passed:>8}{counts.failed:>8}{counts.skipped:>8}" if counts.total else ""
            print(f"{step.name:<14}{step.result:<12}{step.seconds:>8.1f}{numbers}")
            total += counts
            reasons.update({f"{step.name}: {reason}": number for reason, number in counts.reasons.items()})
        if reasons:
            print("\nskipped")
            for reason, number in sorted(reasons.items()):
                print(f"{number:>6}  {reason}")
        green = all(step.result == "ok" for step in self.steps)
        print(f"\n{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
        return 0 if green and not total.failed else 1


def output(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def tail(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines()[-TAIL:])


def described(failures: Mapping[str, str]) -> str:
    """What the failed tests said: the end of a log is mostly about those that passed."""
    shown = [f"{name}\n{tail(said)}" for name, said in list(failures.items())[:SHOWN_FAILURES]]
    more = [f"and {len(failures) - len(shown)} more"] if len(failures) > len(shown) else []
    return "\n\n".join([*shown, *more])


def cpp_files() -> list[Path]:
    return sorted(
        path.relative_to(ROOT)
        for folder in ("cpp", "tests/cpp", "bench")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".c", ".cpp", ".h"}
    )


def shell_files() -> list[Path]:
    candidates = [path for folder in ("scripts", ".ci", "bench") for path in (ROOT / folder).glob("*")]
    return sorted(
        path.relative_to(ROOT)
        for path in candidates
        if path.is_file() and (path.suffix == ".sh" or path.read_bytes().startswith(b"#!/usr/bin/env bash"))
    )


def without_randomization() -> list[str]:
    """The thread sanitizer of GCC 12 refuses some layouts of memory that kernels randomize to."""
    words = ["setarch", "--addr-no-randomize"]
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="no clang-tidy, no sanitizers")
    parser.add_argument("--long", action="store_true", help="Python tests on a sanitized module too; nothing shortened")
    parser.add_argument("-k", metavar="EXPR", help="only tests whose name contains EXPR, and no linters")
    options = parser.parse_args()
    if options.quick and options.long:
        parser.error("--quick and --long exclude each other")

    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Short, since the path of a UNIX socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ct-", ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o711)  # tests that turn into another user must still reach their own folders
        checks = Checks(options, Path(temporary))
        try:
            checks.run()
        except KeyboardInterrupt:
            sweep(Path(temporary))
            print("interrupted")
            checks.report()
            return 130
        return checks.report()


if __name__ == "__main__":
    sys.exit(main())
