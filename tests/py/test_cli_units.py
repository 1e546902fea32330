"""What people write and read: sizes, durations, times, labels, disks, the configuration file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cocoon import Disk, InvalidArgument
from cocoon.cli import config, errors, units
from cocoon.cli.errors import UsageError
from cocoon.cli.vm_verbs import parse_disk


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1K"),
        (512 << 20, "512M"),
        (1 << 30, "1G"),
        (3 << 29, "1.5G"),
        ((1 << 30) - 1, "1G"),
        ((1 << 20) - 1, "1M"),
        (10 << 30, "10G"),
        (5 << 60, "5E"),
        (2000 << 60, "2000E"),
    ],
)
def test_sizes_have_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert units.format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00s"),
        (1.234, "1.23s"),
        (12.34, "12.3s"),
        (59.97, "1m00s"),
        (65.0, "1m05s"),
        (3599.6, "1h00m"),
        (7383.0, "2h03m"),
        (200000.0, "2d07h"),
        (-1.5, "-1.50s"),
    ],
)
def test_durations_never_say_sixty_seconds(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("1d", 86400.0), (".5", 0.5)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert units.parse_duration(text, "--timeout") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "1 2", "1e3", "inf", "nan", "1,5"])
def test_what_is_no_duration_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        units.parse_duration(text, "--timeout")


def test_times_are_absolute_local_or_ago() -> None:
    assert units.parse_when("2026-03-01T12:00:00Z", "--since") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert units.parse_when("2026-03-01T12:00:00+02:00", "--since") == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert units.parse_when("2026-03-01", "--since") == datetime(2026, 3, 1).astimezone()
    when = units.parse_when("2h", "--since")
    ago = datetime.now(UTC) - when
    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=1)
    with pytest.raises(UsageError, match="--since: 'yesterday'"):
        units.parse_when("yesterday", "--since")


def test_times_name_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    assert units.format_utc(moment) == "2026-03-01T12:00:00.999999Z"
    local = units.format_local(moment, millis=True)
    assert local == f"{moment.astimezone():%Y-%m-%d %H:%M:%S}.999 {moment.astimezone():%Z}"
    assert units.format_local(None) == "-"


def test_labels() -> None:
    assert units.parse_labels(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="--label"):
            units.parse_labels(wrong)
    assert units.parse_label_filter(["a", "b=1"]) == {"a": None, "b": "1"}


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_disk("data.img") == Disk(tmp_path / "data.img")
    full = parse_disk("/d/base.qcow2,ro,format=qcow2,role=layer,serial=abc")
    assert full == Disk("/d/base.qcow2", readonly=True, format="qcow2", role="layer", serial="abc")
    with pytest.raises(UsageError, match="a path with a comma cannot be given"):
        parse_disk("/d/a,b.img")
    for wrong in ("", ",ro", "/d/x,format", "/d/x,format=raw,format=raw", "/d/x,size=1", "/d/x,ro=1"):
        with pytest.raises(UsageError, match="--disk"):
            parse_disk(wrong)
    with pytest.raises(InvalidArgument):
        parse_disk("/d/x,format=vmdk")


# ------------------------------------------------------------------ the root folder and the configuration


def test_the_root_is_the_flag_then_the_environment_then_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.find_root("/flag", {"COCOON_ROOT": "/env"}) == Path("/flag")
    assert config.find_root("flag", {}) == Path.cwd() / "flag"
    assert config.find_root(None, {"COCOON_ROOT": "/env"}) == Path("/env")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert config.find_root(None, {"XDG_STATE_HOME": "/state"}) == Path("/state/cocoon")
    assert config.find_root(None, {"XDG_STATE_HOME": "relative"}) == Path("~/.local/state/cocoon").expanduser()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.find_root(None, {"XDG_STATE_HOME": "/state"}) == Path("/var/lib/cocoon")
    with pytest.raises(UsageError):
        config.find_root("", {})


def test_the_configuration_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        """
        run_dir = "run"
        log_dir = "/var/log/cocoon"
        stop_timeout = "1m"
        socket_timeout = 7
        [binaries]
        qemu = "/opt/qemu"
        [ledger]
        labels = ["tenant", "team"]
        rotate_bytes = "256M"
        """
    )
    read = config.load_config(None, tmp_path, {})
    assert read == config.Config(
        run_dir=tmp_path / "run",
        log_dir=Path("/var/log/cocoon"),
        stop_timeout=60.0,
        socket_timeout=7.0,
        binaries={"qemu": Path("/opt/qemu")},
        ledger_labels=("tenant", "team"),
        ledger_rotate_bytes="256M",
    )
    assert read.timeouts() == {"stop_timeout": 60.0, "socket_timeout": 7.0}
    over = config.load_config(None, tmp_path, {"COCOON_STOP_TIMEOUT": "5s", "COCOON_LOG_DIR": "/elsewhere"})
    assert (over.stop_timeout, over.log_dir, over.run_dir) == (5.0, Path("/elsewhere"), tmp_path / "run")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    assert config.load_config(None, tmp_path, {}) == config.Config()
    for flag, environment in (
        (str(tmp_path / "none.toml"), {}),
        (None, {"COCOON_CONFIG": str(tmp_path / "none.toml")}),
    ):
        with pytest.raises(UsageError, match=r"none\.toml: there is no such file"):
            config.load_config(flag, tmp_path, environment)


def test_a_wrong_configuration_names_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'rundir = "x"\nstop_timeout = true\n[ledger]\nlabel = []\nlabels = "tenant"\n[binaries]\nqemu = 1\n'
    )
    with pytest.raises(UsageError) as caught:
        config.load_config(str(path), tmp_path, {})
    said = str(caught.value)
    assert str(path) in said
    for mistake in ("'rundir'", "stop_timeout", "'ledger.label'", "ledger.labels", "binaries.qemu"):
        assert mistake in said


@pytest.mark.parametrize(
    "text",
    ["a = ", "\xff", "ledger = 1", "binaries = []", "stop_timeout = -1", "run_dir = ''", "ledger.rotate_bytes = true",
     "ledger.rotate_bytes = ''", "ledger.rotate_bytes = []"],
)  # fmt: skip
def test_a_file_that_cannot_be_understood_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"c\.toml"):
        config.load_config(str(path), tmp_path, {})


# ------------------------------------------------------------------ errors


def test_messages_are_one_line_that_no_terminal_obeys() -> None:
    assert errors.one_line("first\n  second\r\n\nthird\n") == "first | second | third"
    assert errors.one_line("a\x1b[31mred\x07") == "a\\x1b[31mred\\x07"
    assert errors.printable("umlaut ä, dash —") == "umlaut ä, dash —"
