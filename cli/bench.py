"""`coma bench`: how fast things are here, on one's own data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.bench.options import EpochOptions, LoaderOptions, StepOptions
from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.help import Command, Group
from coma.cli.options import Data, Json

if TYPE_CHECKING:
    from coma.bench.epoch import EpochResult
    from coma.bench.loader_result import LoaderResult
    from coma.bench.step import StepResult

LocalData = Annotated[
    Path | None,
    typer.Argument(help="Data set made by `coma shard`: a folder.", show_default="the one in the current folder"),
]
Plot = Annotated[Path | None, typer.Option(help="Bar chart to write as well.", metavar="PNG")]

app = typer.Typer(name="bench", cls=Group, no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure loading and training speed on this machine."""


@app.command(cls=Command)
@from_options(LoaderOptions)
def loader(options: LoaderOptions, data: LocalData = None, plot: Plot = None, json: Json = False) -> None:
    """Measure coma's stream on your own shards, and find its bottleneck.

    A sample of the images goes through the stream, ImageFolder with PIL and
    DALI's own reader. All make the same batches: random windows, mirrored,
    resized linearly with antialiasing, normalised. All have one core and take
    turns, round after round; ratios are medians of the rounds.
    """
    from coma.bench.loader import bench_loader
    from coma.shards.manifest import chosen_data

    with _progress() as progress:
        result = bench_loader(chosen_data(data), options, progress)
    _show(result, plot, json=json)


@app.command(cls=Command)
@from_options(StepOptions)
def step(options: StepOptions, plot: Plot = None, json: Json = False) -> None:
    """Compare what training steps cost, with images held in memory.

    A step is forward, backward and AdamW, on the GPU if there is one. The
    networks take turns; times are medians of the rounds, ratios medians of the
    rounds' ratios. In brackets: stages of --grad-checkpointing.
    """
    from coma.bench.step import bench_step

    with _progress() as progress:
        result = bench_step(options, progress)
    _show(result, plot, json=json)


@app.command(cls=Command)
@from_options(EpochOptions)
def epoch(options: EpochOptions, data: Data = None, plot: Plot = None, json: Json = False) -> None:
    """Measure what an epoch of your own data costs.

    Each network is trained in turn on batches of the stream and on one batch
    held in memory, on the GPU if there is one. The difference is the cost of
    waiting for data; ratios are to the last network. The hours of a training
    on ImageNet are projected from it; several devices are taken to be that
    many times as fast.
    """
    from coma.bench.epoch import bench_epoch
    from coma.shards.manifest import chosen_data, read_manifest

    folder = chosen_data(data)
    with _progress() as progress:
        result = bench_epoch(read_manifest(folder), options, progress)
    _show(result, plot, json=json)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; it is told what is being measured, how many rounds are done, and of how many."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with console.progress(*columns) as bar:
        task = bar.add_task("getting ready", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def _show(result: "LoaderResult | StepResult | EpochResult", plot: Path | None, *, json: bool) -> None:
    """Print a result, and draw it if asked."""
    if plot is not None:
        result.write_plot(plot)
    if json:
        console.print_result(result.to_json(), json=True)
        return
    for line in [*result.to_lines(), *([] if plot is None else [f"plot  {plot}"])]:
        console.stdout.print(line)
