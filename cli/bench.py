"""`coma bench`: how fast things are here, on one's own data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console

if TYPE_CHECKING:
    from coma.bench.epoch import EpochTiming
    from coma.bench.findings import LoaderBench
    from coma.bench.step import StepTiming

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure speed here, on your own data.")


@app.callback()
def bench() -> None:
    """Measure speed here, on your own data."""


@app.command()
def loader(
    data: Annotated[
        Path | None, typer.Argument(help="Sharded data set.", show_default="the one in this folder")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Images of the sample.", metavar="N", min=1, show_default="by how large they are"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each way.", metavar="N", min=1)] = 5,
    image_size: Annotated[
        int, typer.Option(help="Side of the images of a batch.", metavar="PX", min=1)
    ] = 224,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result.", metavar="PNG")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare coma's stream with other loaders on your own shards.

    A sample of the images goes through ImageFolder with PIL or torchvision,
    webdataset, DALI's own reader and coma; and mosaicml-streaming, litdata and
    ffcv where they are installed. All make the same batches: random windows,
    mirrored, resized linearly with antialiasing, normalised. One core for all,
    turn by turn; ratios are medians of the turns.
    """
    from coma.bench.findings import BenchOptions
    from coma.bench.loader import bench_loader
    from coma.shards.manifest import find_data

    options = BenchOptions(images=images, rounds=rounds, image_size=image_size)
    folder = find_data(Path()) if data is None else data
    with _progress() as progress:
        found = bench_loader(folder, options, progress)
    if plot is not None:
        _draw(found, plot)
    if json:
        console.print_result(found.to_json(), json=True)
        return
    _print(found)
    if plot is not None:
        console.stdout.print(f"plot  {plot}", markup=False)


@app.command()
def step(
    models: Annotated[
        str, typer.Option(help="Networks, as NAME:METHOD; ratios are to the last.", metavar="LIST")
    ] = "dyvit_base:coma,vit_base:mae",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or both.", metavar="LIST")] = "fp32,bf16",
    batch_size: Annotated[int, typer.Option(help="Images a step.", metavar="N", min=1)] = 8,
    image_size: Annotated[int, typer.Option(help="Their side, pixels.", metavar="PX", min=1)] = 224,
    views: Annotated[int, typer.Option(help="Complementary views of an image.", metavar="K", min=2)] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each network.", metavar="N", min=1)] = 5,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result.", metavar="PNG")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare what training steps cost, with images held in memory.

    Forward, backward and AdamW, on the GPU if there is one. The networks take
    turns; times are medians, ratios medians of the turns' ratios.
    """
    from coma.bench.step import StepOptions, bench_step

    options = StepOptions(
        models=tuple(part.strip() for part in models.split(",")),
        precisions=tuple(part.strip() for part in precision.split(",")),
        batch_size=batch_size,
        image_size=image_size,
        views=views,
        rounds=rounds,
    )
    with _progress() as progress:
        found = bench_step(options, progress)
    if plot is not None:
        _draw_steps(found, plot)
    if json:
        console.print_result({"steps": [timing.to_json() for timing in found]}, json=True)
        return
    _print_steps(found)
    if plot is not None:
        console.stdout.print(f"plot  {plot}", markup=False)


@app.command()
def epoch(
    data: Annotated[
        str | None,
        typer.Argument(help="Sharded data set, a folder or URL.", show_default="the one in this folder"),
    ] = None,
    models: Annotated[
        str, typer.Option(help="Networks, as NAME:METHOD; ratios are to the last.", metavar="LIST")
    ] = "dyvit_base:coma,vit_base:mae",
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16.", show_default="bf16 on a GPU that has it, else fp32")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images a step.", metavar="N", min=1, show_default="128 on a GPU, 8 on a CPU"),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Their side, pixels.", metavar="PX", min=1)] = 224,
    views: Annotated[int, typer.Option(help="Views of an image.", metavar="K", min=2)] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each network.", metavar="N", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Steps of a turn.", metavar="N", min=1)] = 10,
    epochs: Annotated[int, typer.Option(help="Of a training on ImageNet.", metavar="N", min=1)] = 96,
    devices: Annotated[int, typer.Option(help="That would share it.", metavar="N", min=1)] = 8,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result.", metavar="PNG")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what an epoch of your own data costs.

    Each network is trained by turns on what the stream makes of the data and
    on a batch held in memory, on the GPU if there is one: what waiting for
    data costs, and what epochs take beside the last network's. Hours of a
    training on ImageNet are projected, those of several devices as if they
    were so many times as fast.
    """
    from coma.bench.epoch import EpochOptions, bench_epoch
    from coma.shards.files import folder_at
    from coma.shards.manifest import find_data, read_manifest

    options = EpochOptions(
        models=tuple(part.strip() for part in models.split(",")),
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
        views=views,
        rounds=rounds,
        steps=steps,
        epochs=epochs,
        devices=devices,
    )
    folder = find_data(Path()) if data is None else folder_at(data)
    with _progress() as progress:
        found = bench_epoch(read_manifest(folder), options, progress)
    if plot is not None:
        _draw_epochs(found, plot)
    if json:
        console.print_result({"epochs": [timing.to_json() for timing in found]}, json=True)
        return
    _print_epochs(found)
    if plot is not None:
        console.stdout.print(f"plot  {plot}", markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told what is being measured, how many turns are done, and of how many."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with console.progress(*columns) as bar:
        task = bar.add_task("getting ready", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def _print(found: "LoaderBench") -> None:
    from coma.bench.findings import advice

    def line(text: str = "") -> None:
        console.stdout.print(text, markup=False)

    images, size, rounds = found.images, found.options.image_size, found.options.rounds
    line(
        f"{images.count:,} images of {found.data}: "
        f"{images.bytes / 1000:,.0f} KB, {images.megapixels:.2g} Mpx each"
    )
    line(f"Batches of {found.batch_size} at {size} px, one core, {rounds} turns; ratios are to PIL's")
    line()
    line(f"{'':<26}{'images/CPU-s':>12}{'per s':>10}{'ratio':>10}")
    result, notes = found.to_json(), found.notes or {}
    for name, row in (result["ways"] | result["decoding_alone"]).items():
        rates = f"{row['images_per_cpu_s']:>12,.0f}{row['images_per_s']:>10,.0f}"
        line(f"{name:<26}{rates}{row['ratio']:>9.2f}x{'  other work' if name in notes else ''}")
    for name, note in notes.items():
        line(f"{name}: {note}")
    for name, reason in (found.failed or {}).items():
        line(_cut(f"failed: {name}: {reason}"))
    if found.missing:
        line(f"not installed: {', '.join(found.missing)}; pip install them to compare")
    line()
    total = sum(found.stages_us.values())
    for name, value in found.stages_us.items():
        line(f"{name:<26}{value:>9,.0f} us{value / total:>13.0%} of the stream")
    line(f"{'storage':<26}{found.storage_images_per_s:>12,.0f}  images/s, feeds {_cores(found)}")
    line()
    line(f"bottleneck  {found.bottleneck}")
    line(f"advice      {advice(found)}")


def _cores(found: "LoaderBench") -> str:
    """As "21 cores (here 2)"."""
    fed = f"{found.cores_fed:,.0f}" if found.cores_fed >= 10 else f"{found.cores_fed:.1f}"
    return f"{fed} cores (here {found.cores})"


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _draw(found: "LoaderBench", path: Path) -> None:
    from coma.bench.findings import STREAM
    from coma.bench.plot import write_bars

    notes = found.notes or {}
    rates = {
        f"{name} (other work)" if name in notes else name: way.images_per_cpu_s
        for name, way in found.rows.items()
    }
    title = f"Images per CPU-second, batches of {found.options.image_size} px"
    data = "/".join(found.data.parts[-2:])
    note = f"{found.images.count:,} images of {data}, one core, medians of {found.options.rounds} turns"
    write_bars(
        path,
        title,
        note,
        rates,
        mine=frozenset(name for name in rates if name.split(",")[0] == STREAM),
        limits=frozenset(found.limits),
    )


def _print_steps(found: "list[StepTiming]") -> None:
    def line(text: str) -> None:
        console.stdout.print(text, markup=False)

    first = found[0]
    line(f"Steps of {first.batch_size} images at {first.image_size} px on {first.device}; ratios are of time")
    line(f"{'':<22}{'':<6}{'params':>9}{'MACs':>9}{'memory':>9}{'img/s':>8}{'ratio':>8}{'ImageNet':>9}")
    for timing in found:
        line(
            f"{timing.model:<22}{timing.precision:<6}{timing.parameters / 1e6:>7.1f} M{timing.macs / 1e9:>7.2f} G"
            f"{timing.memory_bytes / 1e9:>6.2f} GB{timing.images_per_s:>8.3g}{timing.time_ratio:>7.2f}x"
            f"{timing.imagenet_epoch_h:>7.3g} h"
        )
    line("params: with decoder; MACs: an image's forward pass; ImageNet: an epoch of it")


def _draw_steps(found: "list[StepTiming]", path: Path) -> None:
    from coma.bench.plot import write_bars

    rates = {f"{timing.model}, {timing.precision}": timing.images_per_s for timing in found}
    first = found[0]
    note = f"steps of {first.batch_size} images on {first.device}, medians of {len(first.step_s)} turns"
    mine = frozenset(name for name in rates if ":coma" in name)
    write_bars(path, f"Images a second at {first.image_size} px", note, rates, mine=mine, limits=frozenset())


def _print_epochs(found: "list[EpochTiming]") -> None:
    def line(text: str = "") -> None:
        console.stdout.print(text, markup=False)

    first = found[0]
    line(f"Steps of {first.batch_size} images at {first.image_size} px, {first.precision}, {first.device}")
    line(f"{'':<22}{'step s':>9}{'img/s':>9}{'in memory':>11}{'fed':>7}{'waiting':>9}{'ratio':>9}")
    for timing in found:
        line(
            f"{timing.model:<22}{timing.step_s:>9.3g}{_figure(timing.images_per_s):>9}"
            f"{_figure(timing.memory_images_per_s):>11}{timing.fed_ratio:>7.2f}{timing.wait_share:>9.0%}"
            f"{timing.epoch_ratio:>8.2f}x"
        )
    line("fed: img/s as a part of those with images in memory; ratio: of an epoch's time")
    line()
    line(
        f"{'hours':<22}{'an epoch':>12}{f'{first.epochs} epochs of ImageNet on 1':>30}{f'on {first.devices}':>10}"
    )
    for timing in found:
        line(
            f"{timing.model:<22}{_figure(timing.epoch_h):>12}{_figure(timing.imagenet_h):>30}"
            f"{_figure(timing.imagenet_h / timing.devices):>10}"
        )
    line(f"an epoch: of the {first.samples:,} images here; on 1 device, hours are device-hours")


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_epochs(found: "list[EpochTiming]", path: Path) -> None:
    from coma.bench.plot import write_bars

    first = found[0]
    streamed = {timing.model: timing.images_per_s for timing in found}
    in_memory = {f"{timing.model}, in memory": timing.memory_images_per_s for timing in found}
    note = (
        f"steps of {first.batch_size} images, {first.precision}, {first.device}, {len(first.streamed)} turns"
    )
    write_bars(
        path,
        f"Images a second at {first.image_size} px, from the stream and from memory",
        note,
        streamed | in_memory,
        mine=frozenset(name for name in streamed if ":coma" in name),
        limits=frozenset(in_memory),
    )
