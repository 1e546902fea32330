"""A node whose VMs live in a random simulation, and the ledger lines that its engine would write."""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heapreplace
from time import gmtime
from typing import BinaryIO

from cocoon import Entry, InvalidArgument

# Every finding of the audit. A torn line is the file's last one, so there is at most one.
FAULTS = (
    "torn-line",
    "bad-json",
    "bad-field",
    "unknown-kind",
    "seq-gap",
    "seq-repeat",
    "seq-backwards",
    "double-start",
    "stop-without-start",
    "shape-changed",
    "hypervisor-changed",
    "clock-stepped",
    "negative-length",
    "compute-outlives-storage",
    "after-removal",
    "unknown-source-snapshot",
)
_SECOND = 1_000_000_000
_HOUR = 3600 * _SECOND
_DAY = 24 * _HOUR
_CHUNK = 1 << 15  # lines that are kept in memory
_HYPERVISORS = ("cloud-hypervisor", "firecracker", "qemu")
_GIB = 1 << 30
_TENANTS = ("acme", "globex", "initech", "R&D", "zażółć", None)
_TIERS = ("gold", "silver", None)
_CLOCK = [f"T{hour:02}:{minute:02}:{second:02}" for hour in range(24) for minute in range(60) for second in range(60)]
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _BASE32 for second in _BASE32]
_BAD_JSON = ('{"kind":"vm.compute.start","vm_i', "\0" * 64, "Segmentation fault", "[]", '{"kind":"\udcff\udcfe"}')
_BAD_FIELDS = (
    '{"kind":"vm.compute.start","vm_id":"broken","shape":{"cpu":-1},"emitted_at":"2026-03-01T00:00:00Z"}',
    '{"kind":"vm.compute.start","vm_id":"broken","shape":{},"emitted_at":"yesterday"}',
    '{"kind":"vm.storage.start","shape":{},"emitted_at":"2026-03-01T00:00:00Z"}',
    '{"kind":"vm.storage.start","vm_id":"broken","vm_id":"twice","shape":{},"emitted_at":"2026-03-01T00:00:00Z"}',
)
_UNKNOWN_KIND = '{"kind":"vm.network.start","vm_id":"broken","shape":{},"emitted_at":"2026-03-01T00:00:00Z"}'


@dataclass(frozen=True)
class Fault:
    """One fault that was planted, as the audit is to report it."""

    code: str
    line: int
    offset: int
    seq: int | None = None
    vm_id: str = ""
    snapshot_id: str = ""


@dataclass(slots=True)
class _Spec:
    """What is billed, and its text in a line."""

    hypervisor: str
    cpu: int
    mem_bytes: int
    storage_bytes: int
    text: str = ""

    def __post_init__(self) -> None:
        self.text = (
            f',"hypervisor":"{self.hypervisor}","shape":{{"cpu":{self.cpu},"mem_bytes":{self.mem_bytes},'
            f'"storage_bytes":{self.storage_bytes}}},"emitted_at":"'
        )


@dataclass(slots=True)
class _Snapshot:
    id: str
    spec: _Spec
    text: str  # as _Spec.text
    interval: int
    kept: bool = False  # by a hibernated VM


@dataclass(slots=True)
class _Vm:
    id: str
    spec: _Spec
    labels: str  # their text in a line
    act: Callable[["_Vm"], int]  # what it does next; returns the mean time to the one after
    running: bool = False
    compute: int = 0  # interval
    storage: int = 0
    began: int = 0  # the compute interval
    snapshot: _Snapshot | None = None  # its latest


@dataclass(slots=True)
class _Mark:
    """A fault whose line is not written yet."""

    code: str
    line: int
    seq: int | None
    vm_id: str = ""
    snapshot_id: str = ""


@dataclass
class _Output:
    """Lines on their way to the file, and where the faults among them are."""

    file: BinaryIO
    lines: list[str] = field(default_factory=list)
    marks: list[_Mark] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    written_lines: int = 0
    written_bytes: int = 0

    def next_line(self) -> int:
        return self.written_lines + len(self.lines) + 1

    def flush(self) -> None:
        offset, line = self.written_bytes, self.written_lines + 1
        for mark in self.marks:
            offset += len(
                _encode("".join(self.lines[line - 1 - self.written_lines : mark.line - 1 - self.written_lines]))
            )
            line = mark.line
            self.faults.append(Fault(mark.code, mark.line, offset, mark.seq, mark.vm_id, mark.snapshot_id))
        self.marks.clear()
        data = _encode("".join(self.lines))
        self.file.write(data)
        self.written_lines += len(self.lines)
        self.written_bytes += len(data)
        self.lines.clear()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class SimulatedNode:
    """The simulated node. Times are nanoseconds since the epoch on a clock that nobody steps."""

    def __init__(
        self, file: BinaryIO, entries: int, *, seed: int, begin: datetime, days: float, vms: int, faults: int
    ) -> None:
        # Only random() and getrandbits(), whose sequences every version of Python keeps.
        self.random = random.Random(seed).random
        self.bits = random.Random(seed + 1).getrandbits
        self.output = _Output(file)
        self.entries = entries
        self.wanted = entries
        self.seq = 0
        self.now = int(begin.timestamp()) * _SECOND + 1
        self.first = self.now
        self.offset = 0  # of the wall clock
        self.midnight = 0  # of the day that `day` names
        self.day = "1970-01-01"
        self.wall = ""
        self.tail = ""
        self.booted = self.now - int((1 + 20 * self.random()) * _DAY)
        self.boot_text = self.new_boot()
        # About 1.35 entries come of one event.
        self.dwell = int(vms * days * _DAY * 1.35 / entries)
        self.next_reboot = self.now + int(days * _DAY * (0.3 + 0.2 * self.random()))
        self.reboot_every = days * _DAY / 3
        self.labels = [_labels_text(tenant, tier) for tenant in _TENANTS for tier in _TIERS]
        self.snapshots: list[_Snapshot] = []
        self.most_snapshots = max(4, vms // 2)
        self.removed: _Vm | None = None
        self.slots = [self.new_vm() for _ in range(vms)]
        spread = self.dwell
        self.heap = [(self.now + int(self.random() * spread), slot) for slot in range(vms)]
        heapify(self.heap)
        self.plan = self.plan_faults(faults)

    def plan_faults(self, each: int) -> deque[tuple[int, str]]:
        """Which fault is planted behind how many lines. Behind a gap the audit can no longer tell all the others."""
        if not each:
            return deque()
        early = [code for code in FAULTS if code not in {"torn-line", "seq-gap"} for _ in range(each)]
        order = sorted(range(len(early)), key=lambda _: self.random())
        plan = [(int(self.entries * (0.1 + 0.65 * i / len(early))), early[code]) for i, code in enumerate(order)]
        plan += [(int(self.entries * (0.8 + 0.15 * i / each)), "seq-gap") for i in range(each)]
        return deque(plan)

    def run(self) -> None:
        """Writes the whole ledger."""
        heap, slots, plan, lines = self.heap, self.slots, self.plan, self.output.lines
        log, rand = math.log, self.random
        torn = bool(plan)
        fault_at = plan[0][0] if plan else self.entries + 1
        while self.wanted > 0:
            due, slot = heap[0]
            if due >= self.next_reboot:
                self.reboot()
            vm = slots[slot]
            self.at(due)
            mean = 0
            if self.entries - self.wanted >= fault_at and self.plant(plan[0][1], vm):
                mean = self.dwell
                plan.popleft()
                fault_at = plan[0][0] if plan else self.entries + 1
            elif self.wanted < 4:
                self.one_entry(vm)
            else:
                mean = vm.act(vm)
            heapreplace(heap, (self.now + 1 + int(-log(1 - rand()) * mean), slot))
            if len(lines) >= _CHUNK:
                self.output.flush()
        if plan:
            raise InvalidArgument(f"faults: no VM was ever in a state to plant {plan[0][1]}; allowed are more entries")
        if torn:
            self.mark("torn-line", seq=None)
            lines.append(f'{{"kind":"vm.compute.start","vm_id":"{slots[0].id}","reas')
        self.output.flush()

    # ---------------------------------------------------------------- clocks

    def at(self, when: int) -> None:
        """It is `when`, or just after what was last if that is later."""
        now = self.now = when if when > self.now else self.now + 1 + int(self.random() * 3_000_000)
        second, fraction = divmod(now + self.offset - self.midnight, _SECOND)
        if not 0 <= second < 86_400:
            days, second = divmod(second, 86_400)
            self.midnight += days * _DAY
            year, month, of_month, *_ = gmtime(self.midnight // _SECOND)
            self.day = f"{year:04}-{month:02}-{of_month:02}"
        if fraction % 10:
            self.wall = f"{self.day}{_CLOCK[second]}.{fraction:09}Z"
        else:
            decimals = f".{fraction:09}".rstrip("0") if fraction else ""
            self.wall = f"{self.day}{_CLOCK[second]}{decimals}Z"
        self.tail = f"{self.boot_text}{now - self.booted}}}\n"

    def new_boot(self) -> str:
        return f',"boot_id":"{self.bits(32):08x}","uptime_ns":'

    def wall_of(self, when: int) -> str:
        kept = self.now, self.wall, self.tail
        self.now = when - 1
        self.at(when)
        wall = self.wall
        self.now, self.wall, self.tail = kept
        return wall

    def reboot(self) -> None:
        """The host goes down, and the first opener of the node finds every VM dead."""
        down = self.next_reboot
        old_boot = self.booted
        self.booted = max(down, self.now) + int((5 + 20 * self.random()) * _SECOND)
        self.boot_text = self.new_boot()
        self.next_reboot = down + int((0.5 + self.random()) * self.reboot_every)
        self.at(self.booted + int((20 + 60 * self.random()) * _SECOND))
        for vm in self.slots:
            if not vm.running or self.wanted < 4:
                continue
            ended = max(vm.began, down - int(self.random() * _SECOND))
            if self.random() < 0.3:
                seen = f',"ended_at":"{self.wall_of(ended)}","ended_uptime_ns":{ended - old_boot},"evidence":"shim"'
            else:
                seen = f',"alive_until":"{self.wall_of(vm.began + int((ended - vm.began) * self.random()))}"'
            self.at(self.now + int(self.random() * 2_000_000))
            self.stop_compute(vm, ',"reason":"stop-crash"', seen)

    # ---------------------------------------------------------------- lines

    def start_compute(self, vm: _Vm, reason: str) -> None:
        self.seq = seq = self.seq + 1
        self.output.lines.append(
            f'{{"kind":"vm.compute.start","vm_id":"{vm.id}"{reason}{vm.spec.text}{self.wall}","seq":{seq},'
            f'"interval":{seq}{vm.labels}{self.tail}'
        )
        self.wanted -= 1
        vm.running = True
        vm.compute = seq
        vm.began = self.now
        vm.act = self.while_running

    def stop_compute(self, vm: _Vm, reason: str, seen: str = "") -> None:
        self.seq = seq = self.seq + 1
        self.output.lines.append(
            f'{{"kind":"vm.compute.stop","vm_id":"{vm.id}"{reason}{vm.spec.text}{self.wall}","seq":{seq},'
            f'"interval":{vm.compute}{seen}{self.tail}'
        )
        self.wanted -= 1
        vm.running = False
        vm.act = self.while_stopped

    def start_storage(self, vm: _Vm, reason: str) -> None:
        self.seq = seq = self.seq + 1
        self.output.lines.append(
            f'{{"kind":"vm.storage.start","vm_id":"{vm.id}"{reason}{vm.spec.text}{self.wall}","seq":{seq},'
            f'"interval":{seq}{vm.labels}{self.tail}'
        )
        self.wanted -= 1
        vm.storage = seq

    def stop_storage(self, vm: _Vm, reason: str) -> None:
        self.seq = seq = self.seq + 1
        self.output.lines.append(
            f'{{"kind":"vm.storage.stop","vm_id":"{vm.id}"{reason}{vm.spec.text}{self.wall}","seq":{seq},'
            f'"interval":{vm.storage}{self.tail}'
        )
        self.wanted -= 1

    def start_snapshot(self, vm: _Vm, *, kept: bool = False) -> _Snapshot:
        self.seq = seq = self.seq + 1
        size = int(vm.spec.mem_bytes * (0.2 + 0.8 * self.random())) + int(vm.spec.storage_bytes * self.random())
        text = f',"hypervisor":"{vm.spec.hypervisor}","shape":{{"storage_bytes":{size}}},"emitted_at":"'
        snapshot = _Snapshot(self.new_id(), vm.spec, text, seq, kept)
        self.output.lines.append(
            f'{{"kind":"snap.storage.start","snapshot_id":"{snapshot.id}"{text}{self.wall}","seq":{seq},'
            f'"interval":{seq}{self.tail}'
        )
        self.wanted -= 1
        return snapshot

    def stop_snapshot(self, snapshot: _Snapshot) -> None:
        self.seq = seq = self.seq + 1
        self.output.lines.append(
            f'{{"kind":"snap.storage.stop","snapshot_id":"{snapshot.id}","reason":"snap-rm"{snapshot.text}'
            f'{self.wall}","seq":{seq},"interval":{snapshot.interval}{self.tail}'
        )
        self.wanted -= 1

    # ---------------------------------------------------------------- what VMs do

    def new_id(self) -> str:
        return _base32(self.bits(130))

    def new_vm(self, spec: _Spec | None = None) -> _Vm:
        if spec is None:
            hypervisor = _HYPERVISORS[int(self.random() ** 1.5 * 3)]
            cpu = 1 << int(self.random() * 4)
            memory = (_GIB // 2) << int(self.random() * 5)
            spec = _Spec(hypervisor, cpu, memory, int(4 + 60 * self.random()) * _GIB)
        return _Vm(self.new_id(), spec, self.labels[int(self.random() * len(self.labels))], self.while_absent)

    def while_absent(self, vm: _Vm) -> int:
        if self.snapshots and self.random() < 0.3:
            snapshot = self.snapshots[int(self.random() * len(self.snapshots))]
            new = self.new_vm(snapshot.spec)
            self.slots[self.heap[0][1]] = new
            source = f',"source_snapshot_id":"{snapshot.id}","reason":"clone"'
            self.start_storage(new, source)
            self.start_compute(new, source)
            return self.dwell
        self.start_storage(vm, ',"reason":"boot"')
        vm.act = self.while_created
        return 2 * _SECOND

    def while_created(self, vm: _Vm) -> int:
        self.start_compute(vm, ',"reason":"boot"')
        return self.dwell

    def while_running(self, vm: _Vm) -> int:
        chance = self.random()
        if chance < 0.34:
            self.stop_compute(vm, ',"reason":"stop-user"')
            return self.dwell
        if chance < 0.54:  # restart
            self.stop_compute(vm, ',"reason":"stop-user"')
            self.at(self.now + int(_SECOND * (0.2 + self.random())))
            self.start_compute(vm, ',"reason":"restart"')
            return self.dwell
        if chance < 0.66:
            return self.crash(vm)
        if chance < 0.82:
            self.take_snapshot(vm)
            return self.dwell
        if chance < 0.88:
            return self.hibernate(vm)
        if chance < 0.93:
            return self.restore(vm)
        if chance < 0.97:
            self.relabel(vm)
            return self.dwell
        self.stop_compute(vm, ',"reason":"stop-user"')
        self.remove(vm)
        return self.dwell

    def while_stopped(self, vm: _Vm) -> int:
        if self.random() < 0.22:
            self.remove(vm)
            return self.dwell
        self.start_compute(vm, ',"reason":"restart"')
        return self.dwell

    def crash(self, vm: _Vm) -> int:
        """Found dead, now or long after it died; mostly somebody saw when."""
        chance = self.random()
        ended = vm.began + int((self.now - vm.began) * (1 - 0.2 * self.random()))
        if vm.began < self.booted:
            ended = max(ended, self.booted)  # never: a reboot closes what ran
        if chance < 0.75:
            evidence = "shim" if chance < 0.5 else "watch" if chance < 0.65 else "log"
            seen = (
                f',"ended_at":"{self.wall_of(ended)}","ended_uptime_ns":{ended - self.booted},"evidence":"{evidence}"'
            )
        else:
            seen = f',"alive_until":"{self.wall_of(ended)}"'
        self.stop_compute(vm, ',"reason":"stop-crash"', seen)
        return 30 * _SECOND

    def take_snapshot(self, vm: _Vm) -> None:
        vm.snapshot = self.start_snapshot(vm)
        self.snapshots.append(vm.snapshot)
        if len(self.snapshots) > self.most_snapshots:
            oldest = int(self.random() * len(self.snapshots) / 2)
            self.at(self.now + _SECOND)
            self.stop_snapshot(self.snapshots.pop(oldest))

    def hibernate(self, vm: _Vm) -> int:
        kept = self.start_snapshot(vm, kept=True)
        self.at(self.now + 40_000_000)
        self.stop_compute(vm, ',"reason":"stop-user"')

        def wake(vm: _Vm) -> int:
            self.start_compute(vm, f',"source_snapshot_id":"{kept.id}","reason":"hibernate-wake"')
            self.at(self.now + 20_000_000)
            self.stop_snapshot(kept)
            return self.dwell

        vm.act = wake
        return self.dwell

    def restore(self, vm: _Vm) -> int:
        snapshot = vm.snapshot
        if snapshot is None or snapshot not in self.snapshots[-8:]:
            self.take_snapshot(vm)
            return self.dwell
        source = f',"source_snapshot_id":"{snapshot.id}","reason":"restore"'
        self.stop_compute(vm, source)

        def done(vm: _Vm) -> int:
            self.stop_storage(vm, source)
            vm.spec = snapshot.spec
            self.start_storage(vm, source)
            self.start_compute(vm, source)
            return self.dwell

        vm.act = done
        return 3 * _SECOND

    def relabel(self, vm: _Vm) -> None:
        reason = ',"reason":"relabel"'
        self.stop_compute(vm, reason)
        self.stop_storage(vm, reason)
        vm.labels = self.labels[int(self.random() * len(self.labels))]
        self.start_storage(vm, reason)
        self.start_compute(vm, reason)

    def remove(self, vm: _Vm) -> None:
        self.stop_storage(vm, ',"reason":"vm-rm"')
        self.removed = vm
        self.slots[self.heap[0][1]] = self.new_vm()

    def one_entry(self, vm: _Vm) -> None:
        """The last few: nothing that takes more than one line."""
        if vm.running:
            self.stop_compute(vm, ',"reason":"stop-user"')
        elif vm.storage:
            self.start_compute(vm, ',"reason":"restart"')
        else:
            self.start_storage(vm, ',"reason":"boot"')
            vm.act = self.while_created

    # ---------------------------------------------------------------- faults

    def mark(self, code: str, *, seq: int | None, vm_id: str = "", snapshot_id: str = "") -> None:
        """The next line has this fault."""
        self.output.marks.append(_Mark(code, self.output.next_line(), seq, vm_id, snapshot_id))

    def plant(self, code: str, vm: _Vm) -> bool:
        """Plants it with this VM; False if that is not possible now."""
        lines, index = self.output.lines, len(self.output.marks)
        if code in {"bad-json", "bad-field", "unknown-kind"}:
            self.mark(code, seq=None)
            texts = {"bad-json": _BAD_JSON, "bad-field": _BAD_FIELDS}.get(code, (_UNKNOWN_KIND,))
            lines.append(texts[int(self.random() * len(texts))] + "\n")
        elif code == "after-removal" and self.removed is not None:
            self.mark(code, seq=self.seq + 1, vm_id=self.removed.id)
            self.stop_storage(self.removed, ',"reason":"vm-rm"')
        elif code in {"stop-without-start", "unknown-source-snapshot"}:
            if vm.act == self.while_stopped and vm.compute:
                self.mark(code, seq=self.seq + 1, vm_id=vm.id)
                if code == "stop-without-start":
                    self.stop_compute(vm, ',"reason":"stop-user"')
                else:
                    self.start_compute(vm, f',"source_snapshot_id":"{self.new_id()}","reason":"hibernate-wake"')
        elif vm.running and vm.began > self.booted and code != "after-removal":
            self.plant_in_running(code, vm)
        return len(self.output.marks) > index

    def plant_in_running(self, code: str, vm: _Vm) -> None:
        user, spec = ',"reason":"stop-user"', vm.spec
        if code == "clock-stepped":
            self.step_clock()
        if code == "seq-gap":
            self.mark(code, seq=self.seq + 1)
            self.seq += 1 + int(self.random() * 5)
        elif code not in {"seq-repeat", "seq-backwards"}:
            self.mark(code, seq=self.seq + 1, vm_id=vm.id)
        match code:
            case "double-start":
                self.start_compute(vm, ',"reason":"restart"')
            case "shape-changed":
                vm.spec = _Spec(spec.hypervisor, spec.cpu + 1, spec.mem_bytes, spec.storage_bytes)
                self.stop_compute(vm, user)
                vm.spec = spec
            case "hypervisor-changed":
                other = _HYPERVISORS[_HYPERVISORS.index(spec.hypervisor) - 1]
                vm.spec = _Spec(other, spec.cpu, spec.mem_bytes, spec.storage_bytes)
                self.stop_compute(vm, user)
                vm.spec = spec
            case "negative-length":
                ended = max(self.booted, vm.began - _SECOND)
                seen = f',"ended_at":"{self.wall_of(ended)}","ended_uptime_ns":{ended - self.booted},"evidence":"log"'
                self.stop_compute(vm, ',"reason":"stop-crash"', seen)
            case "compute-outlives-storage":
                self.stop_storage(vm, ',"reason":"relabel"')
                self.at(self.now + _SECOND)
                self.start_storage(vm, ',"reason":"relabel"')
            case "seq-backwards":
                self.seq += 1
                self.snapshots.append(self.start_snapshot(vm))
                self.seq -= 2
                self.mark(code, seq=self.seq + 1, vm_id=vm.id)
                self.stop_compute(vm, user)
                self.seq += 1
            case _:
                self.stop_compute(vm, user)
                if code == "seq-repeat":
                    self.mark(code, seq=self.seq, vm_id=vm.id)
                    self.output.lines.append(self.output.lines[-1])
                    self.wanted -= 1

    def step_clock(self) -> None:
        """By at least 2 s. Back only if no reboot is near: an interval over both would be too short to be true."""
        by = int((2 + 600 * self.random()) * _SECOND) + (self.now - self.booted) // 100_000
        back = self.random() < 0.5 and self.next_reboot - self.now > 2 * _HOUR
        self.offset += -by if back else by
        self.at(self.now + 1)


def _labels_text(tenant: str | None, tier: str | None) -> str:
    labels = {key: value for key, value in (("tenant", tenant), ("tier", tier)) if value is not None}
    if not labels:
        return ""
    line = Entry("vm.storage.start", vm_id="x", emitted_at=0, labels=labels).to_json()
    return line[line.index(',"labels"') : -1]


def _base32(number: int) -> str:
    """26 characters of 130 bits."""
    pairs = _PAIRS
    text = ""
    for _ in range(13):
        text += pairs[number & 1023]
        number >>= 10
    return text
