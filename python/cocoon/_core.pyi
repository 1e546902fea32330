"""
The core of cocoon. Import from `cocoon`, not from here.
"""
from __future__ import annotations
import builtins
import cocoon.enums
import collections.abc
import datetime
import os
import pathlib
import typing
__all__: list[str] = ['AuditReport', 'Backend', 'CaptureRecorder', 'Disk', 'Entry', 'FileRecorder', 'Finding', 'GCReport', 'Ledger', 'LocalFile', 'Node', 'NopRecorder', 'ReconcileReport', 'Recorder', 'Shape', 'Snapshot', 'Table', 'VM', 'VMConfig', 'kvm_status']
class Shape:
    """
    What is billed: vCPUs, and bytes of memory and of storage. An immutable value.
    
    Raises InvalidArgument: a number that is negative or does not fit in 63 bits.
    """
    def __eq__(self, other: object) -> bool:
        ...
    def __getstate__(self) -> tuple[int, int, int]:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, *, cpu: int = 0, mem_bytes: int = 0, storage_bytes: int = 0) -> None:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, arg0: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    @property
    def cpu(self) -> int:
        ...
    @property
    def mem_bytes(self) -> int:
        ...
    @property
    def storage_bytes(self) -> int:
        ...
class Entry:
    """
    One entry of the ledger. An immutable value.
    
    ``emitted_at`` is a timezone-aware datetime, nanoseconds since the epoch, or None for now. Every time is there as a
    datetime and, exact, in nanoseconds: ``emitted_at_ns``.
    Raises InvalidArgument, naming the field, its value and what is allowed.
    """
    @staticmethod
    def from_json(line: str | bytes) -> Entry:
        """
        Reads a line of a ledger, in any layout. Raises InvalidArgument.
        """
    def __eq__(self, other: object) -> bool:
        ...
    def __getstate__(self) -> tuple[str]:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, kind: str, *, vm_id: str = '', snapshot_id: str = '', source_snapshot_id: str = '', reason: str | None = None, hypervisor: str = '', shape: Shape = ..., emitted_at: datetime.datetime | int | None = None, seq: int | None = None, interval: int | None = None, labels: collections.abc.Mapping[str, str] = {}, ended_at: datetime.datetime | None = None, ended_uptime_ns: int | None = None, evidence: str = '', alive_until: datetime.datetime | None = None, boot_id: str = '', uptime_ns: int | None = None) -> None:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, arg0: tuple[str]) -> None:
        ...
    def to_json(self) -> str:
        """
        The ledger line, without its newline.
        """
    @property
    def alive_until(self) -> datetime.datetime | None:
        ...
    @property
    def alive_until_ns(self) -> int | None:
        ...
    @property
    def boot_id(self) -> str:
        ...
    @property
    def emitted_at(self) -> datetime.datetime:
        ...
    @property
    def emitted_at_ns(self) -> int:
        ...
    @property
    def ended_at(self) -> datetime.datetime | None:
        ...
    @property
    def ended_at_ns(self) -> int | None:
        ...
    @property
    def ended_uptime_ns(self) -> int | None:
        ...
    @property
    def evidence(self) -> str:
        ...
    @property
    def hypervisor(self) -> str:
        ...
    @property
    def interval(self) -> int | None:
        ...
    @property
    def kind(self) -> cocoon.enums.Kind:
        ...
    @property
    def labels(self) -> collections.abc.Mapping[str, str]:
        ...
    @property
    def reason(self) -> cocoon.enums.Reason | None:
        ...
    @property
    def seq(self) -> int | None:
        ...
    @property
    def shape(self) -> Shape:
        ...
    @property
    def snapshot_id(self) -> str:
        ...
    @property
    def source_snapshot_id(self) -> str:
        ...
    @property
    def uptime_ns(self) -> int | None:
        ...
    @property
    def vm_id(self) -> str:
        ...
class Recorder:
    """
    Where a node's entries go. Subclass it and override ``emit``.
    
    ``emit`` is called in the order of ``seq``, at least once per entry, outside any transaction. If it raises, the node
    logs that and offers the entry again.
    """
    def __init__(self) -> None:
        ...
    def emit(self, entry: Entry) -> None:
        ...
class FileRecorder(Recorder):
    """
    Appends entries to a file, one JSON line each.
    
    ``emit`` returns once the line is in the kernel, ``flush`` once it is on the disk. A line that cannot be written is
    kept in memory, with one warning, and written before the next one.
    """
    def __init__(self, path: str | os.PathLike[str]) -> None:
        ...
    def __repr__(self) -> str:
        ...
    def close(self) -> None:
        """
        Writes what was kept, and closes the file; a later emit opens it again. Raises LedgerError if it cannot.
        """
    def emit(self, entry: Entry) -> None:
        ...
    def flush(self) -> None:
        """
        Writes what was kept, and syncs the file. Raises LedgerError if it cannot.
        """
    @property
    def path(self) -> pathlib.Path:
        ...
class CaptureRecorder(Recorder):
    """
    Keeps entries in memory, for tests.
    """
    def __init__(self) -> None:
        ...
    def emit(self, entry: Entry) -> None:
        ...
    def entries(self) -> list[Entry]:
        """
        A copy.
        """
    def reset(self) -> None:
        ...
class NopRecorder(Recorder):
    """
    Metering is off: entries are dropped.
    """
    def __init__(self) -> None:
        ...
    def emit(self, entry: Entry) -> None:
        ...
class Table:
    """
    Columns. An immutable value; null is None. Times in data frames have nanoseconds.
    
    Whatever reads Arrow takes it without a copy: pyarrow.table(t), polars.DataFrame(t), duckdb over either.
    """
    def __arrow_c_stream__(self, requested_schema: typing.Any = None) -> typing.Any:
        """
        The Arrow PyCapsule interface: one batch, in the table's own buffers.
        """
    def __len__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def _head(self, rows: typing.SupportsInt | typing.SupportsIndex) -> list[list[typing.Any]]:
        """
        The first rows as text, for people; times with all their digits.
        """
    def _repr_html_(self) -> str:
        ...
    def to_pandas(self) -> typing.Any:
        """
        A pandas.DataFrame. Raises ImportError where pandas is not installed.
        """
    def to_polars(self) -> typing.Any:
        """
        A polars.DataFrame. Raises ImportError where polars is not installed.
        """
    def to_pylist(self) -> list[dict[str, typing.Any]]:
        """
        One dict per row.
        """
    @property
    def column_names(self) -> list[str]:
        ...
class Finding:
    """
    One thing that is wrong with a ledger, and where.
    """
    def __repr__(self) -> str:
        ...
    @property
    def code(self) -> str:
        ...
    @property
    def file(self) -> pathlib.Path:
        ...
    @property
    def line(self) -> int | None:
        """
        From 1, in its file.
        """
    @property
    def message(self) -> str:
        ...
    @property
    def offset(self) -> int | None:
        """
        Of the line's first byte.
        """
    @property
    def seq(self) -> int | None:
        ...
    @property
    def snapshot_id(self) -> str:
        ...
    @property
    def vm_id(self) -> str:
        ...
class AuditReport:
    """
    What the audit of a ledger found.
    """
    def __repr__(self) -> str:
        ...
    def _repr_html_(self) -> str:
        ...
    @property
    def entries(self) -> int:
        """
        Well-formed lines.
        """
    @property
    def findings(self) -> list[Finding]:
        """
        In the order of the lines.
        """
    @property
    def ok(self) -> bool:
        """
        Nothing was found.
        """
class _EntryIterator:
    def __iter__(self) -> collections.abc.Iterator[Entry]:
        ...
    def __next__(self) -> Entry:
        ...
class _FollowIterator:
    def __iter__(self) -> collections.abc.Iterator[Entry]:
        ...
    def __next__(self) -> Entry:
        ...
class Ledger:
    """
    The usage ledger in these files, folders or globs, packed (zstd, gzip) or not. Nothing is read yet.
    
    Tables pass over lines that are no entries, with one warning; iterating raises LedgerError at each, naming file, line
    and offset, and may go on; ``audit`` reports them.
    Raises LedgerError from each reading: nothing is there, or it cannot be read.
    """
    @staticmethod
    def _of_node(path: str | os.PathLike[str], expected: typing.SupportsInt | typing.SupportsIndex, node_id: str) -> Ledger:
        """
        The ledger ``path`` with its rotated parts, which holds all up to ``expected``.
        """
    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        ...
    def __iter__(self) -> collections.abc.Iterator[Entry]:
        ...
    def __repr__(self) -> str:
        ...
    def _export(self, write: collections.abc.Callable[[bytes], typing.Any], format: str, since_seq: typing.SupportsInt | typing.SupportsIndex, until_seq: typing.SupportsInt | typing.SupportsIndex | None, node_id: str, every_ns: typing.SupportsInt | typing.SupportsIndex, progress: collections.abc.Callable[[int, int | None], typing.Any] | None) -> int | None:
        ...
    def _intervals_of(self, ids: collections.abc.Iterable[str], until: datetime.datetime | None = None) -> list[dict[str, typing.Any]]:
        ...
    def _repr_html_(self) -> str:
        ...
    def audit(self) -> AuditReport:
        """
        What is wrong with the ledger, each fault once.
        """
    def entries(self) -> Table:
        ...
    def export(self, dest: str | os.PathLike[str] | typing.BinaryIO, *, format: typing.Literal['csv', 'parquet', 'jsonl', 'focus', 'cloudevents'], since_seq: int = 1, until_seq: int | None = None, progress: collections.abc.Callable[[int, int | None], typing.Any] | None = None, every: float | datetime.timedelta = 86400, node_id: str | None = None) -> int:
        """
        Writes the entries with these numbers to a path (whole or not at all) or a binary file; returns the rows.
        
        The same range gives the same bytes. ``csv``, ``parquet`` (needs the extra ``parquet``), ``jsonl``, ``cloudevents``: a row
        per entry. ``focus``: a row per interval and bucket of ``every``, for those who replace rows by x_RowId. ``node_id`` is part
        of ids; left out: the node's, else one made from the first entry.
        Raises InvalidArgument; LedgerError; from a file of yours what it raises.
        """
    def follow(self, *, poll: float | datetime.timedelta = 0.5, from_start: bool = False) -> collections.abc.Iterator[Entry]:
        """
        New entries as they are appended, for ever; ``from_start``: after all that are there.
        """
    def intervals(self, *, until: datetime.datetime | None = None) -> Table:
        """
        Starts and stops paired, in the order of the starts. Open ones count up to ``until``, or to now.
        """
    def timeline(self, *, ids: collections.abc.Iterable[str] | None = None, since: datetime.datetime | None = None, until: datetime.datetime | None = None, most: int = 40) -> typing.Any:
        """
        A picture of what ran when, interactive in a notebook; ``save("x.svg")`` or ``save("x.png")`` of it is a file.
        
        At most ``most`` VMs and snapshots, those that have used most first. Needs the extra ``notebook``.
        """
    def usage(self, *, by: collections.abc.Iterable[str] = ('vm_id',), since: datetime.datetime | None = None, until: datetime.datetime | None = None, every: float | datetime.timedelta | None = None, crash: str = 'ended', checkpoint: str | os.PathLike[str] | None = None) -> Table:
        """
        Sums over [since, until), by any of vm_id, snapshot_id, hypervisor, kind, reason (of the start), label:KEY.
        
        ``every``: in buckets that begin at its multiples since the epoch. ``crash``: up to when a crashed VM counts.
        ``checkpoint``: a file that saves reading again what was read; the answer is the same, and where it does not fit the
        ledger or the question, all is read.
        Raises InvalidArgument.
        """
    @property
    def _node_id(self) -> str:
        ...
class Disk:
    """
    One disk of a VM.
    
    Roles: ``cow`` is copied into the VM's run dir and belongs to it; ``data`` is used where it lies; ``layer`` and
    ``cidata`` are used where they lie, read-only. Formats: ``raw``, ``qcow2``.
    Raises InvalidArgument.
    """
    def __eq__(self, other: object) -> bool:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False, format: str = 'raw', role: str = 'data', serial: str = '') -> None:
        ...
    def __repr__(self) -> str:
        ...
    @property
    def format(self) -> str:
        ...
    @property
    def path(self) -> pathlib.Path:
        ...
    @property
    def readonly(self) -> bool:
        ...
    @property
    def role(self) -> str:
        ...
    @property
    def serial(self) -> str:
        ...
class VMConfig:
    """
    What a VM is to be.
    
    ``memory`` and ``storage`` are bytes, or strings with a binary unit ("512M", "1G"). ``storage`` is the size of the VM's
    own disk, 0 for none. Left out: 1 vCPU, 512M, 10G for a new VM; the snapshot's for a clone.
    ``machine`` and ``accelerator`` are the hypervisor's: for qemu "microvm" (the default) or "q35", and "kvm" or "tcg"
    (the default is whatever runs guests here); for cloud-hypervisor "firmware" if ``kernel`` names one. ``network_namespace`` is the path of one that the VMM is started in.
    Raises InvalidArgument, naming the argument, its value and what is allowed.
    """
    def __init__(self, name: str, *, cpu: int | None = None, memory: int | str | None = None, storage: int | str | None = None, kernel: str | os.PathLike[str] | None = None, initrd: str | os.PathLike[str] | None = None, cmdline: str = '', disks: collections.abc.Iterable[Disk] = (), labels: collections.abc.Mapping[str, str] = {}, machine: str = '', accelerator: str = '', network_namespace: str | os.PathLike[str] | None = None) -> None:
        ...
    def __repr__(self) -> str:
        ...
    @property
    def accelerator(self) -> str:
        ...
    @property
    def cmdline(self) -> str:
        ...
    @property
    def cpu(self) -> int | None:
        ...
    @property
    def disks(self) -> list[Disk]:
        ...
    @property
    def initrd(self) -> pathlib.Path | None:
        ...
    @property
    def kernel(self) -> pathlib.Path | None:
        ...
    @property
    def labels(self) -> dict[str, str]:
        ...
    @property
    def machine(self) -> str:
        ...
    @property
    def memory(self) -> int | None:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def network_namespace(self) -> pathlib.Path | None:
        ...
    @property
    def storage(self) -> int | None:
        ...
class VM:
    """
    A value: what the store said at that moment, and what was alive then.
    """
    def __repr__(self) -> str:
        ...
    def to_dict(self) -> dict[str, typing.Any]:
        """
        JSON-ready; keys as in `cocoon vm inspect`.
        """
    @property
    def alive(self) -> bool | None:
        """
        None: it could not be decided.
        """
    @property
    def config(self) -> VMConfig:
        ...
    @property
    def created_at(self) -> datetime.datetime:
        ...
    @property
    def created_at_ns(self) -> int:
        ...
    @property
    def first_booted(self) -> bool:
        ...
    @property
    def hypervisor(self) -> str:
        ...
    @property
    def id(self) -> str:
        ...
    @property
    def interval_open(self) -> bool:
        ...
    @property
    def log_dir(self) -> pathlib.Path:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def pid(self) -> int | None:
        """
        Of a live VMM process that is proven to be this VM's, else None.
        """
    @property
    def run_dir(self) -> pathlib.Path:
        ...
    @property
    def shape(self) -> Shape:
        ...
    @property
    def snapshot_ids(self) -> list[str]:
        ...
    @property
    def socket_path(self) -> pathlib.Path | None:
        ...
    @property
    def started_at(self) -> datetime.datetime | None:
        ...
    @property
    def started_at_ns(self) -> int | None:
        ...
    @property
    def state(self) -> cocoon.enums.VMState:
        ...
    @property
    def stopped_at(self) -> datetime.datetime | None:
        ...
    @property
    def stopped_at_ns(self) -> int | None:
        ...
    @property
    def updated_at(self) -> datetime.datetime:
        ...
    @property
    def updated_at_ns(self) -> int:
        ...
    @property
    def vsock_path(self) -> pathlib.Path | None:
        """
        Of a live VM whose guest has a vsock: the UNIX socket that reaches its port P after a line "CONNECT P".
        """
class Snapshot:
    """
    A complete snapshot, as the store had it at that moment.
    """
    def __eq__(self, other: object) -> bool:
        ...
    def __hash__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def to_dict(self) -> dict[str, typing.Any]:
        """
        JSON-ready; keys as in `cocoon snapshot inspect`.
        """
    @property
    def cpu(self) -> int:
        ...
    @property
    def created_at(self) -> datetime.datetime:
        ...
    @property
    def description(self) -> str:
        ...
    @property
    def hypervisor(self) -> str:
        ...
    @property
    def id(self) -> str:
        ...
    @property
    def kept(self) -> bool:
        """
        It holds a hibernated VM's memory, and goes when that wakes.
        """
    @property
    def memory(self) -> int:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def size_bytes(self) -> int:
        """
        Logical bytes of its files: what is metered.
        """
    @property
    def storage(self) -> int:
        ...
    @property
    def vm_id(self) -> str:
        """
        Of the VM it was taken from; '' for an imported one.
        """
class LocalFile:
    """
    The node's snapshot store: ``node.snapshots``.
    
    A snapshot is a folder of plain files and a record; its storage interval in the ledger begins when it is complete and
    ends when it is gone. References are ids, names or unique id prefixes. One that is being read by a clone, a restore or
    an export is not deleted under it. Every call that fails or is interrupted leaves nothing behind.
    """
    def __init__(self, node: Node) -> None:
        ...
    def create(self, source: str | os.PathLike[str] | typing.IO[bytes], *, name: str = '', description: str = '', hypervisor: str = '', cpu: int = 0, memory: int | str = 0, storage: int | str = 0, allow_paths: collections.abc.Iterable[str | os.PathLike[str]] = (), progress: collections.abc.Callable[[int, int | None], typing.Any] | None = None) -> Snapshot:
        """
        A new snapshot from data files: a folder of them, or a tar archive (file or stream) of them.
        
        ``allow_paths`` are folders that its cocoon.json may name files in, beside the node's own.
        Raises AlreadyExists, InvalidArgument, CorruptSnapshot, StoreError.
        """
    def data_dir(self, ref: str) -> pathlib.Path:
        """
        The folder of its files; they must not be changed.
        """
    def delete(self, *refs: str) -> list[str]:
        """
        Removes data and records, and closes their storage intervals; returns ids, each once.
        
        Raises NotFound (then nothing was removed), InvalidState (in use, or it holds a hibernated VM's memory), BulkError.
        """
    def export(self, ref: str, dest: str | os.PathLike[str] | typing.IO[bytes], *, compression: str = 'none', progress: collections.abc.Callable[[int, int | None], typing.Any] | None = None, sparse_records: str = 'gnu') -> int:
        """
        Writes a tar archive, holes kept, into a file (whole or not at all) or a stream; returns the bytes written.
        
        ``progress`` is called with the bytes of data done and in all. ``sparse_records``: "gnu" is what any tar restores,
        "cocoon" the Go engine's own.
        """
    def export_dir(self, ref: str, dest: str | os.PathLike[str]) -> None:
        """
        Copies its files (by reflink where that can be) into a folder that is empty or absent; snapshot.json comes last.
        """
    def import_(self, source: str | os.PathLike[str] | typing.IO[bytes], *, name: str | None = None, description: str | None = None, progress: collections.abc.Callable[[int, int | None], typing.Any] | None = None, allow_paths: collections.abc.Iterable[str | os.PathLike[str]] = (), max_members: int | None = None, max_bytes: int | str | None = None, max_ratio: int | None = None) -> Snapshot:
        """
        A snapshot from what export or the Go engine wrote: an archive (file or stream; none, gzip or zstd), or a folder.
        
        ``name`` and ``description`` replace its own. ``progress`` is called with the bytes read and, where that is known, in
        all. Nothing in it is trusted: ``allow_paths`` are folders that its cocoon.json may name files in, beside the node's
        own; ``max_members`` and ``max_bytes`` (logical) bound what it holds, ``max_ratio`` what each compressed byte may become.
        Raises CorruptSnapshot (path, member), AlreadyExists, StoreError.
        """
    def inspect(self, ref: str) -> Snapshot:
        """
        Raises NotFound, AmbiguousRef; InvalidState while it is being made.
        """
    def list(self) -> list[Snapshot]:
        """
        Complete ones, newest first.
        """
class GCReport:
    """
    What gc removed, or in a dry run would remove; a row for each thing.
    """
    def _repr_html_(self) -> str:
        ...
    @property
    def dry_run(self) -> bool:
        ...
    @property
    def failed(self) -> list[dict[str, typing.Any]]:
        """
        What could not be removed: the same rows with an error.
        """
    @property
    def kept(self) -> int:
        """
        VMs and snapshots that stay.
        """
    @property
    def removed(self) -> list[dict[str, typing.Any]]:
        """
        Rows of module, what, id, path (None where there is none), reason, bytes (on the disk).
        """
class ReconcileReport:
    """
    Ledger, records and processes, three ways; a row for each VM, for each snapshot that does not agree, and for a ledger that cannot be read.
    """
    def _repr_html_(self) -> str:
        ...
    @property
    def ok(self) -> bool:
        ...
    @property
    def rows(self) -> list[dict[str, typing.Any]]:
        ...
class Node:
    """
    One root folder: store, ledger, VMs.
    
    Cheap to open; many processes may open the same root. ``recorder`` left out means a FileRecorder at
    ``root/metering/ledger.jsonl``; None means no metering. ``ledger_labels`` names the labels that go into the ledger
    (kept by the node; left out: as they were). A ledger of ``rotate_bytes`` is rotated after the entry that made it so
    long; 0: never.
    Raises StoreError: the root cannot be used, or its database is foreign, damaged or newer; InvalidArgument.
    """
    def __enter__(self) -> typing.Self:
        ...
    def __exit__(self, *exc: object) -> None:
        ...
    def __init__(self, root: str | os.PathLike[str], *, run_dir: str | os.PathLike[str] | None = None, log_dir: str | os.PathLike[str] | None = None, recorder: Recorder | None = ..., binaries: collections.abc.Mapping[str, str | os.PathLike[str]] = {}, ledger_labels: collections.abc.Iterable[str] = (), rotate_bytes: int | str = 0) -> None:
        ...
    def backend(self, hypervisor: str) -> Backend:
        ...
    def close(self) -> None:
        ...
    def find(self, ref: str) -> VM:
        """
        Over all backends. Raises NotFound, AmbiguousRef.
        """
    def flush(self) -> None:
        """
        What was committed is in the ledger and on the disk. Raises LedgerError if it cannot be.
        """
    def gc(self, *, dry_run: bool = False, keep_last: int | None = None, max_age: float | datetime.timedelta | None = None, max_bytes: int | str | None = None) -> GCReport:
        """
        Removes what dead processes left: placeholders, folders, processes, staging, locks; closes dead VMs' intervals.
        
        Also the snapshots that any of these gives up: all but the ``keep_last`` newest; those unused for ``max_age``; the
        longest unused until the others have at most ``max_bytes`` in all. What is in use or being made stays. May run at any
        time, in many processes at once. ``dry_run`` only says what would go.
        """
    def reconcile(self, *, fix: bool = False) -> ReconcileReport:
        """
        Compares ledger, records and processes; ``fix`` closes, adopts or kills through ordinary transitions.
        """
    def rotate_ledger(self) -> pathlib.Path | None:
        """
        The ledger becomes a packed part, ``ledger.<first>-<last>.jsonl.zst``, and the next entry begins a new file.
        
        Returns the part, or None if there was nothing in the ledger. Raises LedgerError.
        """
    def vms(self) -> list[VM]:
        """
        All VMs, by creation.
        """
    @property
    def id(self) -> str:
        ...
    @property
    def ledger(self) -> Ledger:
        """
        The ledger to read, rotated parts included. Raises LedgerError if the recorder is not a file.
        """
    @property
    def pending(self) -> int:
        """
        Entries committed but not yet in the ledger.
        """
    @property
    def recorder(self) -> Recorder:
        ...
    @property
    def root(self) -> pathlib.Path:
        ...
    @property
    def snapshots(self) -> LocalFile:
        """
        The node's snapshot store.
        """
class Backend:
    """
    One hypervisor on one node.
    
    Get it from ``Node.backend``, or make it with timeouts (seconds or timedelta) and a binary of your own; the binary is
    looked up when first needed, so the state verbs work without it.
    Verbs for several references try all of them and return ids in order; they raise BulkError if any failed, and the
    error itself for a single reference. Raises InvalidArgument for an unknown hypervisor.
    """
    def __init__(self, node: Node, hypervisor: str, *, binary: str | os.PathLike[str] | None = None, socket_timeout: float | datetime.timedelta = 5, stop_timeout: float | datetime.timedelta = 30, terminate_grace: float | datetime.timedelta = 5) -> None:
        ...
    def clone(self, snapshot: str, config: VMConfig) -> VM:
        """
        A new VM that goes on where the snapshot's stopped; any number at once. What ``config`` leaves out is the
        snapshot's, but for labels; cpu, memory and storage cannot differ. Kernel, initrd and command line count
        from its next start.
        
        Raises InvalidArgument, AlreadyExists, CorruptSnapshot; then nothing is left of it.
        """
    def console_log_path(self, ref: str) -> pathlib.Path:
        """
        What the guest printed since it was started; the run before is beside it, with '.1'.
        
        Raises InvalidArgument for cloud-hypervisor, which writes none.
        """
    def console_path(self, ref: str) -> pathlib.Path:
        """
        The guest's serial console while it runs: a UNIX socket, or (firecracker) a fifo that takes the input while
        console_log_path has the output.
        """
    def create(self, config: VMConfig) -> VM:
        """
        Makes a VM and opens its storage interval. Raises InvalidArgument, AlreadyExists, StoreError.
        """
    def delete(self, *refs: str, force: bool = False) -> builtins.list[str]:
        """
        Removes VMs, their folders, and closes their intervals. A running one raises InvalidState unless ``force``,
        which kills it. The loser of a race raises NotFound.
        """
    def hibernate(self, ref: str) -> VM:
        """
        Keeps a running VM's memory in a snapshot of its own and ends its VMM. A failure leaves it running.
        """
    def inspect(self, ref: str) -> VM:
        ...
    def list(self, *, state: cocoon.enums.VMState | str | None = None, labels: collections.abc.Mapping[str, str] = {}) -> builtins.list[VM]:
        """
        By creation; all of ``labels`` must match.
        """
    def log_path(self, ref: str) -> pathlib.Path:
        """
        The VMM's own log since it was started; the run before is beside it, with '.1'.
        """
    def mark_error(self, ref: str) -> None:
        """
        Says nothing in the ledger: nobody proved the process dead.
        """
    def mark_started(self, *refs: str) -> None:
        """
        The state machine itself, for orchestration that owns the process side.
        """
    def mark_stopped(self, *refs: str) -> None:
        """
        For a VM whose process is dead. Raises InvalidState while its VMM is proven alive.
        """
    def pause(self, ref: str) -> None:
        """
        Stops the guest's clock; the compute interval stays open.
        """
    def relabel(self, ref: str, labels: collections.abc.Mapping[str, str | None]) -> VM:
        """
        Merges labels; None removes one. A change of a metered label closes and opens every open interval at one
        instant, so usage by label stays exact.
        """
    def restart(self, *refs: str, force: bool = False) -> builtins.list[str]:
        """
        Stops and starts.
        """
    def restore(self, ref: str, snapshot: str) -> VM:
        """
        The VM goes back to a snapshot, whatever it does now, and takes its cpu, memory and storage.
        
        What can be refused is refused before anything is touched. After a later failure it has its old disks and
        is in error.
        """
    def resume(self, ref: str) -> None:
        ...
    def snapshot(self, ref: str, *, name: str = '', description: str = '') -> Snapshot:
        """
        Memory, devices and disks of a running VM at one moment; the guest goes on at once.
        
        Raises AlreadyExists for the name, InvalidState if no guest runs.
        """
    def start(self, *refs: str) -> builtins.list[str]:
        """
        Boots VMs and opens their compute intervals; a running one is left alone.
        
        Raises NotFound, InvalidState, Inconclusive, VmmError (with the last lines of its log), VmmTimeout.
        """
    def stop(self, *refs: str, force: bool = False, timeout: float | datetime.timedelta | None = None) -> builtins.list[str]:
        """
        Asks the guest to power off, waits ``timeout`` (default: stop_timeout), then ends the VMM; ``force`` kills.
        """
    def wake(self, ref: str) -> VM:
        """
        A hibernated VM goes on, and the snapshot that kept its memory goes. A failure leaves it hibernated.
        """
    @property
    def binary(self) -> pathlib.Path:
        """
        Raises VmmError if it is not there.
        """
    @property
    def hypervisor(self) -> str:
        ...
    @property
    def node(self) -> Node:
        ...
def _arrow_exports() -> int:
    """
    What was handed out as Arrow and not released yet.
    """
def kvm_status() -> tuple[bool, bool, str]:
    """
    Whether KVM runs guests here at hardware's speed; if not, whether it interprets them; and what was found.
    """
__version__: str = '0.1.0'
