"""Every error that cocoon raises: one base, one class per thing a caller can do about it."""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[CocoonError], message: str, facts: dict[str, Any]) -> CocoonError:
    return cls(message, **facts)


class CocoonError(Exception):
    """Base of all below. The message says what was tried, on what, and what is allowed or what the system answered."""

    _facts: tuple[str, ...] = ()

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {name: getattr(self, name) for name in self._facts})


class NotFound(CocoonError, LookupError):
    """Nothing has this id, name or prefix, or it was removed meanwhile."""

    _facts = ("ref",)

    def __init__(self, message: str = "", *, ref: str = "") -> None:
        super().__init__(message)
        self.ref = ref


class AmbiguousRef(CocoonError, LookupError):
    """A name or prefix fits several: ``candidates``."""

    _facts = ("ref", "candidates")

    def __init__(self, message: str = "", *, ref: str = "", candidates: list[str] | None = None) -> None:
        super().__init__(message)
        self.ref = ref
        self.candidates = list(candidates or ())


class AlreadyExists(CocoonError):
    """The name is taken, by ``id``."""

    _facts = ("name", "id")

    def __init__(self, message: str = "", *, name: str = "", id: str = "") -> None:  # noqa: A002 - the field's word
        super().__init__(message)
        self.name = name
        self.id = id


class InvalidArgument(CocoonError, ValueError):
    """The message names the argument, its value and what is allowed."""


class InvalidState(CocoonError):
    """The state that refuses, such as removing a running VM without force."""

    _facts = ("state",)

    def __init__(self, message: str = "", *, state: str = "") -> None:
        super().__init__(message)
        self.state = state


class Inconclusive(CocoonError):
    """Liveness could not be decided: nothing was done."""


class VmmError(CocoonError):
    """The VMM refused, failed or died: its answer, and the last lines of its log."""

    _facts = ("status", "body", "log_tail")

    def __init__(self, message: str = "", *, status: int = 0, body: str = "", log_tail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.log_tail = log_tail


class VmmTimeout(VmmError, TimeoutError):
    """The VMM did not answer in time."""


class _PathError(CocoonError, OSError):
    _facts = ("path", "code")

    def __init__(self, message: str = "", *, path: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.code = code
        if code:
            self.errno = code


class StoreError(_PathError):
    """Database or disk: ``path``, and ``errno`` where the system gave one."""


class LedgerError(_PathError):
    """The ledger cannot be read or written: ``path``."""


class CorruptSnapshot(CocoonError, ValueError):
    """An archive or its metadata was refused."""

    _facts = ("path", "member")

    def __init__(self, message: str = "", *, path: str = "", member: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.member = member


class BulkError(CocoonError):
    """Some of several references failed: ``succeeded`` holds ids, ``errors`` is keyed by the reference as given."""

    _facts = ("succeeded", "errors")

    def __init__(
        self, message: str = "", *, succeeded: list[str] | None = None, errors: dict[str, CocoonError] | None = None
    ) -> None:
        super().__init__(message)
        self.succeeded = list(succeeded or ())
        self.errors = dict(errors or {})
