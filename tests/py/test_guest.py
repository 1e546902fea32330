"""The demo and test guest: how it is made, from packages made here; and that the real one boots on both machines."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocoon._sockets import connect
from cocoon.errors import StoreError
from cocoon.guest import Guest, GuestBuildError, GuestPackagesUnavailable, build_guest, default_cache_dir, find_guest

VERSION = "6.1.0-99-cloud-amd64"
IMAGE = f"linux-image-{VERSION}"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


# --- how it is made: a small apt of our own, whose packages we know -------------------------------------------------


class Packages:
    """Stands for the archive: `apt-get download` copies our packages and writes down that it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel_tree = root / "kernel"
        self.modules = self.kernel_tree / "lib/modules" / VERSION
        self.bin = root / "bin"
        (root / "pool").mkdir(parents=True)
        self.bin.mkdir()
        self._script("apt-cache", f'echo "Package: $4"; echo "Depends: linux-base, {IMAGE} (= 1), kmod"')
        self._script("apt-get", f"echo asked >>{root}/asked\ncp {root}/pool/*.deb .")

    def _script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    def fail(self, text: str) -> None:
        self._script("apt-get", f"echo '{text}' >&2\nexit 100")

    def asked(self) -> int:
        path = self.root / "asked"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0

    def module(self, path: str, depends: str = "") -> None:
        content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        target = self.modules / "kernel" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.compress(content) if path.endswith(".xz") else content)

    def publish(self) -> None:
        boot = self.kernel_tree / "boot"
        boot.mkdir(parents=True, exist_ok=True)
        (boot / f"vmlinuz-{VERSION}").write_bytes(b"kernel image")
        busybox = self.root / "busybox"
        (busybox / "bin").mkdir(parents=True, exist_ok=True)
        (busybox / "bin/busybox").write_bytes(b"busybox program")
        for name, tree in ((IMAGE, self.kernel_tree), ("busybox-static", busybox)):
            control = tree / "DEBIAN/control"
            control.parent.mkdir(exist_ok=True)
            control.write_text(
                f"Package: {name}\nVersion: 1:2-3\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\n"
                "Description: for a test\n",
                encoding="utf-8",
            )
            archive = self.root / f"pool/{name}_1%3a2-3_amd64.deb"
            command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(archive)]
            subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    made = Packages(tmp_path / "archive")
    made.module("drivers/acpi/button.ko")
    made.module("drivers/virtio/virtio.ko", "virtio_ring")
    made.module("drivers/virtio/virtio_ring.ko")
    made.module("drivers/virtio/virtio_mmio.ko", "virtio,virtio_ring")
    made.module("drivers/virtio/virtio-pci.ko.xz", "virtio_ring,virtio")
    made.module("drivers/block/virtio_blk.ko", "virtio")
    (made.modules / "modules.builtin").write_text("kernel/drivers/input/evdev.ko\n", encoding="utf-8")
    made.publish()
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return made


def unpack(initrd: Path) -> dict[str, tuple[int, bytes]]:
    """name -> (mode, content) of a newc archive; its own reader, strict about what cpio(5) asks."""
    data = gzip.decompress(initrd.read_bytes())
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        assert at % 4 == 0
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        content = data[at : at + size]
        assert len(content) == size
        at = (at + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        assert name not in found
        found[name] = (mode, content)


@needs_dpkg
def test_initramfs_has_init_busybox_and_modules_in_the_order_of_their_dependencies(
    tmp_path: Path, packages: Packages
) -> None:
    steps: list[str] = []
    guest = build_guest(tmp_path / "cache", progress=steps.append)

    assert guest.kernel.read_bytes() == b"kernel image"
    assert guest.kernel_version == VERSION
    assert "console=ttyS0" in guest.cmdline.split()
    assert any("not installed" in step for step in steps)
    files = unpack(guest.initrd)
    assert files["init"][0] == 0o100755
    assert files["init"][1].startswith(b"#!/bin/sh\n")
    assert files["bin/busybox"] == (0o100755, b"busybox program")
    assert files["bin/sh"] == (0o120777, b"busybox")
    assert files["dev/console"][0] == 0o020600
    order = files["etc/modules"][1].decode().split()
    assert sorted(order) == sorted(name.removeprefix("lib/modules/") for name in files if name.endswith(".ko"))
    assert "evdev.ko" not in order  # part of this kernel
    assert order.index("virtio_ring.ko") < order.index("virtio.ko") < order.index("virtio_blk.ko")
    assert files["lib/modules/virtio_pci.ko"][1].startswith(b"\x7fELF")  # was compressed, and named virtio-pci


@needs_dpkg
def test_second_call_asks_for_nothing_and_force_makes_the_same_bytes_again(tmp_path: Path, packages: Packages) -> None:
    first = build_guest(tmp_path / "cache")
    content = first.initrd.read_bytes()
    assert build_guest(tmp_path / "cache") == first
    assert find_guest(tmp_path / "cache") == first
    assert packages.asked() == 1
    assert build_guest(tmp_path / "cache", force=True) == first
    assert packages.asked() == 2
    assert first.initrd.read_bytes() == content
    assert [path.name for path in (tmp_path / "cache").glob(".guest-*")] == []


@needs_dpkg
def test_new_kernel_leaves_the_files_of_the_old_guest(tmp_path: Path, packages: Packages) -> None:
    old = build_guest(tmp_path / "cache")
    packages.module("drivers/acpi/button.ko", "virtio")
    packages.publish()
    new = build_guest(tmp_path / "cache", force=True)
    assert new.initrd != old.initrd
    assert old.initrd.exists()  # a VM's configuration names it


@needs_dpkg
@pytest.mark.parametrize("damage", ["cut initrd", "no kernel", "old format", "other init", "torn stamp"])
def test_unusable_cache_counts_as_absent_and_is_made_anew(tmp_path: Path, packages: Packages, damage: str) -> None:
    cache = tmp_path / "cache"
    guest = build_guest(cache)
    stamp = cache / "guest.json"
    fields: dict[str, Any] = json.loads(stamp.read_text(encoding="utf-8"))
    match damage:
        case "cut initrd":
            guest.initrd.write_bytes(guest.initrd.read_bytes()[:-1])
        case "no kernel":
            guest.kernel.unlink()
        case "old format":
            stamp.write_text(json.dumps({**fields, "format": fields["format"] - 1}), encoding="utf-8")
        case "other init":
            stamp.write_text(json.dumps({**fields, "init": "0" * 64}), encoding="utf-8")
        case "torn stamp":
            stamp.write_bytes(stamp.read_bytes()[:20])
    assert find_guest(cache) is None
    assert build_guest(cache) == guest
    assert packages.asked() == 2


@needs_dpkg
def test_two_builders_at_once_build_once(tmp_path: Path, packages: Packages) -> None:
    built: list[Guest] = []
    threads = [threading.Thread(target=lambda: built.append(build_guest(tmp_path / "cache"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4
    assert len(set(built)) == 1
    assert packages.asked() == 1


@needs_dpkg
def test_leftovers_of_a_killed_builder_are_removed(tmp_path: Path, packages: Packages) -> None:
    leftover = tmp_path / "cache/.guest-killed"
    leftover.mkdir(parents=True)
    (leftover / "big").write_bytes(b"x")
    build_guest(tmp_path / "cache")
    assert not leftover.exists()


@needs_dpkg
def test_missing_module_is_named_with_who_needs_it(tmp_path: Path, packages: Packages) -> None:
    packages.module("drivers/block/virtio_blk.ko", "virtio,absent_one")
    packages.publish()
    with pytest.raises(GuestBuildError, match="no module absent_one, which virtio_blk needs"):
        build_guest(tmp_path / "cache")
    assert find_guest(tmp_path / "cache") is None
    assert list((tmp_path / "cache").glob(".guest-*")) == []


@needs_dpkg
def test_failed_download_says_what_apt_said_and_what_to_do(tmp_path: Path, packages: Packages) -> None:
    packages.fail("E: Failed to fetch: 404  Not Found")
    with pytest.raises(GuestPackagesUnavailable, match=r"status 100: E: Failed to fetch: 404.*apt-get update"):
        build_guest(tmp_path / "cache")


def test_host_without_apt_is_told_to_bring_its_own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(GuestPackagesUnavailable, match=r"apt-get, apt-cache, dpkg-deb not found.*--kernel"):
        build_guest(tmp_path / "cache")


def test_other_processor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(GuestPackagesUnavailable, match="aarch64"):
        build_guest(tmp_path / "cache")


def test_cache_that_cannot_be_written_is_a_store_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="Not a directory") as raised:
        build_guest(tmp_path / "file/cache")
    assert raised.value.path == str(tmp_path / "file/cache")


def test_default_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/cocoon")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_cache_dir() == Path("/home/u/.cache/cocoon")


# --- the real one ---------------------------------------------------------------------------------------------------

QEMU = shutil.which("qemu-system-x86_64")
BOOT_SECONDS = 60.0
# Under load the kernel's timer calibration hangs on an emulated microvm; q35 has timers that do not.
MACHINES = {"microvm": " no_timer_check tsc_early_khz=2500000", "q35": ""}


@pytest.fixture(scope="module")
def real_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    cache = tmp_path_factory.mktemp("guest") / "cache"
    try:
        yield build_guest(cache)
    except GuestPackagesUnavailable as error:
        pytest.skip(str(error))
    shutil.rmtree(cache)


class Machine:
    """One QEMU with the guest; the run dir is its working directory, so that its sockets have short names."""

    def __init__(self, folder: Path, guest: Guest, machine: str, *more: str) -> None:
        assert QEMU is not None
        self.folder = folder
        command = [QEMU, "-M", machine, "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "128"]
        command += ["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-chardev", "socket,id=c,path=console.sock,server=on,wait=off,logfile=console.log"]
        command += ["-serial", "chardev:c", "-qmp", "unix:qmp.sock,server=on,wait=off"]
        command += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
        command += ["-append", guest.cmdline + MACHINES[machine], *more]
        with (folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def printed(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_for(self, text: str) -> str:
        """The line that begins with `text`, once the guest has printed all of it."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            lines = [line.rstrip() for line in self.printed().splitlines(keepends=True) if line.endswith("\n")]
            if found := [line for line in lines if line.startswith(text)]:
                return found[-1]
            assert time.monotonic() < deadline, f"no line {text!r}; QEMU said {self.log()!r}, the guest {lines!r}"
            assert self.process.poll() is None, f"QEMU ended before {text!r}: {self.log()!r}, the guest said {lines!r}"
            time.sleep(0.01)

    def log(self) -> str:
        return (self.folder / "qemu.log").read_text(encoding="utf-8", errors="replace")

    def connect(self, name: str) -> socket.socket:
        return connect(self.folder / name, BOOT_SECONDS)

    def ask(self, line: str, answer: str) -> str:
        """Sends a line to the guest, and reads the console until the line that begins with `answer`."""
        with self.connect("console.sock") as console, console.makefile("r", encoding="utf-8", newline="\n") as reader:
            console.sendall(f"{line}\n".encode())
            for printed in reader:
                if printed.startswith(answer):
                    return printed.strip()
        pytest.fail(f"the console closed before {answer!r}")

    def qmp(self, command: str) -> None:
        with self.connect("qmp.sock") as client, client.makefile("rwb") as stream:
            stream.readline()
            for name in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": name}).encode() + b"\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    assert "event" in answer, answer


@pytest.fixture(params=list(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path: Path, real_guest: Guest) -> Iterator[Machine]:
    with (tmp_path / "rw.img").open("wb") as disk:
        disk.truncate(2 << 20)
    with (tmp_path / "ro.img").open("wb") as disk:
        disk.truncate(1 << 20)
    device = {"microvm": "virtio-blk-device", "q35": "virtio-blk-pci"}[request.param]
    made = Machine(
        tmp_path,
        real_guest,
        request.param,
        *("-drive", "if=none,id=d0,file=rw.img,format=raw", "-device", f"{device},drive=d0,serial=first"),
        *("-drive", "if=none,id=d1,file=ro.img,format=raw,readonly=on", "-device", f"{device},drive=d1"),
    )
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def test_guest_answers_on_its_console_and_powers_off_by_acpi(machine: Machine, real_guest: Guest) -> None:
    assert machine.wait_for("COCOON-GUEST-READY") == f"COCOON-GUEST-READY {real_guest.kernel_version}"
    assert machine.ask("echo  a * b", "ECHO") == "ECHO  a * b"
    assert machine.ask("nonsense", "UNKNOWN") == "UNKNOWN nonsense"
    assert machine.ask("disks", "DISKS") == "DISKS vda=2097152,rw,first vdb=1048576,ro,"
    assert float(machine.ask("uptime", "UPTIME").split()[1]) > 0
    assert machine.ask("ticks on", "tick 2") == "tick 2"
    assert machine.ask("ticks off", "TICKS") == "TICKS off"

    assert machine.ask("ignore-power-button", "IGNORE") == "IGNORE-POWER-BUTTON on"
    machine.qmp("system_powerdown")
    machine.wait_for("POWER-BUTTON ignored")
    assert machine.ask("ignore-power-button", "IGNORE") == "IGNORE-POWER-BUTTON off"
    machine.qmp("system_powerdown")
    machine.process.wait(BOOT_SECONDS)
    assert machine.process.returncode == 0
    assert "\nPOWER-BUTTON\n" in machine.printed()
    assert "COCOON-GUEST-WARNING" not in machine.printed()


@pytest.mark.parametrize("command", ["crash", "poweroff"])
def test_guest_told_to_end_ends_its_vmm(machine: Machine, command: str) -> None:
    machine.wait_for("COCOON-GUEST-READY")
    assert machine.ask(command, command.upper()) == command.upper()
    machine.process.wait(BOOT_SECONDS)
    assert ("Kernel panic" in machine.printed()) == (command == "crash")
