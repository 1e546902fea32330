"""Sizes, durations, times and labels as people write and read them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cocoon.cli.errors import UsageError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = "KMGTPE"


def format_size(count: int) -> str:
    """512M, 1.5G, 100B: the largest binary unit that leaves at least 1, one decimal where it says something."""
    if abs(count) < 1024:
        return f"{count}B"
    power, value = 0, count / 1024
    # 1023.95 would round to "1024.0": that is 1 of the next unit.
    while abs(value) >= 1023.95 and power + 1 < len(_SIZE_UNITS):
        power, value = power + 1, value / 1024
    return f"{value:.1f}".removesuffix(".0") + _SIZE_UNITS[power]


def format_duration(seconds: float) -> str:
    """0.20s, 12.3s, 4m05s, 2h03m, 3d04h."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{second:02}s"
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minute:02}m"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02}h"


def format_local(moment: datetime | None, *, millis: bool = False) -> str:
    """The time here, with its zone; "-" for none."""
    if moment is None:
        return "-"
    local = moment.astimezone()
    fraction = f".{local.microsecond // 1000:03}" if millis else ""
    return f"{local:%Y-%m-%d %H:%M:%S}{fraction} {local:%Z}"


def format_utc(moment: datetime) -> str:
    """ISO 8601 in UTC, for JSON."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_duration(text: str, option: str) -> float:
    """Seconds of "30", "1.5s", "500ms", "2m", "1h", "1d"."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|ms|s|m|h|d)?", text.strip())
    if match is None:
        raise UsageError(f"{option}: {text!r} is not a duration such as 30, 1.5s, 500ms, 2m, 1h or 1d")
    return float(match[1]) * _SECONDS[match[2] or ""]


def parse_when(text: str, option: str) -> datetime:
    """A time: ISO 8601 (local unless it names a zone), a date, "now", or a duration ago ("90s", "2h", "1d")."""
    if text == "now":
        return datetime.now(UTC)
    if re.fullmatch(r"\d+(?:\.\d*)?\s*(ns|us|ms|s|m|h|d)", text):
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text, option))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option}: {text!r} is neither an ISO 8601 time such as 2026-03-01T12:00:00Z, nor a date, nor a duration "
            "ago such as 90s, 2h or 1d"
        ) from None
    return moment.astimezone(UTC)


def parse_labels(items: list[str], option: str = "--label") -> dict[str, str]:
    """{"k": "v"} of ["k=v"]."""
    labels: dict[str, str] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise UsageError(f"{option}: {item!r} is not KEY=VALUE")
        if key in labels:
            raise UsageError(f"{option}: {key!r} is given twice")
        labels[key] = value
    return labels


def parse_label_filter(items: list[str]) -> dict[str, str | None]:
    """{"k": "v"} of ["k=v"], {"k": None} of ["k"]: any value will do."""
    wanted: dict[str, str | None] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not key:
            raise UsageError(f"--label: {item!r} is neither KEY nor KEY=VALUE")
        wanted[key] = value if sign else None
    return wanted


def absolute(path: str | Path) -> Path:
    """The path from `/`, without looking at the disk: a link stays a link."""
    return Path(path).expanduser().absolute()
