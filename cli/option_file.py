"""Options from a file or from a run: --config, --like and --print-config of the commands that train.

What the file holds becomes the default of the command's parameters, so that the command line overrides it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from coma.cli import console
from coma.errors import UsageError
from coma.runs.names import DEFAULT_RUNS
from coma.shards.option import Option, options_of
from coma.training import FinetuneConfig, PretrainConfig

_OPTIONS: dict[str, Any] = {"pretrain": PretrainConfig, "plan": PretrainConfig, "finetune": FinetuneConfig}
_PANEL = "Options from a file"


def _read_config(context: typer.Context, file: str | None) -> str | None:
    from coma.training.config.config_file import read_options

    if file is not None and context.info_name:
        context.default_map = read_options(file, _OPTIONS[context.info_name])
    return file


def _read_run(context: typer.Context, run: Path | None) -> Path | None:
    from coma.training.config.config_file import options_like

    if run is not None and context.info_name:
        if context.default_map:
            raise UsageError("--config and --like exclude each other: give one")
        context.default_map = options_like(run, _OPTIONS[context.info_name])
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
        self._options = options_of(options)
        self._context: typer.Context = parameters.pop("context")
        self._file: str | None = parameters.pop("config_file")
        self._like: Path | None = parameters.pop("like")
        self._prints: bool = parameters.pop("print_config")
        self._taken_back = [each.name for each in self._options if parameters.pop(f"no_{each.name}", False)]

    def make(self, options: Callable[..., Any], values: dict[str, Any]) -> Any:
        """Return the options dataclass. Raises UsageError, which says where options are from that were not typed."""
        typed = [each for each in self._options if self._is_typed(each.name)]
        for each in self._options:
            if each.instead_of is not None:
                pair = (each.name, each.instead_of)
                values |= {other: None for one, other in (pair, pair[::-1]) if self._replaces(one, other)}
        values |= dict.fromkeys(self._taken_back, False)
        try:
            made = options(**values)
            return made if self._like is None else dataclasses.replace(made, out=_new_run(self._like, made, typed))
        except UsageError as error:
            words = re.findall(r"--[a-z-]+", str(error))
            flags = ", ".join(each.flag for each in self._options if each.flag in words and self._is_from_file(each))
            raise UsageError(f"{error} ({flags}: from {self._file or self._like})") if flags else error from None

    def prints(self, config: Any) -> bool:
        """Print the options, if that is all that was asked for."""
        if self._prints:
            from coma.training.config.config_file import as_yaml

            console.print_text(as_yaml(config))
        return self._prints

    def _replaces(self, one: str, other: str) -> bool:
        return self._is_typed(one) and not self._is_typed(other)

    def _is_typed(self, name: str) -> bool:
        return self._source(name) == "COMMANDLINE"

    def _is_from_file(self, each: Option) -> bool:
        return self._source(each.name) == "DEFAULT_MAP"

    def _source(self, name: str) -> str | None:
        source = self._context.get_parameter_source(name)
        return None if source is None else source.name


_DERIVED_FROM = (
    *("data", "source", "init", "epochs", "steps", "batch_size", "warmup_epochs", "schedule", "cooldown_epochs"),
    "precision",
)
"""Options that make another run by what they come to; those of `Option.identity` do by themselves."""
_LONGEST_NAME = 200
_NO_NAME = re.compile(r"[^\w.,]+")


def _new_run(run: Path, made: Any, typed: list[Option]) -> Path:
    """Return the folder of a run that differs from `run` in what was typed: the same for the same command."""
    if made.out is not None:
        if made.out.resolve() == run.resolve():
            raise UsageError(f"--out {made.out} is the run that --like takes its options from: give another --out")
        return Path(made.out)
    differing = [each for each in typed if each.identity or each.name in _DERIVED_FROM]
    if not differing:
        raise UsageError(
            f"--like {run} with nothing that makes another run of it: give an option that does, such as --epochs or "
            "--seed, or --out to train the same once more"
        )
    name = "-".join([run.resolve().name, *(_part(each, getattr(made, each.name)) for each in differing)])
    if len(name) > _LONGEST_NAME:
        raise UsageError(f"--like {run} with so many options has no short name: give --out")
    return DEFAULT_RUNS / name


def _part(each: Option, value: Any) -> str:
    """Return an option as part of a folder's name: `epochs-400`."""
    shown = f"{value:g}" if isinstance(value, float) else str(value).rstrip("/").rsplit("/", 1)[-1]
    return f"{each.name.replace('_', '-')}-{_NO_NAME.sub('-', shown)}"
