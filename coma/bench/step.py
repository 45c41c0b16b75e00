"""`coma bench step`: what a training step costs, networks side by side on the same images held in memory.

The networks take turns, round after round; a ratio is the median of the rounds' ratios, so that what else the
machine does strikes all alike.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from coma.bench.network import IMAGENET_IMAGES, Network
from coma.bench.options import StepOptions
from coma.training.setup import device_name


@dataclass(frozen=True)
class StepTiming:
    """One network in one precision."""

    model: str
    precision: str
    parameters: int
    """Decoder included."""
    macs: float
    """Multiply-adds of one image's forward pass."""
    memory_bytes: int
    """A GPU's peak; on a CPU what the backward pass keeps of the forward pass."""
    step_s: tuple[float, ...]
    """Wall seconds of each round."""
    time_ratio: float
    """A step's time as a part of the last network's: the median of the rounds' ratios."""
    batch_size: int
    image_size: int
    """Pixels."""
    device: str

    @property
    def images_per_s(self) -> float:
        """Median."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def imagenet_epoch_h(self) -> float:
        """Hours of one epoch of ImageNet's training images at this pace."""
        return IMAGENET_IMAGES / self.images_per_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {
            "images_per_s": self.images_per_s,
            "imagenet_epoch_h": self.imagenet_epoch_h,
        }


def bench_step(
    options: StepOptions, progress: Callable[[str, int, int], None] | None = None
) -> list[StepTiming]:
    """Measure the networks, in turn, in each precision. Raises UsageError."""
    found = []
    for precision in options.precisions:
        found += _measure(options, precision, progress or (lambda *_: None))
    return found


def _measure(
    options: StepOptions, precision: str, progress: Callable[[str, int, int], None]
) -> list[StepTiming]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    networks = {
        model: Network(
            model, image_size=options.image_size, views=options.views, device=device, precision=precision
        )
        for model in options.models
    }
    units = {model: network.units(len(images)) for model, network in networks.items()}
    macs = {model: network.multiply_adds(images[:1]) for model, network in networks.items()}
    memory = {model: network.memory_bytes(images, units[model]) for model, network in networks.items()}
    times: dict[str, list[float]] = {model: [] for model in networks}
    for number in range(-1, options.rounds):  # the first round finds memory that no network has touched yet
        for model, network in networks.items():
            progress(f"{model} {precision}", max(0, number), options.rounds)
            step_s = network.timed_step(images, units[model])
            if number >= 0:
                times[model].append(step_s)
    reference = times[options.models[-1]]
    return [
        StepTiming(
            model=model,
            precision=precision,
            parameters=network.parameters,
            macs=macs[model],
            memory_bytes=memory[model],
            step_s=tuple(times[model]),
            time_ratio=statistics.median(a / b for a, b in zip(times[model], reference, strict=True)),
            batch_size=options.batch_size,
            image_size=options.image_size,
            device=device_name(device),
        )
        for model, network in networks.items()
    ]
