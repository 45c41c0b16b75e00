"""`coma bench epoch`: time of an epoch of the user's own data, networks side by side.

Each network is trained by turns on batches of the stream and on one batch held in memory; the difference is what the
stream costs. The networks take turns, round after round; ratios are medians of the rounds' ratios, so that what else
the machine does strikes all alike. A turn with the stream starts with no thread of its running and no batch prepared;
its first steps do not count, until as many batches are prepared ahead as will be. Each step ends when the device is
done, as in training, which reads the loss.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from coma.bench.network import IMAGENET_IMAGES, Network
from coma.bench.options import CPU_BATCH, GPU_BATCH, EpochOptions
from coma.bench.plot import write_bars
from coma.bench.table import table, three_digits
from coma.errors import UsageError
from coma.evaluation.device import choose_device
from coma.pipeline import Batch, Stream
from coma.shards.manifest import Manifest, read_manifest
from coma.training.setup import device_name

_PREPARED_AHEAD = 6  # batches of a stream: read, in the graph, ready


@dataclass(frozen=True)
class Turn:
    """Means over the steps of a turn, in seconds."""

    step_s: float
    """From asking for the batch to the end of the step."""
    wait_s: float
    """The part of `step_s` until the batch was there."""


@dataclass(frozen=True)
class EpochTiming:
    """One network's turns, one of each kind in each round."""

    model: str
    precision: str
    streamed: tuple[Turn, ...]
    in_memory: tuple[Turn, ...]
    epoch_ratio: float
    """Time of an epoch relative to the last network's: the median of the rounds' ratios."""
    samples: int
    """Number of samples of the data set."""
    batch_size: int
    image_size: int
    """Side of the images in pixels."""
    device: str
    epochs: int
    devices: int

    @property
    def step_s(self) -> float:
        """Median over the rounds of a step with the stream."""
        return statistics.median(turn.step_s for turn in self.streamed)

    @property
    def images_per_s(self) -> float:
        """Rate with batches from the stream."""
        return self.batch_size / self.step_s

    @property
    def memory_images_per_s(self) -> float:
        """Rate with a batch held in memory."""
        return self.batch_size / statistics.median(turn.step_s for turn in self.in_memory)

    @property
    def wait_share(self) -> float:
        """Share of a step spent waiting for the stream, 0 to 1."""
        return statistics.median(turn.wait_s / turn.step_s for turn in self.streamed)

    @property
    def fed_ratio(self) -> float:
        """Rate from the stream relative to that from memory: the median of the rounds' ratios."""
        return statistics.median(
            held.step_s / fed.step_s for fed, held in zip(self.streamed, self.in_memory, strict=True)
        )

    @property
    def epoch_h(self) -> float:
        """Hours of an epoch of the data set on one device."""
        return self.samples / self.images_per_s / 3600

    @property
    def imagenet_h(self) -> float:
        """Hours of all epochs of ImageNet's training images on one device, which are device-hours."""
        return self.epochs * IMAGENET_IMAGES / self.images_per_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Return fields and derived figures as JSON values."""
        return asdict(self) | {
            "step_s": self.step_s,
            "images_per_s": self.images_per_s,
            "memory_images_per_s": self.memory_images_per_s,
            "wait_share": self.wait_share,
            "fed_ratio": self.fed_ratio,
            "epoch_h": self.epoch_h,
            "imagenet_h": {"1": self.imagenet_h, str(self.devices): self.imagenet_h / self.devices},
            "imagenet_device_h": self.imagenet_h,
        }


@dataclass(frozen=True)
class EpochResult:
    """Timings of all networks."""

    timings: tuple[EpochTiming, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"epochs": [timing.to_json() for timing in self.timings]}

    def to_lines(self) -> list[str]:
        """Return the result as text."""
        first = self.timings[0]
        rates = [
            (
                timing.model,
                f"{timing.step_s:.3g}",
                three_digits(timing.images_per_s),
                three_digits(timing.memory_images_per_s),
                f"{timing.fed_ratio:.2f}",
                f"{timing.wait_share:.0%}",
                f"{timing.epoch_ratio:.2f}x",
            )
            for timing in self.timings
        ]
        hours = [
            (
                timing.model,
                three_digits(timing.epoch_h),
                three_digits(timing.imagenet_h),
                three_digits(timing.imagenet_h / timing.devices),
            )
            for timing in self.timings
        ]
        return [
            f"Steps of {first.batch_size} images at {first.image_size} px, {first.precision}, {first.device}",
            *table(("network", "step s", "img/s", "in memory", "fed", "waiting", "ratio"), rates),
            "fed: img/s as a part of those with images in memory; ratio: of an epoch's time",
            "",
            *table(("hours", "an epoch", f"{first.epochs} epochs of ImageNet on 1", f"on {first.devices}"), hours),
            f"an epoch: of the {first.samples:,} images here; on 1 device, hours are device-hours",
        ]

    def write_plot(self, path: Path) -> None:
        """Draw the rates from the stream and from memory as a PNG."""
        first = self.timings[0]
        streamed = {timing.model: timing.images_per_s for timing in self.timings}
        in_memory = {f"{timing.model}, in memory": timing.memory_images_per_s for timing in self.timings}
        write_bars(
            path,
            f"Images a second at {first.image_size} px, from the stream and from memory",
            f"steps of {first.batch_size} images, {first.precision}, {first.device}, {len(first.streamed)} turns",
            streamed | in_memory,
            highlighted={name for name in streamed if ":coma" in name},
            faded=in_memory,
        )


def bench_epoch(
    data: Path | Manifest, options: EpochOptions, progress: Callable[[str, int, int], None] | None = None
) -> EpochResult:
    """Measure the networks, in turn.

    Raises:
        UsageError: an absurd number, or a step that does not fit into the device's memory.
        DataError: the data set is missing or damaged.
    """
    progress = progress or (lambda *_: None)
    manifest = data if isinstance(data, Manifest) else read_manifest(data)
    if manifest.pixels is not None:
        raise UsageError(f"{manifest.folder} has {manifest.pixels.identity}: an epoch is measured on 8-bit RGB images")
    device = torch.device(choose_device())
    gpu = device.type == "cuda"
    batch_size = options.batch_size or (GPU_BATCH if gpu else CPU_BATCH)
    has_bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = options.precision or ("bf16" if has_bf16 else "fp32")
    streamed: dict[str, list[Turn]] = {model: [] for model in options.models}
    in_memory: dict[str, list[Turn]] = {model: [] for model in options.models}
    with ExitStack() as stack:
        networks, streams, held = {}, {}, {}
        for model in streamed:
            progress(f"{model} {precision}", 0, options.rounds)
            network = Network(
                model, image_size=options.image_size, views=options.views, device=device, precision=precision
            )
            stream = stack.enter_context(
                Stream(manifest, batch_size=batch_size, device=device, **network.model.stream_options())
            )
            networks[model], streams[model], held[model] = network, stream, next(stream)
            _at_rest(stream)
        try:
            for number in range(options.rounds):
                for model, network in networks.items():
                    progress(f"{model} {precision}", number, options.rounds)
                    in_memory[model].append(take_turn(network, repeat(held[model]), options.steps, 1))
                    streamed[model].append(take_turn(network, streams[model], options.steps, _PREPARED_AHEAD))
                    _at_rest(streams[model])
        except torch.OutOfMemoryError:
            raise UsageError(
                f"a step of {batch_size} images of {model} does not fit into the memory of {device_name(device)}: "
                "give a smaller --batch-size"
            ) from None
    reference = streamed[options.models[-1]]
    timings = (
        EpochTiming(
            model=model,
            precision=precision,
            streamed=tuple(streamed[model]),
            in_memory=tuple(in_memory[model]),
            epoch_ratio=statistics.median(
                mine.step_s / last.step_s for mine, last in zip(streamed[model], reference, strict=True)
            ),
            samples=len(manifest),
            batch_size=batch_size,
            image_size=options.image_size,
            device=device_name(device),
            epochs=options.epochs,
            devices=options.devices,
        )
        for model in networks
    )
    return EpochResult(tuple(timings))


def take_turn(network: Network, batches: Iterator[Batch], steps: int, uncounted: int) -> Turn:
    """Train on `uncounted` batches and then on `steps` more, which are timed."""
    waits_s, begun_s = 0.0, 0.0
    for number in range(-uncounted, steps):
        if number == 0:
            waits_s, begun_s = 0.0, time.perf_counter()
        asked_s = time.perf_counter()
        batch = next(batches)
        waits_s += time.perf_counter() - asked_s
        network.step(batch.images, batch.units)
        network.wait()
    return Turn((time.perf_counter() - begun_s) / steps, waits_s / steps)


def _at_rest(stream: Stream) -> None:
    """End a stream's threads; they start again when the next batch is asked for."""
    stream.load_state_dict(stream.state_dict())
