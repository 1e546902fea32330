"""One operation on several VMs: grouped by hypervisor, every reference tried, every result said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from cocoon.cli import errors, output
from cocoon.cli.session import Session

if TYPE_CHECKING:
    from cocoon import VM, Backend, CocoonError

# Does it to the VMs with these ids; returns the ids for which it was done, and the errors of the others.
Operation = Callable[["Backend", Sequence[str]], tuple[Sequence[str], Mapping[str, "CocoonError"]]]


@dataclass
class Outcome:
    """By the references as given."""

    succeeded: dict[str, "VM"] = field(default_factory=dict)  # as they were before
    errors: dict[str, "CocoonError"] = field(default_factory=dict)


def together(call: Callable[["Backend", Sequence[str]], Sequence[str]]) -> Operation:
    """An operation by a verb of `Backend` that takes several references and raises BulkError."""

    def operate(backend: "Backend", ids: Sequence[str]) -> tuple[Sequence[str], Mapping[str, "CocoonError"]]:
        from cocoon import BulkError, CocoonError

        try:
            return call(backend, ids), {}
        except BulkError as error:
            return error.succeeded, error.errors
        except CocoonError as error:
            # Of one reference its own error; of several, one that concerns them all.
            return [], dict.fromkeys(ids, error)

    return operate


def one_by_one(call: Callable[["Backend", str], object]) -> Operation:
    """An operation by a verb of `Backend` that takes one reference."""

    def operate(backend: "Backend", ids: Sequence[str]) -> tuple[Sequence[str], Mapping[str, "CocoonError"]]:
        from cocoon import CocoonError

        done: list[str] = []
        failed: dict[str, CocoonError] = {}
        for vm_id in ids:
            try:
                call(backend, vm_id)
            except CocoonError as error:
                failed[vm_id] = error
            else:
                done.append(vm_id)
        return done, failed

    return operate


def apply(session: Session, refs: Sequence[str], operation: Operation) -> Outcome:
    """Tries all of them. A VM that is named twice is done once."""
    from cocoon import CocoonError

    outcome = Outcome()
    groups: dict[str, dict[str, tuple[str, VM]]] = {}
    for ref in refs:
        try:
            vm = session.node.find(ref)
        except CocoonError as error:
            outcome.errors[ref] = error
        else:
            groups.setdefault(vm.hypervisor, {}).setdefault(vm.id, (ref, vm))
    for hypervisor, wanted in groups.items():
        done, failed = operation(session.backend(hypervisor), list(wanted))
        outcome.succeeded.update(wanted[vm_id] for vm_id in done)
        outcome.errors.update((wanted[vm_id][0], error) for vm_id, error in failed.items())
    # In the order of the command line, whatever the grouping was.
    outcome.succeeded = {ref: outcome.succeeded[ref] for ref in dict.fromkeys(refs) if ref in outcome.succeeded}
    outcome.errors = {ref: outcome.errors[ref] for ref in dict.fromkeys(refs) if ref in outcome.errors}
    return outcome


def report(outcome: Outcome, verb: str, done: str, *, as_json: bool, quiet: bool) -> None:
    """Says what was done and what was not, and ends the command with the fitting exit code."""
    if as_json:
        output.print_json(
            {
                "succeeded": [vm.id for vm in outcome.succeeded.values()],
                "errors": {ref: str(error) for ref, error in outcome.errors.items()},
            }
        )
    else:
        for vm in outcome.succeeded.values():
            output.say(vm.id if quiet else f"{done} {vm.name} ({vm.id})")
    several = len(outcome.errors) + len(outcome.succeeded) > 1
    for ref, error in outcome.errors.items():
        output.fail(str(error), errors.hint(error, verb, ref), ref=ref if several else "")
    if outcome.errors:
        alone = next(iter(outcome.errors.values()))
        raise typer.Exit(errors.PARTIAL if several else errors.exit_code(alone))
