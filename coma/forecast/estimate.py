"""Forecast of a run before it starts, for `coma plan`; nothing is written.

Memory and disk are arithmetic, activations are measured without computing them; time is measured in a few real steps of
the run's own network and engine, in this process alone, on random images.
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

from coma.errors import UsageError
from coma.forecast.choices import Choice, choices
from coma.forecast.disk import checkpoint_bytes, metrics_bytes
from coma.model.autoencoder import MaskedAutoencoder
from coma.pipeline.views import partition_units
from coma.runs.names import checkpoint_step
from coma.runs.read import latest_checkpoint
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.logs.trackers import check_installed
from coma.training.memory.fit import Footprint, fitting, free_bytes
from coma.training.memory.fit import measure as measure_footprint
from coma.training.processes.gpus import processes_here
from coma.training.processes.launch import read_hostfile
from coma.training.processes.world import Place, World, joined
from coma.training.run_folder import choose_run
from coma.training.setup import Prepared, device_name, prepare
from coma.training.tasks.pretraining import Pretraining

_ROUNDS = 3
_ROUND_S = 2.0
"""Duration of a timing round on a CPU, which sets its number of images; a GPU gets its micro-batch."""

_USED = 0.8
"""Share of the free memory that the images of a round may take."""

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """Median times of a few steps."""

    images: int
    """Images per forward pass."""
    forward_backward_s: float
    """Seconds of a forward and backward pass on so many images."""
    update_s: float
    """Seconds of the optimizer's update."""


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
    footprint: Footprint
    """Memory of each process."""
    choices: tuple[Choice, ...]
    """What the run would take with other micro-batches, recomputation and ZeRO stages."""
    device_name: str
    device_bytes: int
    """Memory of a device; for a CPU, that of the machine."""
    free_bytes: int
    """What each process can get of it now."""
    checkpoint_bytes: int
    checkpoints: int
    """Number of checkpoints that are kept in the end."""
    metrics_bytes: int
    hosts: int
    """Number of machines."""
    init: dict[str, Any] | None
    """What --init would give the network, as RUN/config.json has it; None without --init."""
    measured: Measurement | None
    """None where nothing was to be measured."""

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that each device keeps for the backward pass, of a micro-batch."""
        return self.footprint.activations.kept * self.resolved.micro_batch_size

    @property
    def step_bytes(self) -> int:
        """Bytes that a step takes on each device at its peak, three batches of images included."""
        return self.footprint.expected(self.resolved)

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
        resolved, memory, step_s = self.resolved, self.footprint.state, self.step_s
        return {
            "data": list(resolved.data) if isinstance(resolved.data, tuple) else resolved.data,
            "images": resolved.samples_per_epoch,
            "run": self.run,
            "model": self.config.model,
            "method": self.config.method,
            "init": self.init,
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
            "activations_bytes": self.activation_bytes,
            "device_memory_bytes": self.step_bytes,
            "host_memory_bytes": memory.host,
            "drive_bytes": memory.swap_files,
            "device": self.device_name,
            "device_bytes": self.device_bytes,
            "free_bytes": self.free_bytes,
            "choices": [each.to_json(self.free_bytes) for each in self.choices],
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


def estimate(config: PretrainConfig, *, measure: bool = True, device_memory: int | None = None) -> Forecast:
    """Forecast the run that `coma pretrain` would start or resume with a configuration.

    Args:
        config: the options of `coma pretrain`.
        measure: whether to measure time in a few steps.
        device_memory: bytes of each device's memory, if the run is meant for GPUs that are not here; no time is
            measured then.

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
        if device_memory is None:
            free, name, whole = free_bytes(prepared, here.device, processes // hosts), None, _device_bytes(here.device)
        else:
            prepared = dataclasses.replace(prepared, resolved=dataclasses.replace(prepared.resolved, device="cuda"))
            free, name, whole = device_memory, "a GPU that is not here", device_memory
        footprint = measure_footprint(prepared)
        if config.micro_batch_size == "auto":
            images = (fitting(prepared.resolved, footprint, free) or [1])[0]
            prepared = dataclasses.replace(prepared, resolved=prepared.resolved.in_micro_batches_of(images))
        found = choices(prepared, footprint)
        measured = None
        if measure and device_memory is None:
            measured = _measure(prepared, model, here)
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
        footprint=footprint,
        choices=tuple(found),
        device_name=name or prepared.facts["device_name"],
        device_bytes=whole,
        free_bytes=free,
        checkpoint_bytes=checkpoint_bytes(parameters),
        checkpoints=_checkpoints_kept(config, resolved),
        metrics_bytes=metrics_bytes(resolved),
        hosts=hosts,
        init=prepared.facts.get("init"),
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


def _measure(prepared: Prepared, model: MaskedAutoencoder, world: World) -> Measurement | None:
    """Time a few steps of one process on random images; the model cannot be used afterwards.

    None where this process alone has not the memory for a step of one image.
    """
    from coma.training.engine.deterministic import deterministic_kernels
    from coma.training.engine.engine import dispose, make_engine, optimizer_step

    device = world.device
    deepspeed = dataclasses.replace(prepared.resolved.deepspeed, batch_size=1, micro_batch_size=1, accumulation=1)
    alone = dataclasses.replace(
        prepared.resolved, world_size=1, batch_size=1, micro_batch_size=1, accumulation=1, deepspeed=deepspeed
    )
    footprint = measure_footprint(dataclasses.replace(prepared, resolved=alone))
    room = free_bytes(prepared, device, 1) - footprint.expected(alone)
    if room < 0:
        return None
    most = min(prepared.resolved.micro_batch_size, 1 + int(room * _USED / footprint.activations.peak))

    def take_step(count: int) -> tuple[float, float]:
        """Return the seconds of forward and backward passes on so many images, and those of the update."""
        images = torch.randn(count, model.encoder.in_chans, *model.img_size, device=device)
        samples = torch.arange(count, device=device)
        units = partition_units(samples, torch.zeros_like(samples), seed=0, units=model.units)
        began_s = _now_s(device)
        with deterministic_kernels():
            engine.backward(engine(images, units))
            between_s = _now_s(device)
            optimizer_step(engine)
        return between_s - began_s, _now_s(device) - between_s

    try:
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
            "smaller --micro-batch-size; --no-measure shows what is known without a step"
        ) from None
    return Measurement(
        images=count,
        forward_backward_s=statistics.median(passed_s for passed_s, _ in steps),
        update_s=statistics.median(update_s for _, update_s in steps),
    )


def _now_s(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
