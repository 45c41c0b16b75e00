"""`coma bench`: how fast things are here, on one's own data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from coma.bench.options import EpochOptions, LoaderOptions, StepOptions
from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.help import Command, Group
from coma.cli.options import Data, Json, chosen_data

LocalData = Annotated[
    Path | None,
    typer.Argument(
        help="Data set made by `coma shard`: a folder.", show_default="the one in the current folder"
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Bar chart to write as well.", metavar="PNG")]

app = typer.Typer(name="bench", cls=Group, no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure loading and training speed on this machine."""


@app.command(cls=Command)
@from_options(LoaderOptions)
def loader(options: LoaderOptions, data: LocalData = None, plot: Plot = None, json: Json = False) -> None:
    """Compare coma's stream with other loaders on your own shards.

    A sample of the images goes through ImageFolder with PIL or torchvision,
    webdataset, DALI's own reader and coma; and mosaicml-streaming, litdata and
    ffcv where they are installed. All make the same batches: random windows,
    mirrored, resized linearly with antialiasing, normalised. All have one core
    and take turns, round after round; ratios are medians of the rounds.
    """
    from coma.bench.loader import bench_loader
    from coma.cli.bench_tables import draw_loader, print_loader

    with _progress() as progress:
        result = bench_loader(chosen_data(data), options, progress)
    _show(result, result.to_json(), print_loader, draw_loader, plot, json=json)


@app.command(cls=Command)
@from_options(StepOptions)
def step(options: StepOptions, plot: Plot = None, json: Json = False) -> None:
    """Compare what training steps cost, with images held in memory.

    A step is forward, backward and AdamW, on the GPU if there is one. The
    networks take turns; times are medians of the rounds, ratios medians of the
    rounds' ratios.
    """
    from coma.bench.step import bench_step
    from coma.cli.bench_tables import draw_steps, print_steps

    with _progress() as progress:
        timings = bench_step(options, progress)
    result = {"steps": [timing.to_json() for timing in timings]}
    _show(timings, result, print_steps, draw_steps, plot, json=json)


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
    from coma.cli.bench_tables import draw_epochs, print_epochs
    from coma.shards.manifest import read_manifest

    folder = chosen_data(data)
    with _progress() as progress:
        timings = bench_epoch(read_manifest(folder), options, progress)
    result = {"epochs": [timing.to_json() for timing in timings]}
    _show(timings, result, print_epochs, draw_epochs, plot, json=json)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; it is told what is being measured, how many rounds are done, and of how many."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with console.progress(*columns) as bar:
        task = bar.add_task("getting ready", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def _show(
    measured: Any,
    result: dict[str, Any],
    print_table: Callable[[Any], None],
    draw: Callable[[Any, Path], None],
    plot: Path | None,
    *,
    json: bool,
) -> None:
    """Print what was measured, as JSON or as a table, and draw it if that is asked for."""
    if plot is not None:
        draw(measured, plot)
    if json:
        console.print_result(result, json=True)
        return
    print_table(measured)
    if plot is not None:
        console.stdout.print(f"plot  {plot}", markup=False)
