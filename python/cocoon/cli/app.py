"""The command tree. A group's or a command's module is imported when it is named: `cocoon vm list` loads no demo.

To add a command: a function with `@command(app, "name")` in the module of its group. To add a group: a module with an
`app`, and a line in `_COMMANDS`.
"""

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from cocoon.cli import errors, output
from cocoon.cli.session import Session

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., None])

# Name, module. The help is the module's own.
_COMMANDS = {
    "demo": "cocoon.cli.demo",
    "vm": "cocoon.cli.vm",
    "snapshot": "cocoon.cli.snapshot",
    "ledger": "cocoon.cli.ledger_group",
    "reconcile": "cocoon.cli.reconcile",
    "gc": "cocoon.cli.gc",
    "doctor": "cocoon.cli.doctor",
    "guest": "cocoon.cli.guest",
}

RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="DIR", help="The node's root folder (else COCOON_ROOT, else the state folder)."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Configuration (else COCOON_CONFIG, else config.toml in the root)."),
]


def _process_lightly(param: Any, context: Any, value: Any, convert: Callable[[Any, Any], Any]) -> Any:
    """Typer converts every value through pydantic, whose import alone costs 60 ms: not for text, nor for nothing."""
    if value is None and not param.required:
        nothing = () if param.multiple else None
        return nothing if param.callback is None else param.callback(context, param, nothing)
    annotation = param.type_descriptor.annotation
    if value and param.callback is None and (annotation is str or annotation == list[str]):
        return value
    return convert(context, value)


class _Option(TyperOption):
    def process_value(self, ctx: Any, value: Any) -> Any:
        return _process_lightly(self, ctx, value, super().process_value)


class _Argument(TyperArgument):
    multiple = False

    def process_value(self, ctx: Any, value: Any) -> Any:
        return _process_lightly(self, ctx, value, super().process_value)


def _lighten(params: list[Any]) -> list[Any]:
    # Typer has no hook for the class of a parameter.
    for param in params:
        if type(param) is TyperOption:
            param.__class__ = _Option
        elif type(param) is TyperArgument:
            param.__class__ = _Argument
    return params


class _Command(TyperCommand):
    """A command whose options cost nothing when they are not given."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _lighten(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for a group."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _lighten(super().get_params(ctx))


class _Root(_Group):
    """The `cocoon` group: loads what is named, and turns errors into one line and an exit code."""

    def list_commands(self, _ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            # Typer looks here for what was probably meant.
            self.commands = {name: self._load(name) for name in _COMMANDS}
            return None
        return self._load(cmd_name)

    def _load(self, name: str) -> Any:
        if name not in self.commands:
            loaded = get_command(import_module(_COMMANDS[name]).app)
            loaded.name = name
            self.commands[name] = loaded
        return self.commands[name]

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        sys.exit(run(lambda: super(_Root, self).main(*args, **kwargs)))


def run(action: Callable[[], object]) -> int:
    """The exit code of `action`; what it raises is said on stderr."""
    from cocoon import CocoonError

    try:
        code = action()
        sys.stdout.flush()
    except CocoonError as error:
        output.fail(str(error), errors.hint(error))
        return errors.exit_code(error)
    except errors.UsageError as error:
        output.fail(str(error))
        return errors.USAGE
    except errors.CommandError as error:
        output.fail(str(error), error.hint)
        return error.code
    except typer.TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        output.fail("interrupted")
        return errors.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered must not fail again at exit.
        _drop_stdout()
        return errors.FAILED
    except OSError as error:
        output.fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return errors.FAILED
    return code if isinstance(code, int) else errors.DONE


def _drop_stdout() -> None:
    import os

    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return errors.USAGE
    hint = f"`{context.command_path} --help` shows what there is" if context is not None else ""
    output.fail(error.format_message(), hint)
    return error.exit_code


def command(group: typer.Typer, name: str) -> Callable[[CommandFunction], CommandFunction]:
    """Registers a command whose first argument is the session; it takes --root and --config like all others.

    An argument that is a dataclass stands for options of several commands: each of its fields becomes one.
    """

    def register(function: CommandFunction) -> CommandFunction:
        own = list(signature(function).parameters.values())[1:]
        groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}

        def run_command(
            ctx: typer.Context, *, root: str | None = None, config: str | None = None, **given: Any
        ) -> None:
            for argument, kind in groups.items():
                given[argument] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            # `cocoon --root X vm list` and `cocoon vm list --root X` are the same.
            above = ctx.find_root().params
            root = above.get("root") if root is None else root
            config = above.get("config") if config is None else config
            with Session(root, config) as session:
                function(session, **given)

        parameters = [Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        for parameter in own:
            if parameter.name in groups:
                parameters += signature(parameter.annotation).parameters.values()
            else:
                parameters.append(parameter)
        parameters += [
            Parameter("root", Parameter.KEYWORD_ONLY, default=None, annotation=RootOption),
            Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption),
        ]
        parameters[1:] = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters[1:]]
        run_command.__signature__ = signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        run_command.__annotations__ = {p.name: p.annotation for p in parameters}
        run_command.__doc__ = function.__doc__
        run_command.__name__ = function.__name__
        group.command(name, cls=_Command)(run_command)
        return function

    return register


def new_group(help_text: str) -> typer.Typer:
    """A Typer for the module of one group, or of one command."""
    return typer.Typer(cls=_Group, help=help_text, no_args_is_help=True, add_completion=False)


app = typer.Typer(cls=_Root, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from cocoon import __version__

        print(f"cocoon {__version__}")
        raise typer.Exit


@app.callback()
def _root_options(
    root: RootOption = None,
    config: ConfigOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run microVMs without a daemon, and keep an exact ledger of what they used."""


def build() -> Any:
    """The command, ready to be run."""
    return get_command(app)
