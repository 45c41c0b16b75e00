"""Options from a file or from a run: --config, --like and --print-config of the commands that train.

What the file holds becomes the default of the command's parameters, so that the command line overrides it.
"""

from collections.abc import Iterable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from coma.cli import console
from coma.errors import UsageError
from coma.shards.option import Option, options_of
from coma.training import FinetuneConfig, PretrainConfig
from coma.training.config.options import RunConfig

_OPTIONS: dict[str, Any] = {"pretrain": PretrainConfig, "plan": PretrainConfig, "finetune": FinetuneConfig}
_PANEL = "Options from a file"


def _defaults(values: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the options of a file as defaults of a command's parameters, of which some take a list."""
    several = {each.name for each in options_of(_OPTIONS[command]) if each.several}
    return {name: [it] if name in several and isinstance(it, str) else it for name, it in values.items()}


def _read_config(context: typer.Context, file: str | None) -> str | None:
    from coma.training.config.config_file import read_options

    if file is not None and context.info_name:
        context.default_map = _defaults(read_options(file, _OPTIONS[context.info_name]), context.info_name)
    return file


def _read_run(context: typer.Context, run: Path | None) -> Path | None:
    from coma.training.config.config_file import options_like

    if run is not None and context.info_name:
        if context.default_map:
            raise UsageError("--config and --like exclude each other: give one")
        context.default_map = _defaults(options_like(run, _OPTIONS[context.info_name]), context.info_name)
    return run


ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_read_config,
        metavar="FILE",
        help="File of options in YAML, TOML or JSON, RUN/config.json, - for stdin, or the name of a packaged recipe. "
        "Flags override it.",
        show_default="none",
        rich_help_panel=_PANEL,
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        is_eager=True,
        callback=_read_run,
        metavar="RUN",
        help="Run whose options a new run takes, but for the flags given here.",
        show_default="none",
        rich_help_panel=_PANEL,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config", help="Print all options as such a file in YAML, and run nothing.", rich_help_panel=_PANEL
    ),
]


def parameters(options: Iterable[Option]) -> list[Parameter]:
    """Return the parameters of a command that takes its options from a file as well.

    Beside those above they are the opposite of each switch, hidden from help: --no-compile, of `compile: true`.
    """
    own = {"context": typer.Context, "config_file": ConfigFile, "like": Like, "print_config": PrintConfig}
    opposite = {
        f"no_{each.name}": Annotated[bool, typer.Option(f"--no-{each.flag[2:]}", hidden=True)]
        for each in options
        if each.kind is bool
    }
    defaults = {"context": Parameter.empty, "config_file": None, "like": None}
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, False), annotation=annotation)
        for name, annotation in (own | opposite).items()
    ]


class GivenOptions:
    """What a command was given beside its options: the file or the run that the others are from."""

    def __init__(self, options: type, parameters: dict[str, Any]) -> None:
        """Take the values of `parameters` out of a command's."""
        self._context: typer.Context = parameters.pop("context")
        self._file: str | None = parameters.pop("config_file")
        self._like: Path | None = parameters.pop("like")
        self._prints: bool = parameters.pop("print_config")
        self._taken_back = [each.name for each in options_of(options) if parameters.pop(f"no_{each.name}", False)]

    def make(self, options: type[RunConfig], values: dict[str, Any]) -> Any:
        """Return the options dataclass. Raises UsageError, which says where options are from that were not typed."""
        from coma.training.config.combine import Taken, combine

        given = {name: value for name, value in values.items() if self._source(name) == "COMMANDLINE"}
        taken = {name: value for name, value in values.items() if self._source(name) == "DEFAULT_MAP"}
        given |= dict.fromkeys(self._taken_back, False)
        return combine(options, Taken(taken, self._file, self._like), given)

    def prints(self, config: Any) -> bool:
        """Print the options, if that is all that was asked for."""
        if self._prints:
            from coma.training.config.config_file import as_yaml

            console.print_text(as_yaml(config))
        return self._prints

    def _source(self, name: str) -> str | None:
        source = self._context.get_parameter_source(name)
        return None if source is None else source.name
