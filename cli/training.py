"""Training by `coma pretrain` and `coma finetune`, also as a process that a launcher started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma import training
from coma.cli import console
from coma.training import FinetuneConfig, PretrainConfig
from coma.training.processes.gpus import processes_here
from coma.training.processes.stdout import quiet_stdout
from coma.training.processes.world import find_place

if TYPE_CHECKING:
    from coma.training.logs.metrics import Progress

_CONFIGS = {config.command: config for config in (PretrainConfig, FinetuneConfig)}


def train(config: PretrainConfig | FinetuneConfig, *, json: bool = False, launched: Path | None = None) -> None:
    """Run a training with a progress line on a terminal, and print its result as JSON if that is asked for."""
    place = find_place(os.environ)
    trains = place is not None or (config.hostfile is None and processes_here(config.devices) == 1)
    with _progress_line(launched) if trains else nullcontext() as watch, quiet_stdout():  # for the result
        if isinstance(config, PretrainConfig):
            result = training.pretrain(config, watch, launched)
        else:
            result = training.finetune(config, watch, launched)
    if json and (place is None or place.rank == 0):
        console.print_result(result, json=True)


def _join_launcher(context: typer.Context, launched: Path | None) -> None:
    """Run the configuration of a file that a launcher wrote, whatever else is on the command line, and leave."""
    if launched is not None:
        train(_CONFIGS[context.info_name or ""].load(launched), launched=launched)
        raise typer.Exit


Launched = Annotated[Path | None, typer.Option(hidden=True, is_eager=True, callback=_join_launcher)]
"""A launcher's option: its callback does everything, so that a command has nothing to do with the value."""


@contextmanager
def _progress_line(launched: Path | None) -> "Iterator[Callable[[Progress], None] | None]":
    """Show the progress of a run in one line that stays in place; None where nobody watches.

    A launched process shows it from its first step, as its command may watch instead.
    """
    from rich.progress import MofNCompleteColumn, TextColumn
    from rich.table import Column

    if not console.interactive():
        yield None
        return
    steps = MofNCompleteColumn(table_column=Column(no_wrap=True))  # in a narrow terminal the figures take two lines
    columns = (steps, TextColumn("{task.description}", table_column=Column()))
    bar = console.progress(*columns)
    task = bar.add_task("starting", total=None)

    def show(now: "Progress") -> None:
        bar.start()
        text = f"{now.figures}\nepochs {now.epochs}" if now.epochs else now.figures
        bar.update(task, completed=now.step, total=now.steps, description=text)

    if launched is None:
        bar.start()
    try:
        yield show
    finally:
        bar.stop()
