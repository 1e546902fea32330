"""The checks of `cocoon doctor`. Each looks at one thing, changes nothing, and says what to do.

A check is a function from the session to results; an OSError that it raises fails it.
To add one: write it and put it into `_CHECKS`.
"""

import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cocoon.cli.errors import one_line
from cocoon.cli.session import Session
from cocoon.cli.units import format_size

OK = "ok"
WARN = "warn"
FAIL = "fail"

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h
_CLONE_NEWNET = 0x40000000  # sched.h
_WARN_FREE = 2 << 30
_FAIL_FREE = 64 << 20
_WARN_FILES = 1024
# Before this, the clock was never set: every timestamp in the ledger would be wrong.
_EARLIEST = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Result:
    """One line of the doctor's."""

    name: str
    status: str
    detail: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON; the keys are stable."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "hint": self.hint}


@dataclass(frozen=True)
class Vmm:
    """A hypervisor's program, and how to get it."""

    hypervisor: str
    program: str
    version: tuple[str, ...]
    install: str


VMMS = (
    Vmm("qemu", "qemu-system-x86_64", ("--version",), "apt-get install qemu-system-x86"),
    Vmm(
        "cloud-hypervisor",
        "cloud-hypervisor",
        ("--version",),
        "51 or newer from github.com/cloud-hypervisor/cloud-hypervisor/releases, into PATH",
    ),
    Vmm(
        "firecracker",
        "firecracker",
        ("--version",),
        "1.12 or newer from github.com/firecracker-microvm/firecracker/releases, into PATH",
    ),
)


def run(session: Session) -> Iterator[Result]:
    """All checks, in order. One that cannot be made is a failed one, not the end."""
    for check in _CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check(session)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            yield Result(name, FAIL, one_line(f"{where}{error.strerror or error}"))


def _versions(_session: Session) -> Iterator[Result]:
    import platform

    from cocoon import __version__

    yield Result("cocoon", OK, f"{__version__}, Python {platform.python_version()}")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.machine() == "x86_64":
        yield Result("host", OK, system)
    else:
        yield Result("host", WARN, system, "only x86_64 hosts are tested")


def _kvm(_session: Session) -> Iterator[Result]:
    from cocoon._core import kvm_status

    usable, _, reason = kvm_status()
    if usable:
        yield Result("KVM", OK, reason or "runs guests")
    else:
        hint = "VMs run under QEMU's emulation (TCG), several times slower"
        if Path("/dev/kvm").exists() and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            hint += "; to use KVM: add yourself to the group of /dev/kvm"
        yield Result("KVM", WARN, one_line(reason), hint)


def _vmms(session: Session) -> Iterator[Result]:
    found = {vmm: find_program(session, vmm) for vmm in VMMS}
    for vmm, path in found.items():
        if path is None:
            # One hypervisor that is not installed is nothing bad, as long as there is another.
            status = WARN if any(found.values()) else FAIL
            configured = session.config.binaries.get(vmm.hypervisor)
            where = f"{configured}, which the configuration names, is no program" if configured else "not in PATH"
            yield Result(vmm.hypervisor, status, f"{vmm.program}: {where}", vmm.install)
            continue
        version = program_version(path, vmm)
        if version:
            yield Result(vmm.hypervisor, OK, f"{path}, {version}")
        else:
            yield Result(vmm.hypervisor, FAIL, f"{path} does not say its version", f"install it again: {vmm.install}")


def find_program(session: Session, vmm: Vmm) -> Path | None:
    """The program of a hypervisor: the configured one, else the one in PATH."""
    configured = session.config.binaries.get(vmm.hypervisor)
    found = shutil.which(configured or vmm.program)
    return None if found is None else Path(found)


def program_version(path: Path, vmm: Vmm) -> str:
    """The first line that the program says of its version; "" if it cannot."""
    try:
        answer = subprocess.run(
            [path, *vmm.version], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return one_line(answer.stdout.partition("\n")[0]) if answer.returncode == 0 else ""


def _root_folder(session: Session) -> Iterator[Result]:
    root = session.root
    name = "root folder"
    try:
        status = root.stat()
    except FileNotFoundError:
        parent = existing_parent(root)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Result(name, OK, f"{root} is not there yet; the first command makes it")
        else:
            yield Result(name, FAIL, f"{root} is not there, and {parent} may not be written", "choose another: --root")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Result(name, FAIL, f"{root} is no folder", "choose another: --root")
        return
    mode = stat.S_IMODE(status.st_mode)
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield Result(name, FAIL, f"{root} may not be written by user {os.geteuid()}", "choose another: --root")
    elif status.st_uid != os.geteuid():
        yield Result(name, WARN, f"{root} belongs to user {status.st_uid}, not to {os.geteuid()}", "run as its owner")
    elif mode & 0o077:
        yield Result(name, WARN, f"{root} has mode {mode:04o}: others may look into it", f"chmod 700 {root}")
    else:
        yield Result(name, OK, f"{root}, mode {mode:04o}")


def _disk(session: Session) -> Iterator[Result]:
    place = existing_parent(session.root)
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    detail = f"{format_size(free)} free of {format_size(usage.f_blocks * usage.f_frsize)}"
    if free < _FAIL_FREE:
        yield Result("disk", FAIL, detail, f"make room on the file system of {place}")
    elif free < _WARN_FREE:
        yield Result("disk", WARN, detail, f"make room on the file system of {place}")
    else:
        yield Result("disk", OK, detail)


def _reflink(session: Session) -> Iterator[Result]:
    place = existing_parent(session.root)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Result("reflink", WARN, f"cannot be tried: {place} may not be written")
        return
    # Files without a name: nothing can be left behind.
    with tempfile.TemporaryFile(dir=place) as source, tempfile.TemporaryFile(dir=place) as copy:
        source.write(b"\0" * 4096)
        source.flush()
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
        except OSError as error:
            hint = "disks are copied in full; a root on XFS or Btrfs makes copies instant and free"
            yield Result("reflink", WARN, f"not on this file system ({error.strerror})", hint)
            return
    yield Result("reflink", OK, "copies of disks share their blocks")


def _clock(_session: Session) -> Iterator[Result]:
    boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = datetime.now(UTC)
    if now < _EARLIEST:
        yield Result("clock", FAIL, f"the wall clock says {now:%Y-%m-%d %H:%M:%S} UTC", "set it, such as by NTP")
    else:
        yield Result("clock", OK, f"{now:%Y-%m-%d %H:%M:%S} UTC, up {boottime / 3600:.1f} h")


def _open_files(_session: Session) -> Iterator[Result]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _WARN_FILES:
        yield Result("open files", WARN, detail, f"ulimit -n {_WARN_FILES}")
    else:
        yield Result("open files", OK, detail)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _namespaces(_session: Session) -> Iterator[Result]:
    error = _try_network_namespace()
    if error:
        hint = "needed only for VMs with a network namespace; run as root or with CAP_SYS_ADMIN"
        yield Result("network namespaces", WARN, error, hint)
    else:
        yield Result("network namespaces", OK, "can be made and entered")


def _try_network_namespace() -> str:
    # In a process of its own, which is then gone with its namespace. What went wrong, or "".
    attempt = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"if libc.unshare({_CLONE_NEWNET}): sys.exit(os.strerror(ctypes.get_errno()))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", attempt], capture_output=True, text=True, check=False)
    return one_line(done.stderr) if done.returncode else ""


def _node(session: Session) -> Iterator[Result]:
    from cocoon import CocoonError

    if not (session.root / "db").is_dir():
        yield Result("store", OK, "nothing there yet")
        return
    try:
        vms = session.node.vms()
    except CocoonError as error:
        hint = "its folder must be readable and writable, and its disk alive"
        yield Result("store", FAIL, one_line(str(error)), hint)
        return
    yield Result("store", OK, f"node {session.node.id}, {len(vms)} VM" + ("" if len(vms) == 1 else "s"))
    yield from _ledger(session)
    try:
        agrees = session.node.reconcile(fix=False)
    except CocoonError as error:
        yield Result("records", WARN, one_line(str(error)), "`cocoon reconcile`")
        return
    if agrees.ok:
        yield Result("records", OK, "records, ledger and processes agree")
    else:
        odd = sum(1 for row in agrees.rows if row["status"] != "ok")
        yield Result(
            "records",
            WARN,
            f"{odd} of {len(agrees.rows)} do not agree with their process or the ledger",
            "`cocoon reconcile` shows them, `cocoon reconcile --fix` puts them right",
        )


def _ledger(session: Session) -> Iterator[Result]:
    from cocoon import CocoonError, FileRecorder

    recorder = session.node.recorder
    if isinstance(recorder, FileRecorder):
        yield _ledger_file(Path(recorder.path))
    pending = session.node.pending
    if pending:
        yield Result(
            "pending",
            WARN,
            f"{pending} committed but not yet in the ledger: kept until they can be written",
            "make the ledger writable; any command then writes them",
        )
    else:
        yield Result("pending", OK, "all that was committed is in the ledger")
    try:
        report = session.node.ledger.audit()
    except CocoonError as error:
        yield Result("audit", FAIL, one_line(str(error)))
        return
    if report.ok:
        yield Result("audit", OK, f"{report.entries} entries, nothing found")
    else:
        first = report.findings[0]
        yield Result(
            "audit",
            FAIL,
            f"{len(report.findings)} findings; the first: {first.code}, {first.message}",
            "`cocoon ledger audit` lists them",
        )


def _ledger_file(path: Path) -> Result:
    # Opened as the recorder opens it, but never made: a folder where a file should be, or a file system that is
    # read-only, shows only so.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    except FileNotFoundError:
        parent = existing_parent(path)
        if os.access(parent, os.W_OK | os.X_OK):
            return Result("ledger", OK, f"{path} is not there yet; the first entry makes it")
        return Result("ledger", FAIL, f"{path} is not there, and {parent} may not be written", f"chmod u+rwx {parent}")
    except OSError as error:
        hint = f"move {path} away" if path.is_dir() else f"make {path} writable; entries are kept until then"
        return Result("ledger", FAIL, f"{path}: {error.strerror}", hint)
    return Result("ledger", OK, f"{path}, {format_size(path.stat().st_size)}")


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


_CHECKS: tuple[Callable[[Session], Iterator[Result]], ...] = (
    _versions,
    _kvm,
    _vmms,
    _root_folder,
    _disk,
    _reflink,
    _clock,
    _open_files,
    _namespaces,
    _node,
)
