"""Tables and bar charts of `coma bench`."""

from pathlib import Path

from coma.bench.epoch import EpochTiming
from coma.bench.findings import STREAM, LoaderBench, advice
from coma.bench.plot import write_bars
from coma.bench.step import StepTiming
from coma.cli import console


def _line(text: str = "") -> None:
    console.stdout.print(text, markup=False)


def print_loader(bench: LoaderBench) -> None:
    """Print the speed of each way from files to batches, and of the stages of the stream."""
    images, size, rounds = bench.images, bench.options.image_size, bench.options.rounds
    _line(
        f"{images.count:,} images of {bench.data}: "
        f"{images.bytes / 1000:,.0f} KB, {images.megapixels:.2g} Mpx each"
    )
    _line(f"Batches of {bench.batch_size} at {size} px, one core, {rounds} rounds; ratios are to PIL's")
    _line()
    _line(f"{'':<26}{'images/CPU-s':>12}{'per s':>10}{'ratio':>10}")
    result, notes = bench.to_json(), bench.notes or {}
    for name, row in (result["ways"] | result["decoding_alone"]).items():
        rates = f"{row['images_per_cpu_s']:>12,.0f}{row['images_per_s']:>10,.0f}"
        _line(f"{name:<26}{rates}{row['ratio']:>9.2f}x{'  other work' if name in notes else ''}")
    for name, note in notes.items():
        _line(f"{name}: {note}")
    for name, reason in (bench.failed or {}).items():
        _line(_cut(f"failed: {name}: {reason}"))
    if bench.missing:
        _line(f"not installed: {', '.join(bench.missing)}; pip install them to compare")
    _line()
    total = sum(bench.stages_us.values())
    for name, value in bench.stages_us.items():
        _line(f"{name:<26}{value:>9,.0f} us{value / total:>13.0%} of the stream")
    _line(f"{'storage':<26}{bench.storage_images_per_s:>12,.0f}  images/s, feeds {_cores(bench)}")
    _line()
    _line(f"bottleneck  {bench.bottleneck}")
    _line(f"advice      {advice(bench)}")


def _cores(bench: LoaderBench) -> str:
    """As "21 cores (here 2)"."""
    fed = f"{bench.cores_fed:,.0f}" if bench.cores_fed >= 10 else f"{bench.cores_fed:.1f}"
    return f"{fed} cores (here {bench.cores})"


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def draw_loader(bench: LoaderBench, path: Path) -> None:
    """Write a PNG of the images per CPU-second of each way."""
    notes = bench.notes or {}
    rates = {
        f"{name} (other work)" if name in notes else name: way.images_per_cpu_s
        for name, way in bench.rows.items()
    }
    title = f"Images per CPU-second, batches of {bench.options.image_size} px"
    data = "/".join(bench.data.parts[-2:])
    note = f"{bench.images.count:,} images of {data}, one core, medians of {bench.options.rounds} rounds"
    write_bars(
        path,
        title,
        note,
        rates,
        mine=frozenset(name for name in rates if name.split(",")[0] == STREAM),
        limits=frozenset(bench.limits),
    )


def print_steps(timings: list[StepTiming]) -> None:
    """Print what a step of each network costs."""
    first = timings[0]
    _line(
        f"Steps of {first.batch_size} images at {first.image_size} px on {first.device}; ratios are of time"
    )
    _line(f"{'':<22}{'':<6}{'params':>9}{'MACs':>9}{'memory':>9}{'img/s':>8}{'ratio':>8}{'ImageNet':>9}")
    for timing in timings:
        _line(
            f"{timing.model:<22}{timing.precision:<6}{timing.parameters / 1e6:>7.1f} M{timing.macs / 1e9:>7.2f} G"
            f"{timing.memory_bytes / 1e9:>6.2f} GB{timing.images_per_s:>8.3g}{timing.time_ratio:>7.2f}x"
            f"{timing.imagenet_epoch_h:>7.3g} h"
        )
    _line("params: with decoder; MACs: an image's forward pass; ImageNet: an epoch of it")


def draw_steps(timings: list[StepTiming], path: Path) -> None:
    """Write a PNG of the images per second of each network."""
    rates = {f"{timing.model}, {timing.precision}": timing.images_per_s for timing in timings}
    first = timings[0]
    note = f"steps of {first.batch_size} images on {first.device}, medians of {len(first.step_s)} rounds"
    mine = frozenset(name for name in rates if ":coma" in name)
    write_bars(path, f"Images a second at {first.image_size} px", note, rates, mine=mine, limits=frozenset())


def print_epochs(timings: list[EpochTiming]) -> None:
    """Print what steps and epochs of each network take."""
    first = timings[0]
    _line(f"Steps of {first.batch_size} images at {first.image_size} px, {first.precision}, {first.device}")
    _line(f"{'':<22}{'step s':>9}{'img/s':>9}{'in memory':>11}{'fed':>7}{'waiting':>9}{'ratio':>9}")
    for timing in timings:
        _line(
            f"{timing.model:<22}{timing.step_s:>9.3g}{_figure(timing.images_per_s):>9}"
            f"{_figure(timing.memory_images_per_s):>11}{timing.fed_ratio:>7.2f}{timing.wait_share:>9.0%}"
            f"{timing.epoch_ratio:>8.2f}x"
        )
    _line("fed: img/s as a part of those with images in memory; ratio: of an epoch's time")
    _line()
    _line(
        f"{'hours':<22}{'an epoch':>12}{f'{first.epochs} epochs of ImageNet on 1':>30}{f'on {first.devices}':>10}"
    )
    for timing in timings:
        _line(
            f"{timing.model:<22}{_figure(timing.epoch_h):>12}{_figure(timing.imagenet_h):>30}"
            f"{_figure(timing.imagenet_h / timing.devices):>10}"
        )
    _line(f"an epoch: of the {first.samples:,} images here; on 1 device, hours are device-hours")


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw_epochs(timings: list[EpochTiming], path: Path) -> None:
    """Write a PNG of the images per second of each network, from the stream and from memory."""
    first = timings[0]
    streamed = {timing.model: timing.images_per_s for timing in timings}
    in_memory = {f"{timing.model}, in memory": timing.memory_images_per_s for timing in timings}
    note = (
        f"steps of {first.batch_size} images, {first.precision}, {first.device}, {len(first.streamed)} rounds"
    )
    write_bars(
        path,
        f"Images a second at {first.image_size} px, from the stream and from memory",
        note,
        streamed | in_memory,
        mine=frozenset(name for name in streamed if ":coma" in name),
        limits=frozenset(in_memory),
    )
