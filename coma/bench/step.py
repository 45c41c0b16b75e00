"""`coma bench step`: time, memory and multiply-adds of a training step, networks side by side on images in memory.

The networks take turns, round after round; a ratio is the median of the rounds' ratios, so that what else the
machine does strikes all alike.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from coma.bench.network import IMAGENET_IMAGES, Network
from coma.bench.options import StepOptions
from coma.bench.plot import write_bars
from coma.bench.table import table
from coma.evaluation.device import choose_device
from coma.training.setup import device_name


@dataclass(frozen=True)
class StepTiming:
    """Cost of one network's training step in one precision."""

    model: str
    grad_checkpointing: str
    """Stages whose activations were recomputed in the backward pass: "none", "1,2", "all"."""
    precision: str
    parameters: int
    """Number of parameters, the decoder's included."""
    macs: float
    """Multiply-adds of one image's forward pass."""
    memory_bytes: int
    """A GPU's peak; on a CPU what the backward pass keeps of the forward pass."""
    step_s: tuple[float, ...]
    """Wall seconds of the step in each round."""
    time_ratio: float
    """Time of a step relative to the last network's: the median of the rounds' ratios."""
    batch_size: int
    image_size: int
    """Side of the images in pixels."""
    device: str

    @property
    def name(self) -> str:
        """The network, and in brackets the stages that were recomputed."""
        return self.model if self.grad_checkpointing == "none" else f"{self.model} ({self.grad_checkpointing})"

    @property
    def images_per_s(self) -> float:
        """Median over the rounds."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def imagenet_epoch_h(self) -> float:
        """Hours of one epoch of ImageNet's training images at this rate."""
        return IMAGENET_IMAGES / self.images_per_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Return fields and derived figures as JSON values."""
        return asdict(self) | {"images_per_s": self.images_per_s, "imagenet_epoch_h": self.imagenet_epoch_h}


@dataclass(frozen=True)
class StepResult:
    """Timings of all networks in all precisions."""

    timings: tuple[StepTiming, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"steps": [timing.to_json() for timing in self.timings]}

    def to_lines(self) -> list[str]:
        """Return the result as text."""
        first = self.timings[0]
        rows = [
            (
                timing.name,
                timing.precision,
                f"{timing.parameters / 1e6:.1f} M",
                f"{timing.macs / 1e9:.2f} G",
                f"{timing.memory_bytes / 1e9:.2f} GB",
                f"{timing.images_per_s:.3g}",
                f"{timing.time_ratio:.2f}x",
                f"{timing.imagenet_epoch_h:.3g} h",
            )
            for timing in self.timings
        ]
        header = ("network", "", "params", "MACs", "memory", "img/s", "ratio", "ImageNet")
        return [
            f"Steps of {first.batch_size} images at {first.image_size} px on {first.device}; ratios are of time",
            *table(header, rows),
            "params: with decoder; MACs: an image's forward pass; ImageNet: an epoch of it",
        ]

    def write_plot(self, path: Path) -> None:
        """Draw the rates as a PNG."""
        first = self.timings[0]
        rates = {f"{timing.name}, {timing.precision}": timing.images_per_s for timing in self.timings}
        write_bars(
            path,
            f"Images a second at {first.image_size} px",
            f"steps of {first.batch_size} images on {first.device}, medians of {len(first.step_s)} turns",
            rates,
            highlighted={name for name in rates if ":coma" in name},
        )


def bench_step(options: StepOptions, progress: Callable[[str, int, int], None] | None = None) -> StepResult:
    """Measure the networks, in turn, in each precision. Raises UsageError."""
    timings: list[StepTiming] = []
    for precision in options.precisions:
        timings += _measure(options, precision, progress or (lambda *_: None))
    return StepResult(tuple(timings))


def _measure(options: StepOptions, precision: str, progress: Callable[[str, int, int], None]) -> list[StepTiming]:
    device = torch.device(choose_device())
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    networks = {
        model: Network(model, image_size=options.image_size, views=options.views, device=device, precision=precision)
        for model in options.models
    }
    units = {model: network.units(len(images)) for model, network in networks.items()}
    macs = {model: network.multiply_adds(images[:1]) for model, network in networks.items()}
    variants = [variant for model, network in networks.items() for variant in _variants(model, network, options)]
    memory: dict[tuple[str, str], int] = {}
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
    for number in range(-2, options.rounds):  # the first rounds count memory, and find what nobody has touched yet
        for model, stages in variants:
            network = networks[model]
            network.recompute(stages)
            if number == -2:
                memory[model, stages] = network.memory_bytes(images, units[model])
                continue
            progress(f"{model} {precision}", max(0, number), options.rounds)
            step_s = network.timed_step(images, units[model])
            if number >= 0:
                times[model, stages].append(step_s)
    reference = times[variants[-1]]
    return [
        StepTiming(
            model=model,
            grad_checkpointing=stages,
            precision=precision,
            parameters=networks[model].parameters,
            macs=macs[model],
            memory_bytes=memory[model, stages],
            step_s=tuple(times[model, stages]),
            time_ratio=statistics.median(a / b for a, b in zip(times[model, stages], reference, strict=True)),
            batch_size=options.batch_size,
            image_size=options.image_size,
            device=device_name(device),
        )
        for model, stages in variants
    ]


def _variants(model: str, network: Network, options: StepOptions) -> list[tuple[str, str]]:
    """Return (model, stages to recompute) for what is measured of a network: last, that nothing is recomputed."""
    stages = options.grad_checkpointing
    return [(model, each) for each in dict.fromkeys((stages, "none")) if network.has_stages(each)]
