"""The guest of the demo and the tests: Debian's cloud kernel with an initramfs of static busybox.

``TINY_GUEST`` is the path of another one: a kernel of a few KB, without an initramfs, that Firecracker and Cloud
Hypervisor boot in milliseconds, also where KVM is emulated and no Linux lives (x86-64 only: elsewhere it is not there).
docs/firecracker.md says what it does.

The kernel and busybox come out of their packages without being installed, so that no host gets a new kernel. What was
made is kept in a cache and found again at once, without a network, until a newer cocoon needs it to look different.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import importlib.resources
import json
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocoon._paths import TINY_GUEST
from cocoon.errors import CocoonError, StoreError

__all__ = [
    "TINY_GUEST",
    "Guest",
    "GuestBuildError",
    "GuestPackagesUnavailable",
    "build_guest",
    "default_cache_dir",
    "find_guest",
]

# Raised when the layout of the cache or of the initramfs changes; a change of guest_init.sh is seen by its hash.
FORMAT = 1
KERNEL_PACKAGE = "linux-image-cloud-amd64"  # of no content: it depends on the package with the image
BUSYBOX_PACKAGE = "busybox-static"
# A panic resets at once (the VMM then ends), also before init runs; the kernel's warnings and worse are shown.
CMDLINE = "console=ttyS0 panic=-1 loglevel=5"
# virtio_mmio serves the machine microvm, virtio_pci serves q35; button and evdev carry the ACPI power button.
MODULES = ("button", "evdev", "virtio_mmio", "virtio_pci", "virtio_blk")
APPLETS = (
    "acpid", "cat", "chmod", "dd", "dmesg", "echo", "insmod", "ls", "mkdir", "mount", "ps", "poweroff", "rm", "sh",
    "sleep", "stty", "sync", "uname",
)  # fmt: skip
TOOL_SECONDS = 600


class GuestBuildError(CocoonError):
    """The guest could not be made: what was tried, what the tool said, and what to do."""


class GuestPackagesUnavailable(GuestBuildError):
    """This host cannot get the two packages: not a Debian, no package lists, or no network."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel and an initramfs that boot on every machine of every hypervisor cocoon drives."""

    kernel: Path
    initrd: Path
    cmdline: str
    kernel_version: str


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/cocoon``, by default ``~/.cache/cocoon``; a relative value counts as unset, as XDG has it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "cocoon"


def find_guest(cache_dir: Path | None = None) -> Guest | None:
    """The guest in the cache, or None if there is none that this version of cocoon can use. Never downloads."""
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    try:
        found = json.loads((folder / "guest.json").read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["init"] != _digest(_init_script()):
            return None
        guest = Guest(
            kernel=folder / found["kernel"]["path"],
            initrd=folder / found["initrd"]["path"],
            cmdline=str(found["cmdline"]),
            kernel_version=str(found["kernel_version"]),
        )
        sizes = (int(found["kernel"]["size"]), int(found["initrd"]["size"]))
        if (guest.kernel.stat().st_size, guest.initrd.stat().st_size) != sizes:
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise _store_error("read the guest cache", folder, error) from error
    return guest


def build_guest(
    cache_dir: Path | None = None, *, force: bool = False, progress: Callable[[str], None] | None = None
) -> Guest:
    """The guest in the cache, made first if there is none (or ``force``). Needs neither root nor a virtual machine.

    Two builders at once: the second waits and takes what the first has made. ``progress`` is told of each step.
    Raises GuestBuildError if a package cannot be had, StoreError if the cache cannot be written.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    if not force and (found := find_guest(folder)):
        return found
    say = progress or (lambda _step: None)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "guest.lock"):
            if not force and (found := find_guest(folder)):
                return found
            _remove_leftovers(folder)
            with tempfile.TemporaryDirectory(prefix=".guest-", dir=folder) as work:
                _build(folder, Path(work), say)
    except OSError as error:
        if isinstance(error, CocoonError):
            raise
        raise _store_error("write the guest cache", folder, error) from error
    guest = find_guest(folder)
    if guest is None:
        raise GuestBuildError(f"build guest: {folder} was changed while the guest was being made; try again")
    return guest


def _build(folder: Path, work: Path, say: Callable[[str], None]) -> None:
    _check_host()
    image_package = _image_package()
    say(f"downloading {image_package} and {BUSYBOX_PACKAGE} (about 30 MB; they are not installed)")
    archives = _download(work, [image_package, BUSYBOX_PACKAGE])
    say("unpacking")
    packages = {}
    for name, archive in archives.items():
        packages[name] = _run(["dpkg-deb", "--field", str(archive), "Version"]).strip()
        _run(["dpkg-deb", "--extract", str(archive), str(work / name)])
    kernel = _only(work / image_package / "boot", "vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    say(f"making the initramfs for Linux {version}")
    initrd = work / "initrd.gz"
    initrd.write_bytes(_initramfs(work / image_package, version, _busybox(work / BUSYBOX_PACKAGE)))
    _publish(folder, kernel, initrd, version, packages)
    say(f"the guest is in {folder}")


def _publish(folder: Path, kernel: Path, initrd: Path, version: str, packages: dict[str, str]) -> None:
    """Moves the files to names made of their content, then names them in guest.json.

    A crash before the last step leaves the old guest in use. Files of an older guest stay: the configurations of VMs
    name them, and those must still start.
    """
    entries = {}
    for role, source, name in (("kernel", kernel, f"vmlinuz-{version}"), ("initrd", initrd, f"initrd-{version}.gz")):
        content = source.read_bytes()
        target = folder / f"guest-{_digest(content)[:12]}" / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _replace(content, target)
        entries[role] = {"path": str(target.relative_to(folder)), "size": len(content)}
    stamp: dict[str, Any] = {
        "format": FORMAT,
        "init": _digest(_init_script()),
        "cmdline": CMDLINE,
        "kernel_version": version,
        "packages": packages,
        **entries,
    }
    _replace((json.dumps(stamp, indent=2) + "\n").encode(), folder / "guest.json")


def _replace(content: bytes, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.new")  # the builders' lock makes this name ours
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _remove_leftovers(folder: Path) -> None:
    """What a killed builder left: its work folder. The lock says that it is nobody's now."""
    for leftover in folder.glob(".guest-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- packages -------------------------------------------------------------------------------------------------------


def _check_host() -> None:
    if platform.machine() != "x86_64":
        raise GuestPackagesUnavailable(f"build guest: this host is {platform.machine()}, the guest is for x86_64 only")
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise GuestPackagesUnavailable(
            f"build guest: {', '.join(missing)} not found: the guest is made from Debian packages, on Debian. "
            "Elsewhere, give your own kernel and initramfs (--kernel, --initrd)"
        )


def _image_package() -> str:
    """The package with the image that the meta package depends on today."""
    shown = _apt(["apt-cache", "show", "--no-all-versions", KERNEL_PACKAGE])
    depends = re.search(r"^Depends:.*?\b(linux-image-\d\S*?-cloud-amd64)\b", shown, re.MULTILINE)
    if depends is None:
        raise GuestPackagesUnavailable(f"build guest: apt knows no {KERNEL_PACKAGE} that names an image. {_ADVICE}")
    return depends.group(1)


def _download(work: Path, packages: list[str]) -> dict[str, Path]:
    command = ["apt-get", "--quiet", "--quiet", "download", *packages]
    if os.geteuid() == 0:  # apt's own unprivileged user cannot write to our private folder, and apt would warn of it
        command[1:1] = ["--option", "APT::Sandbox::User=root"]
    _apt(command, folder=work)
    return {name: _only(work, f"{name}_*.deb") for name in packages}


_ADVICE = (
    "If the package lists are missing or old, run `apt-get update` as root; "
    "if there is no network, build the guest where there is one and copy the cache folder"
)


def _apt(command: list[str], folder: Path | None = None) -> str:
    try:
        return _run(command, folder)
    except GuestBuildError as error:
        raise GuestPackagesUnavailable(f"{error.message}. {_ADVICE}") from error


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestBuildError(f"build guest: `{' '.join(command)}` did not end within {TOOL_SECONDS} s") from error
    if done.returncode != 0:
        said = "; ".join(line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip())
        raise GuestBuildError(
            f"build guest: `{' '.join(command)}` ended with status {done.returncode}: {said or 'it said nothing'}"
        )
    return done.stdout


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise GuestBuildError(f"build guest: expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def _busybox(root: Path) -> bytes:
    for path in ("bin/busybox", "usr/bin/busybox"):  # before and after Debian's merge of /bin into /usr/bin
        if (root / path).is_file():
            return (root / path).read_bytes()
    raise GuestBuildError(f"build guest: no busybox in the package {BUSYBOX_PACKAGE}")


# --- kernel modules -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _ModuleSet:
    """The modules of one kernel package, and those that were asked for in an order that insmod can follow."""

    root: Path
    ordered: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, wanted_by: str = "the guest") -> None:
        if name in self.ordered:
            return
        content = self._read(name, wanted_by)
        if content is None:
            return
        for dependency in _dependencies(content):
            self.add(dependency, name)
        self.ordered[name] = content

    def _read(self, name: str, wanted_by: str) -> bytes | None:
        """None: the module is part of the kernel itself."""
        pattern = re.sub("[-_]", "[-_]", name)  # a module's name has '_' where its file may have '-'
        for path in sorted(self.root.glob(f"kernel/**/{pattern}.ko*")):
            if path.suffix == ".ko":
                return path.read_bytes()
            if path.suffix == ".xz":
                return lzma.decompress(path.read_bytes())
            raise GuestBuildError(f"build guest: kernel module {path.name}: this compression is not known")
        builtin = (self.root / "modules.builtin").read_text(encoding="utf-8")
        if re.search(rf"/{pattern}\.ko$", builtin, re.MULTILINE):
            return None
        raise GuestBuildError(f"build guest: the kernel package has no module {name}, which {wanted_by} needs")


def _dependencies(module: bytes) -> list[str]:
    """From the module's own .modinfo section: the package has no modules.dep, depmod makes it on installation."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.decode() for name in found.group(1).split(b",") if name] if found else []


# --- initramfs ------------------------------------------------------------------------------------------------------


def _initramfs(package: Path, version: str, busybox: bytes) -> bytes:
    modules_root = next(
        (root for top in ("lib", "usr/lib") if (root := package / top / "modules" / version).is_dir()), None
    )
    if modules_root is None:
        raise GuestBuildError(f"build guest: the kernel package has no modules of Linux {version}")
    modules = _ModuleSet(modules_root)
    for name in MODULES:
        modules.add(name)

    archive = _Cpio()
    for folder in ("bin", "dev", "etc", "lib", "lib/modules", "proc", "run", "sys"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))  # the kernel opens it before init can mount /dev
    archive.add("init", stat.S_IFREG | 0o755, _init_script())
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox)
    for applet in APPLETS:
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for name, content in modules.ordered.items():
        archive.add(f"lib/modules/{name}.ko", stat.S_IFREG | 0o644, content)
    archive.add("etc/modules", stat.S_IFREG | 0o644, "".join(f"{name}.ko\n" for name in modules.ordered).encode())
    return gzip.compress(archive.finish(), mtime=0)


class _Cpio:
    """Writes the "newc" format, see cpio(5): the same bytes for the same content (no times, owner root)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % value for value in fields)
        self._parts.append(_padded(header + encoded) + _padded(content))

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


# --- small things ---------------------------------------------------------------------------------------------------


def _init_script() -> bytes:
    return importlib.resources.files("cocoon").joinpath("guest_init.sh").read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _store_error(what: str, path: Path, error: OSError) -> StoreError:
    return StoreError(f"{what} {path}: {error.strerror or error}", path=str(path), code=error.errno or 0)
