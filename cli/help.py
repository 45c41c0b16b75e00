"""Commands as Typer runs them, with our help pages and our errors.

In help, placeholders stand in capitals, no type beside a flag, and every default at the end of its sentence.
"""

from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

from coma.cli.faults import ended_by_failed_stdout, report
from coma.shards.files import local_path
from coma.shards.text import visible


class _Page:
    """What the help pages of commands and of groups have in common; Typer's class is the next base."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, worded for help."""
        typer_command: Any = super()
        return [_worded(each) for each in typer_command.get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; --help and --version print here."""
        typer_command: Any = super()
        with ended_by_failed_stdout():
            parsed: list[str] = typer_command.parse_args(ctx, args)
        return parsed

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page."""
        typer_command: Any = super()
        try:
            typer_command.format_help(ctx, formatter)
        except SystemExit:  # rich's, with exit code 1: the reader of stdout has left
            raise BrokenPipeError from None


class Command(_Page, TyperCommand):
    """A command with such a help page."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the placeholders of the usage line, required ones without brackets."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with file:// URLs as the paths that they stand for; other URLs are refused as paths."""
        ctx.params |= {name: _as_local(value) for name, value in ctx.params.items()}
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:  # Typer would take the one for Ctrl-D, the other for `| head`
            raise SystemExit(report(error)) from None


class Group(_Page, TyperGroup):
    """A group of commands with such a help page."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what a usage error quotes, such as a file's name, is made visible."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):
                error.message = visible(error.message)  # type: ignore[attr-defined]
            raise


def _worded(parameter: Any) -> Any:
    """Return a parameter as help is to show it; doing so again changes nothing."""
    if isinstance(parameter, TyperArgument):
        parameter.metavar = parameter.metavar or parameter.name.upper()
        parameter.display_type = lambda *_, **__: ""  # type: ignore[method-assign]
    elif parameter.metavar is None and parameter.is_bool_flag:
        parameter.metavar = ""
    shown = parameter.default if parameter.show_default is True else parameter.show_default
    if shown is not None and not isinstance(shown, bool) and parameter.help:
        shown = f"{shown:g}" if isinstance(shown, float) else shown
        parameter.help += rf" [dim]\[default: {shown}][/dim]"
        parameter.show_default = False
    return parameter


def _as_local(value: Any) -> Any:
    """Return the value of a parameter with its paths, if it is any, as `local_path` has them."""
    if isinstance(value, list):
        return [_as_local(each) for each in value]
    return local_path(value) if isinstance(value, Path) else value
