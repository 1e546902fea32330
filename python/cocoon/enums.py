"""The words of the ledger and of the state machine, as strings that are also names."""

from enum import StrEnum


class Kind(StrEnum):
    """What an entry of the ledger says: which dimension of what opens or closes."""

    VM_COMPUTE_START = "vm.compute.start"
    VM_COMPUTE_STOP = "vm.compute.stop"
    VM_STORAGE_START = "vm.storage.start"
    VM_STORAGE_STOP = "vm.storage.stop"
    SNAP_STORAGE_START = "snap.storage.start"
    SNAP_STORAGE_STOP = "snap.storage.stop"


class Reason(StrEnum):
    """Why an interval was opened or closed."""

    BOOT = "boot"
    RESTART = "restart"
    CLONE = "clone"
    RESTORE = "restore"
    HIBERNATE_WAKE = "hibernate-wake"
    STOP_USER = "stop-user"
    STOP_CRASH = "stop-crash"
    VM_REMOVE = "vm-rm"
    SNAPSHOT_REMOVE = "snap-rm"
    RELABEL = "relabel"


class VMState(StrEnum):
    """The state that a VM's record is in; whether its VMM is alive is another question (``VM.alive``)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    HIBERNATED = "hibernated"
    ERROR = "error"
