"""`coma bench epoch`: what an epoch of one's own data costs, networks side by side.

Each network is trained by turns on batches of the stream and on one held in memory: what the second is faster by, the
stream costs. All take their turns, round after round; ratios are medians of the rounds' ratios, so that what else the
machine does strikes all alike. A turn with the stream starts with none of its threads running and no batch prepared;
its first steps do not count, until as much is prepared ahead as will be. Each step ends when the device is done, as in
training, which asks for the loss.
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
from coma.errors import UsageError
from coma.pipeline import Batch, Stream
from coma.shards.manifest import Manifest, read_manifest
from coma.training.setup import device_name

_UNDER_WAY = 6  # batches of a stream: read, in the graph, ready


@dataclass(frozen=True)
class Turn:
    """Means over the steps of a turn, in seconds."""

    step_s: float
    """From asking for the batch to the end of the step."""
    wait_s: float
    """Of that, until the batch was there."""


@dataclass(frozen=True)
class EpochTiming:
    """One network, a turn of each kind a round."""

    model: str
    precision: str
    streamed: tuple[Turn, ...]
    in_memory: tuple[Turn, ...]
    epoch_ratio: float
    """An epoch's time as a part of the last network's: the median of the rounds' ratios."""
    samples: int
    """Of the data set."""
    batch_size: int
    image_size: int
    """Pixels."""
    device: str
    epochs: int
    devices: int

    @property
    def step_s(self) -> float:
        """Median."""
        return statistics.median(turn.step_s for turn in self.streamed)

    @property
    def images_per_s(self) -> float:
        """From the stream."""
        return self.batch_size / self.step_s

    @property
    def memory_images_per_s(self) -> float:
        """From memory."""
        return self.batch_size / statistics.median(turn.step_s for turn in self.in_memory)

    @property
    def wait_share(self) -> float:
        """Part of a step that is spent waiting for the stream, 0 to 1."""
        return statistics.median(turn.wait_s / turn.step_s for turn in self.streamed)

    @property
    def fed_ratio(self) -> float:
        """Images a second from the stream as a part of those from memory: the median of the rounds' ratios."""
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
        """Plain values."""
        figures = (
            "step_s",
            "images_per_s",
            "memory_images_per_s",
            "wait_share",
            "fed_ratio",
            "epoch_h",
        )
        return asdict(self) | {
            **{name: getattr(self, name) for name in figures},
            "imagenet_h": {"1": self.imagenet_h, str(self.devices): self.imagenet_h / self.devices},
            "imagenet_device_h": self.imagenet_h,
        }


def bench_epoch(
    data: Path | Manifest, options: EpochOptions, progress: Callable[[str, int, int], None] | None = None
) -> list[EpochTiming]:
    """Measure the networks, in turn.

    Raises:
        UsageError: an absurd number, or a step that does not fit into the device's memory.
        DataError: the data set is missing or damaged.
    """
    tell = progress or (lambda *_: None)
    manifest = data if isinstance(data, Manifest) else read_manifest(data)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    batch_size = options.batch_size or (GPU_BATCH if gpu else CPU_BATCH)
    has_bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = options.precision or ("bf16" if has_bf16 else "fp32")
    streamed: dict[str, list[Turn]] = {model: [] for model in options.models}
    in_memory: dict[str, list[Turn]] = {model: [] for model in options.models}
    with ExitStack() as stack:
        networks, streams, held = {}, {}, {}
        for model in streamed:
            tell(f"{model} {precision}", 0, options.rounds)
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
                    tell(f"{model} {precision}", number, options.rounds)
                    in_memory[model].append(take_turn(network, repeat(held[model]), options.steps, 1))
                    streamed[model].append(take_turn(network, streams[model], options.steps, _UNDER_WAY))
                    _at_rest(streams[model])
        except torch.OutOfMemoryError:
            raise UsageError(
                f"a step of {batch_size} images of {model} does not fit into the memory of {device_name(device)}: "
                "give a smaller --batch-size"
            ) from None
    reference = streamed[options.models[-1]]
    return [
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
    ]


def take_turn(network: Network, batches: Iterator[Batch], steps: int, uncounted: int) -> Turn:
    """Train on batches, of which the first do not count."""
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
    """End a stream's threads, until the next batch is asked for."""
    stream.load_state_dict(stream.state_dict())
