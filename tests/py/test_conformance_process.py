"""The simulator speaks HTTP, treats sockets and signals, and exits as the real VMMs do."""

from __future__ import annotations

import functools
import re
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance import Pair, pair_of
from simvmm_client import CLOUD_HYPERVISOR, FIRECRACKER, Vmm, boot, running, until


@pytest.fixture
def firecracker(tmp_root: Path) -> Pair:
    return pair_of(FIRECRACKER, tmp_root)


@pytest.fixture
def cloud_hypervisor(tmp_root: Path) -> Pair:
    return pair_of(CLOUD_HYPERVISOR, tmp_root)


@pytest.fixture(params=[FIRECRACKER, CLOUD_HYPERVISOR])
def either(request: pytest.FixtureRequest, tmp_root: Path) -> Pair:
    return pair_of(request.param, tmp_root)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_signals(either: Pair, number: signal.Signals) -> None:
    def script(vmm: Vmm) -> Any:
        boot(vmm, either.kernel)
        vmm.process.send_signal(number)
        return [vmm.wait(), sorted(path.name for path in vmm.folder.iterdir())]

    either.both(script)


def requests_of(path: str) -> dict[str, bytes]:
    get, put = f"GET {path}".encode(), f"PUT {path}".encode()
    end = b" HTTP/1.1\r\n"
    return {
        "1.0": get + b" HTTP/1.0\r\n\r\n",
        "2.0": get + b" HTTP/2.0\r\n\r\n",
        "close": get + end + b"Connection: close\r\n\r\n",
        "post": b"POST " + path.encode() + end + b"\r\n",
        "lower case": b"get " + path.encode() + end + b"\r\n",
        "no version": get + b"\r\n\r\n",
        "four words": get + b" HTTP/1.1 x\r\n\r\n",
        "no uri": b"GET  HTTP/1.1\r\n\r\n",
        "empty lines": b"\r\n\r\n",
        "zeros": b"\0" * 10 + b"\r\n\r\n",
        "absolute uri": f"GET http://localhost{path}".encode() + end + b"\r\n",
        "no slash": b"GET version" + end + b"\r\n",
        "uri not utf-8": b"GET /\xff" + end + b"\r\n",
        "header not utf-8": get + end + b"X: \xff\r\n\r\n",
        "no colon": get + end + b"nocolon\r\n\r\n",
        "only a colon": get + end + b": x\r\n\r\n",
        "line of 1024": b"GET /" + b"a" * (1024 - 16) + end + b"\r\n",
        "line of 1025": b"GET /" + b"a" * (1024 - 15) + end + b"\r\n",
        "header of 2000": get + end + b"X: " + b"a" * 2000 + b"\r\n\r\n",
        "many headers": get + end + b"".join(b"X%d: a\r\n" % i for i in range(300)) + b"\r\n",
        "chunked": put + end + b"Transfer-Encoding: chunked\r\n\r\n",
        "expect": put + end + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        "expect nothing": get + end + b"Expect: 100-continue\r\n\r\n",
        "length -1": put + end + b"Content-Length: -1\r\n\r\n",
        "length abc": put + end + b"Content-Length: abc\r\n\r\n",
        "length 2^32": put + end + b"Content-Length: 4294967296\r\n\r\n",
        "length 5 MB": put + end + b"Content-Length: 5242881\r\n\r\n",
        "length 0": get + end + b"Content-Length: 0\r\n\r\n",
        "no body": put + end + b"\r\n",
        "identity refused": get + end + b"Accept-Encoding: identity;q=0\r\n\r\n",
        "all refused": get + end + b"Accept-Encoding: gzip, *;q=0\r\n\r\n",
        "no encoding": get + end + b"Accept-Encoding:\r\n\r\n",
        "three at once": (get + end + b"\r\n") * 3,
        "bad header, then good": get + end + b"nocolon\r\n\r\n" + get + end + b"\r\n",
    }


def test_http(either: Pair) -> None:
    path = "/version" if either.name == FIRECRACKER else "/api/v1/vmm.ping"

    def script(vmm: Vmm) -> Any:
        answers = {name: vmm.raw(data) for name, data in requests_of(path).items()}
        return {
            name: re.sub(rb'"pid":\d+', b"", re.sub(rb"Content-Length: \d+", b"", each))
            for name, each in answers.items()
        }

    for name, answer in either.both(script).items():
        assert answer.startswith(b"HTTP/1.1 "), name


def test_the_eleventh_connection(either: Pair) -> None:
    def script(vmm: Vmm) -> Any:
        ten = [vmm.connect() for _ in range(10)]
        vmm_is_there = ten[0].send(b"GET / HTTP/1.1\r\n\r\n")
        ten[0].recv(4096)
        with vmm.connect() as eleventh:
            refusal = b""
            while chunk := eleventh.recv(4096):
                refusal += chunk
        for each in ten:
            each.close()
        until(lambda: vmm.raw(b"GET / HTTP/1.1\r\n\r\n").split()[1] != b"503", "a place is free again")
        return [vmm_is_there, refusal]

    assert either.both(script)[1].startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("there", ["stale socket", "live socket", "file"])
def test_what_is_at_the_api_sockets_path(either: Pair, there: str) -> None:
    """Of a second process in the same folder: its exit code, or that it serves."""
    results = []
    for side, binary in zip(("sim", "real"), either.binaries, strict=True):
        folder = either.root / side
        with running(binary, either.name, folder) as first:
            if there != "live socket":
                first.process.kill()
                first.wait()
            if there == "file":
                first.socket_path.unlink()
                first.socket_path.touch()
            second = Vmm(binary, either.name, folder, wait=False)
            try:
                until(functools.partial(has_decided, second), "it serves or exits")
                results.append([second.process.poll(), listens(first)])
            finally:
                second.close()
    assert results[0] == results[1]


def has_decided(vmm: Vmm) -> bool:
    return vmm.process.poll() is not None or listens(vmm)


def listens(vmm: Vmm) -> bool:
    """It, and not another process at its path."""
    try:
        with vmm.connect() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return False
    return bool(struct.unpack("3i", credentials)[0] == vmm.process.pid)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bogus"],
        ["positional"],
        ["--api-sock"],
        ["--api-sock", "a", "--api-sock", "b"],
        ["--api-sock", "nope/api.sock"],
        ["--api-sock", "a" * 120],
        ["--api-sock", "api.sock", "--level", "Foo"],
        ["--api-sock", "api.sock", "--log-path", "nope/log"],
        ["--api-sock", "api.sock", "--id", "a_b"],
        ["--api-sock", "api.sock", "--id", "a" * 65],
        ["--no-api"],
        ["--snapshot-version"],
        ["--version"],
    ],
)
def test_exit_codes_of_firecracker(firecracker: Pair, arguments: list[str]) -> None:
    compare_exits(firecracker, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bogus"],
        ["positional"],
        ["--api-socket"],
        ["--api-socket", "a", "--api-socket", "b"],
        ["--api-socket", "nope/api.sock"],
        ["--api-socket", "a" * 120],
        ["--api-socket", "fd=99"],
        ["--api-socket", "fd=x"],
        ["--api-socket", "api.sock", "--restore", "source_url=file:///nope"],
        ["--version"],
        ["-V"],
    ],
)
def test_exit_codes_of_cloud_hypervisor(cloud_hypervisor: Pair, arguments: list[str]) -> None:
    compare_exits(cloud_hypervisor, arguments)


def compare_exits(pair: Pair, arguments: list[str]) -> None:
    codes = [
        subprocess.run(
            [binary, *arguments], cwd=pair.root, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).returncode
        for binary in pair.binaries
    ]
    assert codes[0] == codes[1]
