"""Resolve a configuration to the numbers of a run: pure, so that every process gets the same ones."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from coma.errors import UsageError
from coma.training.config.ds_check import ACCUMULATION_KEY, BATCH_KEY, MICRO_KEY
from coma.training.config.ds_config import DeepSpeedConfig
from coma.training.config.ds_precision import chosen_precision
from coma.training.config.options import RunConfig
from coma.training.config.schedule import Segment, peak_lr, plan_segment

DEFAULT_BATCH_GPU = 256
DEFAULT_BATCH_CPU = 32
LEAST_STEPS_PER_EPOCH = 8
"""The default batch is halved on small data until an epoch has so many steps."""
MOST_STEPS_PER_CHECKPOINT = 2000


@dataclass(frozen=True)
class ResolvedRun:
    """A run's numbers, with all decided that its configuration leaves open."""

    data: str | tuple[str, ...]
    """Data set; several with their shares, as a command line names them."""
    seed: int
    fingerprint: str
    samples_per_epoch: int
    steps: int
    epochs: float
    batch_size: int
    """Images a step over all devices: world_size x micro_batch_size x accumulation."""
    world_size: int
    micro_batch_size: int
    accumulation: int
    peak_lr: float
    segments: tuple[Segment, ...]
    """Schedule of the learning rate: one segment, and one more each time that the run is extended."""
    save_every: int
    device: str
    """Type of device that every process trains on: "cpu" or "cuda"."""
    precision: str
    ds_config: str
    stage: int
    deepspeed: DeepSpeedConfig
    init_digest: str | None = None
    """Hash of the weights that the run starts from; None: random ones."""
    sources: tuple[dict[str, Any], ...] = ()
    """Name, share, the same as a whole number (weight), images and fingerprint of each of several data sets."""
    pixels: dict[str, Any] | None = None
    """Channels, type, mean and deviation of the images (`Preprocessing.to_json`); None: 8-bit RGB, as ImageNet's."""

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up of the newest segment."""
        return self.segments[-1].warmup_steps

    def in_micro_batches_of(self, images: int) -> ResolvedRun:
        """Return the run with so many images per forward pass, a divisor of those per device."""
        accumulation = self.images_per_device // images
        deepspeed = replace(self.deepspeed, micro_batch_size=images, accumulation=accumulation)
        return replace(self, micro_batch_size=images, accumulation=accumulation, deepspeed=deepspeed)

    @property
    def images_per_device(self) -> int:
        """Images a step on each device."""
        return self.micro_batch_size * self.accumulation

    def ends_epochs(self, step: int, every: int | None) -> bool:
        """Whether a multiple of `every` epochs ends in a step; never without `every`."""
        if every is None:
            return False
        samples = every * self.samples_per_epoch
        return step * self.batch_size // samples > (step - 1) * self.batch_size // samples

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without `sources` for one data set."""
        return {
            **{name: value for name, value in vars(self).items() if name != "sources" or value},
            "warmup_steps": self.warmup_steps,
            "segments": [asdict(each) for each in self.segments],
            "deepspeed": self.deepspeed.to_json(),
        }


def resolve(
    config: RunConfig,
    deepspeed: DeepSpeedConfig,
    *,
    data: str | tuple[str, ...],
    fingerprint: str,
    samples_per_epoch: int,
    world_size: int,
    device: str,
    has_bf16: bool,
    init_digest: str | None = None,
    sources: tuple[dict[str, Any], ...] = (),
    pixels: dict[str, Any] | None = None,
) -> ResolvedRun:
    """Resolve a run on `samples_per_epoch` images and `world_size` processes.

    Raises:
        UsageError: the command line, the DeepSpeed file and the number of processes contradict each other.
    """
    batch_size, micro, accumulation = resolve_batch(config, deepspeed, samples_per_epoch, world_size, device)
    epochs = config.epochs if config.epochs is not None else config.default_epochs
    steps = config.steps or max(1, round(epochs * samples_per_epoch / batch_size))
    steps_per_epoch = samples_per_epoch / batch_size
    segment = plan_segment(config, steps_per_epoch, end=steps)
    asked = chosen_precision(config.precision, deepspeed.content, deepspeed.source)
    precision = asked or ("bf16" if has_bf16 else "fp32")
    if config.compile and deepspeed.stage == 3:
        raise UsageError(
            f"--compile does not work with ZeRO stage 3 ({deepspeed.source}): leave it out, or use zero2.json"
        )
    if config.decode == "gpu" and device == "cpu":
        raise UsageError("--decode gpu needs a GPU, and this run has none: leave it out, or use --decode cpu")
    return ResolvedRun(
        data=data,
        seed=config.seed,
        fingerprint=fingerprint,
        samples_per_epoch=samples_per_epoch,
        steps=steps,
        epochs=steps / steps_per_epoch,
        batch_size=batch_size,
        world_size=world_size,
        micro_batch_size=micro,
        accumulation=accumulation,
        peak_lr=peak_lr(config.base_lr, batch_size),
        segments=(segment,),
        save_every=config.save_every or min(MOST_STEPS_PER_CHECKPOINT, max(math.ceil(steps_per_epoch), steps // 50)),
        device=device,
        precision=precision,
        ds_config=deepspeed.source,
        stage=deepspeed.stage,
        deepspeed=replace(
            deepspeed,
            batch_size=batch_size,
            micro_batch_size=micro,
            accumulation=accumulation,
            precision=precision,
            weight_decay=config.weight_decay,
            betas=deepspeed.betas or config.betas,
        ),
        init_digest=init_digest,
        sources=sources,
        pixels=pixels,
    )


def resolve_batch(
    config: RunConfig, deepspeed: DeepSpeedConfig, samples_per_epoch: int, world_size: int, device: str
) -> tuple[int, int, int]:
    """Return (global batch, micro-batch, gradient accumulation).

    `--micro-batch-size auto` is the whole share of a device here, until `coma.training.memory.fit` finds what fits.

    Raises:
        UsageError: command line, file and number of processes do not multiply up exactly.
    """
    in_file, micro, accumulation = deepspeed.batch_size, deepspeed.micro_batch_size, deepspeed.accumulation
    source = deepspeed.source
    if config.batch_size is not None and in_file is not None and config.batch_size != in_file:
        raise UsageError(
            f"--batch-size {config.batch_size} contradicts {BATCH_KEY!r}: {in_file} in {source}: "
            "delete the key, or make them equal"
        )
    batch_size = config.batch_size or in_file
    if batch_size is None and micro is not None:
        batch_size = micro * (accumulation or 1) * world_size
    if batch_size is None:
        batch_size = default_batch(samples_per_epoch, world_size, device)
    if batch_size % world_size:
        raise UsageError(
            f"the global batch of {batch_size} does not divide over {processes(world_size)}: "
            f"use --batch-size {max(1, round(batch_size / world_size)) * world_size}"
        )
    per_device = batch_size // world_size
    if micro is None:
        accumulation = accumulation or 1
        if per_device % accumulation:
            raise UsageError(
                f"{ACCUMULATION_KEY!r}: {accumulation} in {source} does not divide the {per_device} "
                "images a device "
                f"(--batch-size {batch_size} over {world_size})"
            )
        micro = per_device // accumulation
    if micro * (accumulation or max(1, per_device // micro)) != per_device:
        product = f"{micro} x {accumulation}" if accumulation else f"a multiple of {micro}"
        raise UsageError(
            f"{MICRO_KEY!r}: {micro} in {source} contradicts the global batch of {batch_size} over "
            f"{processes(world_size)}: {per_device} images a device is not {product}"
        )
    if config.micro_batch_size is not None:
        micro = _asked_micro_batch(config.micro_batch_size, micro, deepspeed, batch_size, world_size)
    return batch_size, micro, per_device // micro


def _asked_micro_batch(
    asked: int | str, micro: int, deepspeed: DeepSpeedConfig, batch_size: int, world_size: int
) -> int:
    """Return the micro-batch of --micro-batch-size, where the file and the batch allow `micro`."""
    keys = {MICRO_KEY: deepspeed.micro_batch_size, ACCUMULATION_KEY: deepspeed.accumulation}
    for key, value in keys.items():
        if value is not None and asked != micro:
            raise UsageError(
                f"--micro-batch-size {asked} contradicts {key!r}: {value} in {deepspeed.source}: "
                f"use --micro-batch-size {micro}, or delete the key"
            )
    per_device = batch_size // world_size
    if isinstance(asked, str):  # auto
        return micro
    if per_device % asked:
        nearest = min(divisors(per_device), key=lambda images: abs(images - asked))
        raise UsageError(
            f"--micro-batch-size {asked} does not divide the {per_device} images a device "
            f"(a batch of {batch_size} over {processes(world_size)}): use --micro-batch-size {nearest}"
        )
    return asked


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the smallest first."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def processes(count: int) -> str:
    """Return a count with its noun: `1 process`, `2 processes`."""
    return f"{count} process{'es' if count > 1 else ''}"


def default_batch(samples_per_epoch: int, world_size: int, device: str) -> int:
    """Return the batch size without --batch-size: a power of two, smaller where an epoch would have few steps."""
    batch_size = DEFAULT_BATCH_CPU if device == "cpu" else DEFAULT_BATCH_GPU
    while batch_size > 1 and batch_size * LEAST_STEPS_PER_EPOCH > samples_per_epoch:
        batch_size //= 2
    return math.ceil(batch_size / world_size) * world_size
