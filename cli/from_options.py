"""Command-line parameters of an options dataclass."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from coma.cli import option_file
from coma.errors import UsageError
from coma.shards.option import Option, options_of

_METAVARS = {int: "N", float: "X", Path: "PATH"}
Command = Callable[..., None]


def from_options(options: type, *, file: bool = False) -> Callable[[Command], Command]:
    """Give a command a parameter for each option of a dataclass, before its own.

    The command's first argument is the dataclass made of them; Typer never sees it. With `file` they may stand in a
    file as well (`coma.cli.option_file`).
    """

    def decorate(command: Command) -> Command:
        _, *own = inspect.signature(command).parameters.values()
        described = options_of(options)
        parameters = [*map(_parameter, described), *(option_file.parameters(described) if file else ()), *own]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {each.name: _value(each, given.pop(each.name)) for each in described}
            if not file:
                command(options(**values), **given)
                return
            options_given = option_file.GivenOptions(options, given)
            config = options_given.make(options, values)
            if not options_given.prints(config):
                command(config, **given)

        keyword_only = [each.replace(kind=each.KEYWORD_ONLY) for each in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(each: Option) -> inspect.Parameter:
    """Return the parameter that Typer makes a flag or a positional argument of."""
    many = each.kind is list or each.several
    kind: Any = str if each.parse is not None or each.choices else list[str] if many else each.kind
    default = inspect.Parameter.empty if each.default is ... else _as_text(each.default)
    how: dict[str, Any] = {"help": each.help, "show_default": each.shown_default or True, "rich_help_panel": each.panel}
    if each.argument:
        about = typer.Argument(metavar=each.metavar, **how)
    else:
        metavar = each.metavar or "|".join(each.choices) or _METAVARS.get(each.kind)
        about = typer.Option(each.flag, metavar=metavar, **how)
    annotation: Any = Annotated[kind | None if default is None else kind, about]
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _as_text(default: Any) -> Any:
    """Return a default as it is typed, if it is a list."""
    return ",".join(default) if isinstance(default, tuple) else default


def _value(each: Option, given: Any) -> Any:
    """Return the field's value for what was typed."""
    if given is None or (each.several and not given):
        return None
    if each.several:
        return tuple(given)
    if each.parse is not None:
        return each.parse(given, each.flag)
    if each.choices and each.kind is not str and given not in each.choices:
        try:
            return each.kind(given)
        except ValueError:
            raise UsageError(f"{each.flag} is {given!r}; it must be {each.limits}") from None
    return given
