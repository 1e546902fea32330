"""Ledgers of nodes that never were: seeded, as large as wanted, byte for byte as the engine writes them.

A simulated node runs VMs of three hypervisors for some days: boots, stops, crashes (seen or not), restarts, snapshots,
clones, restores, hibernations, relabels, removals and reboots of the host, with intervals open at the end. Such a
ledger has no findings. With ``faults`` it has exactly the findings that are returned, each planted so that nothing
follows from it.

``python -m cocoon.testing.ledgers ledger.jsonl --entries 1000000 --faults 3`` does the same from a shell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from cocoon import InvalidArgument
from cocoon.testing.simulation import FAULTS, Fault, SimulatedNode

__all__ = ["FAULTS", "Fault", "Generated", "generate"]

_BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
_LINES_PER_FAULT = 40  # fewer, and some fault may find no VM in the state that it needs


@dataclass(frozen=True)
class Generated:
    """What was written. ``entries``: well-formed lines; ``faults`` in the order of their lines."""

    entries: int
    bytes: int
    first_ns: int
    last_ns: int
    faults: list[Fault]


def generate(
    dest: str | PathLike[str] | BinaryIO,
    entries: int = 100_000,
    *,
    seed: int = 0,
    begin: datetime = _BEGIN,
    days: float = 30,
    vms: int | None = None,
    faults: int = 0,
) -> Generated:
    """Writes a ledger of exactly ``entries`` well-formed lines over about ``days`` days.

    ``vms``: how many there are at a time. ``faults``: how many of each code (one ``torn-line``).
    The same arguments give the same bytes. Raises InvalidArgument.
    """
    if entries < 1:
        raise InvalidArgument(f"entries: {entries} is not positive")
    if faults < 0:
        raise InvalidArgument(f"faults: {faults} is negative; allowed is 0 or more")
    if faults and entries < len(FAULTS) * faults * _LINES_PER_FAULT:
        least = len(FAULTS) * faults * _LINES_PER_FAULT
        raise InvalidArgument(f"entries: {entries} are too few for {faults} faults of each kind; allowed is {least}")
    if days <= 0 or begin.tzinfo is None:
        raise InvalidArgument(f"days: {days} from {begin}: allowed is a positive number from a timezone-aware time")
    many = vms if vms is not None else min(2000, max(6, entries // 100))
    if many < 1:
        raise InvalidArgument(f"vms: {many} is not positive")
    with _opened(dest) as file:
        node = SimulatedNode(file, entries, seed=seed, begin=begin, days=days, vms=many, faults=faults)
        node.run()
    return Generated(entries, node.output.written_bytes, node.first, node.now + node.offset, node.output.faults)


@contextmanager
def _opened(dest: str | PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(dest, (str, PathLike)):
        with Path(dest).open("wb") as file:
            yield file
    else:
        yield dest


def _main() -> None:
    import argparse
    import json
    from dataclasses import asdict

    parser = argparse.ArgumentParser(prog="python -m cocoon.testing.ledgers", description=generate.__doc__)
    parser.add_argument("file", help="where the ledger goes")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=datetime.fromisoformat, default=_BEGIN, metavar="TIME", help="with its zone")
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--vms", type=int, help="how many there are at a time")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="plant N faults of each code")
    options = vars(parser.parse_args())
    try:
        done = generate(options.pop("file"), **options)
    except InvalidArgument as error:
        parser.error(str(error))
    print(json.dumps(asdict(done), indent=2))


if __name__ == "__main__":
    _main()
