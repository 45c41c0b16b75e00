"""Options of a file or of another run, combined with those given beside them, which override them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.errors import UsageError
from coma.runs.names import DEFAULT_RUNS
from coma.shards.option import Option, options_of
from coma.training.config.options import RunConfig


@dataclass(frozen=True)
class Taken:
    """Options by the names of their fields, and the file or the run that has them."""

    values: Mapping[str, Any]
    file: str | None = None
    like: Path | None = None


def combine(options: type[RunConfig], taken: Taken, given: Mapping[str, Any]) -> RunConfig:
    """Return the options of a run.

    Args:
        options: the dataclass to make.
        taken: the options of a file, or of a run that the new one is like.
        given: options by the names of their fields, which override those; one that stands for another, such as `steps`
            for `epochs`, overrides that too.

    Raises:
        UsageError: they contradict each other; the line says which are taken. Or there is nothing in which a new run
            differs from the one that it is like.
    """
    described = options_of(options)
    values = dict(taken.values) | dict(given)
    for each in described:
        for one, other in ((each.name, each.instead_of), (each.instead_of, each.name)):
            if each.instead_of is not None and one in given and other in taken.values and other not in given:
                values[str(other)] = None
    try:
        made = options(**values)
        if taken.like is None:
            return made
        chosen = [each for each in described if each.name in given]
        return dataclasses.replace(made, out=_new_run(taken.like, made, chosen))
    except UsageError as error:
        words = re.findall(r"--[a-z-]+", str(error))
        untold = [each for each in described if each.name in taken.values and each.name not in given]
        flags = ", ".join(each.flag for each in untold if each.flag in words)
        raise UsageError(f"{error} ({flags}: from {taken.file or taken.like})") if flags else error from None


_DERIVED_FROM = (
    *("data", "source", "init", "epochs", "steps", "batch_size", "warmup_epochs", "schedule", "cooldown_epochs"),
    "precision",
)
"""Options that make another run by what they come to; those of `Option.identity` do by themselves."""
_LONGEST_NAME = 200
_NO_NAME = re.compile(r"[^\w.,]+")


def _new_run(run: Path, made: RunConfig, given: list[Option]) -> Path:
    """Return the folder of a run that differs from `run` in what was given: the same for the same call."""
    if made.out is not None:
        if made.out.resolve() == run.resolve():
            raise UsageError(f"--out {made.out} is the run that --like takes its options from: give another --out")
        return Path(made.out)
    differing = [each for each in given if each.identity or each.name in _DERIVED_FROM]
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
    several = value if isinstance(value, tuple) else (value,)
    shown = "-".join(
        f"{one:g}" if isinstance(one, float) else str(one).rstrip("/").rsplit("/", 1)[-1] for one in several
    )
    return f"{each.name.replace('_', '-')}-{_NO_NAME.sub('-', shown)}"
