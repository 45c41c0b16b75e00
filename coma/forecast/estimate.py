"""What a run would take, before it is begun: `coma plan`. Writes nothing.

Memory and disk are arithmetic; time and activations are measured in a few real steps of the run's own network and
engine, alone in this process, on images held in memory.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from coma.errors import UsageError
from coma.forecast.memory import StateMemory, checkpoint_bytes, metrics_bytes, state_memory
from coma.measure import kept_bytes
from coma.pipeline.views import partition_units
from coma.runs.read import checkpoint_step, latest_checkpoint
from coma.training.config.ds_config import ACCUMULATION_KEY, BATCH_KEY, MICRO_KEY
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.logs.trackers import check_installed
from coma.training.processes.world import Place, World, joined
from coma.training.setup import Prepared, device_name, prepare
from coma.training.tasks.pretraining import Pretraining

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

_ROUNDS = 3
_TURN_S = 2.0
"""On a CPU as many images are measured together as take about so long; a GPU gets its micro-batch."""

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Medians of a few steps."""

    images: int
    """So many at a time."""
    forward_backward_s: float
    """Of these images."""
    update_s: float
    activation_bytes_per_image: int
    """What the backward pass keeps of the forward pass."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a run would take."""

    config: PretrainConfig
    resolved: ResolvedRun
    run: str
    begun_at: int
    """Steps that the run has behind it, if the command would go on with one."""
    parameters: int
    """Decoder included."""
    backbone_parameters: int
    memory: StateMemory
    """Of each process, without activations."""
    device_name: str
    device_bytes: int
    """Memory of a device; on a CPU, the machine's."""
    checkpoint_bytes: int
    checkpoints: int
    """Kept at a time."""
    metrics_bytes: int
    hosts: int
    measured: Measured | None

    @property
    def activation_bytes(self) -> int | None:
        """Of a micro-batch, on each device."""
        if self.measured is None:
            return None
        return self.measured.activation_bytes_per_image * self.resolved.micro_batch_size

    @property
    def step_s(self) -> float | None:
        """Seconds of a step; processes on a CPU share it."""
        if self.measured is None:
            return None
        parts = self.hosts if self.resolved.device == "cpu" else self.resolved.world_size
        images = self.resolved.batch_size / parts
        return self.measured.forward_backward_s * images / self.measured.images + self.measured.update_s

    def to_json(self) -> dict[str, Any]:
        """Plain values, with their units in their names."""
        resolved, step_s, activations = self.resolved, self.step_s, self.activation_bytes
        memory = self.memory
        return {
            "data": resolved.data,
            "images": resolved.samples_per_epoch,
            "run": self.run,
            "model": self.config.model,
            "method": self.config.method,
            "parameters": self.parameters,
            "backbone_parameters": self.backbone_parameters,
            "steps": resolved.steps,
            "begun_at": self.begun_at,
            "epochs": resolved.epochs,
            "batch_size": resolved.batch_size,
            "devices": resolved.world_size,
            "micro_batch_size": resolved.micro_batch_size,
            "accumulation": resolved.accumulation,
            "peak_lr": resolved.peak_lr,
            "warmup_steps": resolved.warmup_steps,
            "precision": resolved.precision,
            "stage": resolved.stage,
            "ds_config": resolved.ds_config,
            "weights_bytes": memory.weights,
            "gradients_bytes": memory.gradients,
            "optimizer_bytes": memory.optimizer,
            "buckets_bytes": memory.buckets,
            "activations_bytes": activations,
            "device_memory_bytes": memory.device + (activations or 0),
            "host_memory_bytes": memory.host,
            "drive_bytes": memory.files,
            "device": self.device_name,
            "device_bytes": self.device_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints": self.checkpoints,
            "save_every": resolved.save_every,
            "metrics_bytes": self.metrics_bytes,
            "step_s": step_s,
            "images_per_s": step_s and resolved.batch_size / step_s,
            "hours": step_s and resolved.steps * step_s / 3600,
            "hours_left": step_s and (resolved.steps - self.begun_at) * step_s / 3600,
        }


class _Foreseen(World):
    """The processes that the run would have; this one is the only one that is there."""

    def agree(self, decide: Callable[[], T]) -> T:
        """There is nobody to tell."""
        return decide()

    def gather(self, value: T) -> list[T]:
        """There is nobody to hear from."""
        return [value]


def estimate(config: PretrainConfig, *, measure: bool = True) -> Estimate:
    """Resolve a configuration as `coma pretrain` would, and measure a few steps.

    Raises:
        UsageError, DataError: what `coma pretrain` would refuse; or a step does not fit in a GPU's memory.
    """
    check_installed(config.trackers)
    hosts, processes = _processes(config)
    with joined(None) as here:
        world = _Foreseen(Place(0, 0, processes, "", 0), here.device)
        prepared = prepare(config, world)
        model = network(prepared)
        found = _measure(prepared, here) if measure else None
    resolved, parameters, run = prepared.resolved, prepared.facts["parameters"], prepared.folder.path
    checkpoint = latest_checkpoint(run) if prepared.folder.begun else None
    return Estimate(
        config=config,
        resolved=resolved,
        run=str(run),
        begun_at=checkpoint_step(checkpoint) if checkpoint else 0,
        parameters=parameters,
        backbone_parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        memory=state_memory(parameters, resolved),
        device_name=prepared.facts["device_name"],
        device_bytes=_device_bytes(here.device),
        checkpoint_bytes=checkpoint_bytes(parameters),
        checkpoints=_checkpoints_kept(config, resolved),
        metrics_bytes=metrics_bytes(resolved),
        hosts=hosts,
        measured=found,
    )


def network(prepared: Prepared) -> MaskedAutoencoder:
    """Return what pre-training trains."""
    assert isinstance(prepared.task, Pretraining)
    return prepared.task.model


def _checkpoints_kept(config: PretrainConfig, resolved: ResolvedRun) -> int:
    """Count the checkpoints that lie there in the end."""
    kept_for_good = [
        step for step in range(1, resolved.steps + 1) if resolved.ends_epochs(step, config.keep_every_epochs)
    ]
    saved = (
        set(kept_for_good)
        | set(range(resolved.save_every, resolved.steps, resolved.save_every))
        | {resolved.steps}
    )
    return len(set(kept_for_good) | set(sorted(saved)[-config.keep_last :]))


def _processes(config: PretrainConfig) -> tuple[int, int]:
    """Return how many machines and how many processes the run would have."""
    if config.hostfile is None:
        return 1, config.devices or 1
    from coma.training.processes.launch import read_hostfile

    slots = read_hostfile(config.hostfile)
    return len(slots), sum(slots.values())


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _measure(prepared: Prepared, world: World) -> Measured:
    """Take a few steps of one process on random images; the model is spent afterwards."""
    from coma.training.engine.engine import dispose, make_engine, optimizer_step

    resolved, device, model = prepared.resolved, world.device, network(prepared)
    most = resolved.micro_batch_size
    images = torch.randn(most, 3, *model.img_size, device=device)
    samples = torch.arange(most, device=device)
    units = partition_units(samples, torch.zeros_like(samples), seed=0, units=model.units)
    sizes = {BATCH_KEY: most, MICRO_KEY: most, ACCUMULATION_KEY: 1}
    alone = dataclasses.replace(resolved, world_size=1, deepspeed=resolved.deepspeed | sizes)

    def turn(count: int) -> tuple[float, float]:
        began_s = _now_s(device)
        engine.backward(engine(images[:count], units[:count]))
        between_s = _now_s(device)
        optimizer_step(engine)
        return between_s - began_s, _now_s(device) - between_s

    try:
        kept = _kept_bytes(model.to(device), images[:1], units[:1], resolved.precision)
        engine = make_engine(model, alone, compile_model=prepared.config.compile)
        try:
            turn(1)
            one_s, _ = turn(1)
            count = most if device.type == "cuda" else max(1, min(most, int(_TURN_S / one_s)))
            turns = [turn(count) for _ in range(1 + _ROUNDS)][1:]
        finally:
            dispose(engine)
    except torch.cuda.OutOfMemoryError:
        raise UsageError(
            f"a step of {most} images a device does not fit in the memory of {device_name(device)}: give a "
            f"smaller --batch-size, or {MICRO_KEY!r} in a --ds-config; --no-measure shows what is known without a step"
        ) from None
    return Measured(
        images=count,
        forward_backward_s=statistics.median(passed_s for passed_s, _ in turns),
        update_s=statistics.median(update_s for _, update_s in turns),
        activation_bytes_per_image=kept,
    )


def _kept_bytes(model: nn.Module, image: Tensor, units: Tensor, precision: str) -> int:
    """What the backward pass keeps of one image's forward pass; autocast is counted as float32."""
    model.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
    return kept_bytes(model, lambda: model(image.to(next(model.parameters()).dtype), units))


def _now_s(device: torch.device) -> float:
    """Time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
