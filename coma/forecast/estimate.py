"""Forecast of a run before it starts, for `coma plan`; nothing is written.

Memory and disk are arithmetic; time and activations are measured in a few real steps of the run's own network and
engine, in this process alone, on random images.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from coma.errors import UsageError
from coma.forecast.disk import checkpoint_bytes, metrics_bytes
from coma.measure import kept_bytes
from coma.model.autoencoder import MaskedAutoencoder
from coma.pipeline.views import partition_units
from coma.runs.names import checkpoint_step
from coma.runs.read import latest_checkpoint
from coma.training.config.ds_check import MICRO_KEY
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.logs.trackers import check_installed
from coma.training.memory.state import StateMemory, state_memory
from coma.training.processes.gpus import processes_here
from coma.training.processes.launch import read_hostfile
from coma.training.processes.world import Place, World, joined
from coma.training.run_folder import choose_run
from coma.training.setup import Prepared, device_name, prepare
from coma.training.tasks.pretraining import Pretraining

_ROUNDS = 3
_ROUND_S = 2.0
"""Duration of a timing round on a CPU, which sets its number of images; a GPU gets its micro-batch."""

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """Median times of a few steps, and the memory of activations."""

    images: int
    """Images per forward pass."""
    forward_backward_s: float
    """Seconds of a forward and backward pass on so many images."""
    update_s: float
    """Seconds of the optimizer's update."""
    activation_bytes_per_image: int
    """Bytes of the forward pass that are kept for the backward pass."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """Steps, memory, disk and time that a run would take."""

    config: PretrainConfig
    resolved: ResolvedRun
    run: str
    begun_at: int
    """Step at which the command would resume an unfinished run; 0: it would start a new one."""
    parameters: int
    """Number of parameters, those of the decoder included."""
    backbone_parameters: int
    memory: StateMemory
    """Memory of each process, without activations."""
    device_name: str
    device_bytes: int
    """Memory of a device; for a CPU, that of the machine."""
    checkpoint_bytes: int
    checkpoints: int
    """Number of checkpoints that are kept in the end."""
    metrics_bytes: int
    hosts: int
    """Number of machines."""
    measured: Measurement | None
    """None where nothing was to be measured."""

    @property
    def activation_bytes(self) -> int | None:
        """Bytes of activations on each device, of a micro-batch."""
        if self.measured is None:
            return None
        return self.measured.activation_bytes_per_image * self.resolved.micro_batch_size

    @property
    def step_s(self) -> float | None:
        """Seconds per step; the processes of a machine share its CPU."""
        if self.measured is None:
            return None
        parts = self.hosts if self.resolved.device == "cpu" else self.resolved.world_size
        images = self.resolved.batch_size / parts
        return self.measured.forward_backward_s * images / self.measured.images + self.measured.update_s

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with their units in their names."""
        resolved, memory, step_s = self.resolved, self.memory, self.step_s
        activations = self.activation_bytes
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
            "drive_bytes": memory.swap_files,
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


class _AloneWorld(World):
    """The group of processes that the run would have, of which rank 0 alone exists: it communicates with none."""

    def run_on_rank0(self, decide: Callable[[], T]) -> T:
        """Return this process's decision."""
        return decide()

    def gather(self, value: T) -> list[T]:
        """Return this process's value."""
        return [value]


def estimate(config: PretrainConfig, *, measure: bool = True) -> Forecast:
    """Forecast the run that `coma pretrain` would start or resume with a configuration.

    Args:
        config: the options of `coma pretrain`.
        measure: whether to measure activations and time in a few steps.

    Raises:
        UsageError, DataError: what `coma pretrain` would refuse; or a step does not fit in a GPU's memory.
    """
    check_installed(config.trackers)
    hosts, processes = _processes(config)
    with joined(None) as here:
        world = _AloneWorld(Place(0, 0, processes, "", 0), here.device)
        prepared = prepare(config, world)
        assert isinstance(prepared.task, Pretraining)
        model = prepared.task.model
        measured = _measure(prepared, model, here) if measure else None
    resolved, parameters = prepared.resolved, prepared.facts["parameters"]
    folder = choose_run(config, resolved)
    if folder.segments:
        resolved = dataclasses.replace(resolved, segments=folder.segments)
    checkpoint = latest_checkpoint(folder.path) if folder.begun else None
    return Forecast(
        config=config,
        resolved=resolved,
        run=str(folder.path),
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
        measured=measured,
    )


def _checkpoints_kept(config: PretrainConfig, resolved: ResolvedRun) -> int:
    """Count the checkpoints that a finished run holds: milestones, and the newest."""
    steps = range(1, resolved.steps + 1)
    milestones = {step for step in steps if resolved.ends_epochs(step, config.keep_every_epochs)}
    saved = milestones | {*range(resolved.save_every, resolved.steps, resolved.save_every), resolved.steps}
    return len(milestones | set(sorted(saved)[-config.keep_last :]))


def _processes(config: PretrainConfig) -> tuple[int, int]:
    """Return the number of machines and of processes that the run would have."""
    if config.hostfile is None:
        return 1, processes_here(config.devices)
    slots = read_hostfile(config.hostfile)
    return len(slots), sum(slots.values())


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _measure(prepared: Prepared, model: MaskedAutoencoder, world: World) -> Measurement:
    """Time a few steps of one process on random images; the model cannot be used afterwards."""
    from coma.training.engine.engine import dispose, make_engine, optimizer_step

    resolved, device = prepared.resolved, world.device
    most = resolved.micro_batch_size
    images = torch.randn(most, 3, *model.img_size, device=device)
    samples = torch.arange(most, device=device)
    units = partition_units(samples, torch.zeros_like(samples), seed=0, units=model.units)
    deepspeed = dataclasses.replace(resolved.deepspeed, batch_size=most, micro_batch_size=most, accumulation=1)
    alone = dataclasses.replace(resolved, world_size=1, deepspeed=deepspeed)

    def take_step(count: int) -> tuple[float, float]:
        """Return the seconds of forward and backward passes on so many images, and those of the update."""
        began_s = _now_s(device)
        engine.backward(engine(images[:count], units[:count]))
        between_s = _now_s(device)
        optimizer_step(engine)
        return between_s - began_s, _now_s(device) - between_s

    try:
        kept = _kept_bytes(model.to(device), images[:1], units[:1], resolved.precision)
        engine = make_engine(model, alone, compile_model=prepared.config.compile)
        try:
            take_step(1)
            one_s, _ = take_step(1)
            count = most if device.type == "cuda" else max(1, min(most, int(_ROUND_S / one_s)))
            steps = [take_step(count) for _ in range(1 + _ROUNDS)][1:]
        finally:
            dispose(engine)
    except torch.cuda.OutOfMemoryError:
        raise UsageError(
            f"a step of {most} images a device does not fit in the memory of {device_name(device)}: give a "
            f"smaller --batch-size, or {MICRO_KEY!r} in a --ds-config; --no-measure shows what is known without a step"
        ) from None
    return Measurement(
        images=count,
        forward_backward_s=statistics.median(passed_s for passed_s, _ in steps),
        update_s=statistics.median(update_s for _, update_s in steps),
        activation_bytes_per_image=kept,
    )


def _kept_bytes(model: nn.Module, image: Tensor, units: Tensor, precision: str) -> int:
    """Return the bytes of activations of one image; autocast is counted as float32."""
    model.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
    return kept_bytes(model, lambda: model(image.to(next(model.parameters()).dtype), units))


def _now_s(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
