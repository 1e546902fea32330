"""What every command that touches a node needs: its root, its configuration, and the node itself, opened when used."""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cocoon.cli import output
from cocoon.cli.config import Config, find_root, load_config

if TYPE_CHECKING:
    from cocoon import VM, Backend, Node


class Session:
    """One run of one command."""

    def __init__(self, root: str | None = None, config: str | None = None) -> None:
        self.root_flag = root
        self.config_flag = config
        self._node: Node | None = None
        self._backends: dict[str, Backend] = {}

    @cached_property
    def root(self) -> Path:
        """The root folder, which need not be there yet."""
        return find_root(self.root_flag)

    @cached_property
    def config(self) -> Config:
        """The configuration file with the environment on top."""
        return load_config(self.config_flag, self.root)

    @property
    def node(self) -> "Node":
        """The node, opened by the first use of it."""
        if self._node is None:
            self._node = open_node(self.root, self.config)
        return self._node

    def backend(self, hypervisor: str, *, stop_timeout: float | None = None) -> "Backend":
        """One hypervisor of the node, with the configured timeouts, or this one."""
        if stop_timeout is not None:
            return open_backend(self.node, hypervisor, replace(self.config, stop_timeout=stop_timeout))
        if hypervisor not in self._backends:
            self._backends[hypervisor] = open_backend(self.node, hypervisor, self.config)
        return self._backends[hypervisor]

    def find(self, ref: str) -> tuple["VM", "Backend"]:
        """The VM that this id, name or prefix names, over all hypervisors."""
        vm = self.node.find(ref)
        return vm, self.backend(vm.hypervisor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._node is None:
            return
        pending = self._node.pending
        self._node.close()
        if pending:
            warn_pending(pending, self.root)


class _Warnings(logging.Handler):
    """What the engine logs, as lines on stderr like all others."""

    def emit(self, record: logging.LogRecord) -> None:
        output.warn(record.getMessage())


def open_node(root: Path, config: Config) -> "Node":
    """The node of this root. Makes the folder when it is not there."""
    from cocoon import Node

    logger = logging.getLogger("cocoon")
    if not logger.handlers:
        logger.addHandler(_Warnings(logging.WARNING))
    options: dict[str, Any] = {}
    if config.run_dir is not None:
        options["run_dir"] = config.run_dir
    if config.log_dir is not None:
        options["log_dir"] = config.log_dir
    if config.ledger_rotate_bytes:
        options["rotate_bytes"] = config.ledger_rotate_bytes
    return Node(root, binaries=dict(config.binaries), ledger_labels=list(config.ledger_labels), **options)


def open_backend(node: "Node", hypervisor: str, config: Config) -> "Backend":
    """One hypervisor of a node, with the configured timeouts."""
    from cocoon import Backend

    timeouts = config.timeouts()
    if not timeouts:
        return node.backend(hypervisor)
    return Backend(node, hypervisor, binary=None, **timeouts)


def warn_pending(pending: int, root: Path) -> None:
    """Says on stderr that the ledger's file cannot be written."""
    what = "1 ledger entry is" if pending == 1 else f"{pending} ledger entries are"
    output.warn(
        f"{what} committed but not yet in the ledger of {root}: kept, and written once it can be written again; "
        "`cocoon doctor` says why it cannot"
    )
