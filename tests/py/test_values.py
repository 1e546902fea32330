"""What wrong values and unreadable bytes become: InvalidArgument that names the argument, text that hides nothing."""

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocoon import Backend, Disk, InvalidArgument, Ledger, Node, VMConfig, VmmError

SURROGATE = "a\udcffb"


class Odd:
    """Something with items() that is no mapping."""

    def items(self) -> list[int]:
        return [1, 2]


WRONG: dict[str, tuple[str, Callable[[Node, Backend, Any], object]]] = {
    "relabel key": ("labels", lambda node, backend, any_: backend.relabel("web", any_({1: "x"}))),
    "relabel value": ("labels", lambda node, backend, any_: backend.relabel("web", any_({"x": 1}))),
    "relabel pairs": ("labels", lambda node, backend, any_: backend.relabel("web", any_(Odd()))),
    "relabel none": ("labels", lambda node, backend, any_: backend.relabel("web", any_(5))),
    "label surrogate": ("labels", lambda node, backend, any_: backend.relabel("web", {"x": SURROGATE})),
    "list labels": ("labels", lambda node, backend, any_: backend.list(labels=any_(Odd()))),
    "config labels": ("labels", lambda node, backend, any_: VMConfig("a", labels=any_({SURROGATE: "x"}))),
    "config name": ("name", lambda node, backend, any_: VMConfig(any_(5))),
    "config disks": ("disks", lambda node, backend, any_: VMConfig("a", disks=any_(5))),
    "disk serial": ("serial", lambda node, backend, any_: Disk("/x", serial=any_(5))),
    "ref": ("ref", lambda node, backend, any_: backend.inspect(SURROGATE)),
    "refs": ("ref", lambda node, backend, any_: backend.start("web", any_(5))),
    "hypervisor": ("hypervisor", lambda node, backend, any_: node.backend(any_(5))),
    "timeout": ("timeout", lambda node, backend, any_: backend.stop("web", timeout=10**400)),
    "long timeout": ("timeout", lambda node, backend, any_: backend.stop("web", timeout=10**9000)),
    "binaries": ("binaries", lambda node, backend, any_: Node(node.root, binaries=any_({1: "/bin/true"}))),
    "ledger_labels": ("ledger_labels", lambda node, backend, any_: Node(node.root, ledger_labels=any_([1]))),
    "root": ("root", lambda node, backend, any_: Node("")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_names_its_argument(tmp_path: Path, case: str) -> None:
    named, call = WRONG[case]
    with Node(tmp_path / "node") as node:
        backend = node.backend("qemu")
        backend.create(VMConfig("web", storage=0))
        with pytest.raises(InvalidArgument, match=named):
            call(node, backend, lambda value: value)


def test_a_backend_without_a_node_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(TypeError):
        Backend(nothing, "qemu")


SIZES: dict[str, int | None] = {
    "1.5G": 3 << 29,
    "0.125K": 128,
    "0.1K": None,
    "2KiB": 2048,
    "1024P": 1 << 60,
    "9007199254740993": 2**53 + 1,
    "1152921504606846975B": 2**60 - 1,
    "4611686018427387904": None,
    "1.": None,
    "1e3": None,
    "1,5G": None,
    "1GG": None,
}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_are_exact(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(InvalidArgument, match="memory"):
            VMConfig("a", memory=text)
    else:
        assert VMConfig("a", storage=text).storage == size


def test_a_log_that_is_no_utf8_does_not_hide_the_error(tmp_path: Path) -> None:
    binary = tmp_path / "qemu-fake"
    binary.write_text("#!/bin/sh\nprintf 'broken \\377 pipe\\n' >&2\nexit 1\n")
    binary.chmod(0o755)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel")
    with Node(tmp_path / "node", binaries={"qemu": binary}) as node:
        backend = node.backend("qemu")
        backend.create(VMConfig("web", kernel=kernel, storage=0, accelerator="tcg"))
        with pytest.raises(VmmError) as raised:
            backend.start("web")
        assert "broken \\xff pipe" in raised.value.log_tail


def test_paths_with_any_byte_go_through(tmp_path: Path) -> None:
    root = tmp_path / SURROGATE
    with Node(root) as node:
        assert node.root == root
        with pytest.raises(InvalidArgument, match="not UTF-8"):  # the store's records are text
            node.backend("qemu").create(VMConfig("web", storage=0))
        assert node.ledger.audit().ok
        assert repr(node.ledger).isascii()
    assert "udcff" in repr(Disk(root / "disk"))


def read_and_go_on(ledger: Path) -> int:
    Ledger(ledger).entries()
    return sum(range(1000)) + sum(i for i in range(1000))  # Ctrl-C is raised where Python looks for signals next


def test_ctrl_c_in_a_logging_handler_arrives(tmp_path: Path) -> None:
    class Interrupting(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("garbage\n")
    logger = logging.getLogger("cocoon.ledger")
    handler = Interrupting()
    logger.addHandler(handler)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_and_go_on(ledger)
    finally:
        signal.signal(signal.SIGINT, before)
        logger.removeHandler(handler)
