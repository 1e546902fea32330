"""Where the root folder is, and what the configuration file says. Flags win over environment over file."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cocoon.cli.errors import UsageError
from cocoon.cli.units import absolute, parse_duration


@dataclass(frozen=True)
class Config:
    """What config.toml may say; the defaults are the engine's."""

    run_dir: Path | None = None
    log_dir: Path | None = None
    hypervisor: str = "qemu"
    socket_timeout: float | None = None
    stop_timeout: float | None = None
    terminate_grace: float | None = None
    binaries: Mapping[str, Path] = field(default_factory=dict)
    ledger_labels: tuple[str, ...] = ()
    ledger_rotate_bytes: int | str = 0

    def timeouts(self) -> dict[str, float]:
        """Those that are set, as `Backend` names them."""
        given = {name: getattr(self, name) for name in ("socket_timeout", "stop_timeout", "terminate_grace")}
        return {name: value for name, value in given.items() if value is not None}


def find_root(flag: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The root folder: `--root`, else COCOON_ROOT, else the user's (root's) state folder."""
    if flag is not None:
        if not flag:
            raise UsageError("--root: the empty path names no folder")
        return absolute(flag)
    if named := environment.get("COCOON_ROOT"):
        return absolute(named)
    if os.geteuid() == 0:
        return Path("/var/lib/cocoon")
    state = environment.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return base / "cocoon"


def load_config(flag: str | None, root: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of this root. A file that was named must be there; <root>/config.toml need not."""
    named = flag if flag is not None else environment.get("COCOON_CONFIG")
    path = absolute(named) if named else root / "config.toml"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if named:
            raise UsageError(f"configuration {path}: there is no such file") from None
        return _with_environment(Config(), environment)
    except OSError as error:
        # A root that may not be looked into is reported by whatever opens it, not as a configuration that is wrong.
        if not named and isinstance(error, (PermissionError, NotADirectoryError)):
            return _with_environment(Config(), environment)
        raise UsageError(f"configuration {path}: {error.strerror}") from None
    import tomllib  # 10 ms, and most nodes have no configuration

    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path}: {error}") from None
    return _with_environment(_parse(document, path), environment)


def _parse(document: dict[str, Any], path: Path) -> Config:
    # Every mistake of the file at once: nobody should have to run a command once per typing error.
    problems: list[str] = []
    found: dict[str, Any] = {}
    for key, value in _flat(document):
        reader = _READERS.get(key)
        if reader is None:
            problems.append(f"unknown key {key!r}")
            continue
        try:
            found[key.replace(".", "_")] = reader(key, value, path)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError(f"configuration {path}: {'; '.join(problems)} (known keys: {', '.join(sorted(_READERS))})")
    return Config(**found)


def _flat(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if key == "ledger" and isinstance(value, dict):
            yield from ((f"ledger.{name}", item) for name, item in value.items())
        else:
            yield key, value


def _path(name: str, value: Any, path: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: a path is expected, not {value!r}")
    # Relative to the file that says it, not to wherever the command happens to be run.
    return (path.parent / Path(value).expanduser()).absolute()


def _text(name: str, value: Any, _path: Path) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: a text is expected, not {value!r}")
    return value


def _seconds(name: str, value: Any, _path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f'{name}: seconds or a duration such as "30s" are expected, not {value!r}')
    seconds = parse_duration(value, name) if isinstance(value, str) else float(value)
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{name}: {value!r} is negative or has no end")
    return seconds


def _paths(name: str, value: Any, path: Path) -> dict[str, Path]:
    if not isinstance(value, dict):
        raise UsageError(f"{name}: a table is expected, such as [{name}]")
    return {key: _path(f"{name}.{key}", item, path) for key, item in value.items()}


def _texts(name: str, value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{name}: a list of texts is expected, not {value!r}")
    return tuple(_text(f"{name}[{i}]", item, path) for i, item in enumerate(value))


def _size(name: str, value: Any, _path: Path) -> int | str:
    # A text is read by the engine, which knows the units.
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise UsageError(f'{name}: bytes or a size such as "256M" are expected, not {value!r}')
    return value


_READERS: dict[str, Callable[[str, Any, Path], Any]] = {
    "run_dir": _path,
    "log_dir": _path,
    "hypervisor": _text,
    "socket_timeout": _seconds,
    "stop_timeout": _seconds,
    "terminate_grace": _seconds,
    "binaries": _paths,
    "ledger.labels": _texts,
    "ledger.rotate_bytes": _size,
}
KEYS = tuple(_READERS)


def _with_environment(config: Config, environment: Mapping[str, str]) -> Config:
    for name in ("run_dir", "log_dir", "hypervisor", "socket_timeout", "stop_timeout", "terminate_grace"):
        variable = f"COCOON_{name.upper()}"
        value = environment.get(variable)
        if value:
            # A relative path of the environment is relative to the working directory: "file" lies in it.
            config = replace(config, **{name: _READERS[name](variable, value, Path.cwd() / "environment")})
    return config
