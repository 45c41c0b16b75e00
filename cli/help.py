"""Help pages: placeholders in capitals, no type beside a flag, every default at the end of its sentence."""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command with such a help page."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, worded for help."""
        return [_worded(each) for each in super().get_params(ctx)]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the placeholders of the usage line, required ones without brackets."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """A group of commands with such a help page."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, worded for help."""
        return [_worded(each) for each in super().get_params(ctx)]


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
