"""What fits: the memory of a run on each device with other micro-batches, recomputation and ZeRO stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coma.training.config.ds_config import read_ds_config
from coma.training.config.resolve import ResolvedRun, divisors
from coma.training.memory.fit import USABLE, Footprint, measure
from coma.training.memory.state import state_memory
from coma.training.setup import Prepared

_SIZES = 5
"""Micro-batches that are shown, the largest first."""
_STAGES = ("none", "1,2", "all")


@dataclass(frozen=True)
class Choice:
    """A run with one flag changed."""

    flag: str
    """The flag with its value."""
    device_bytes: int
    """Forecast of a step's peak on each device."""
    host_bytes: int
    """Forecast of what each process keeps in the machine's memory by offload."""
    is_the_run: bool
    """Whether the run has this value as it is."""

    def fits(self, free: int) -> bool:
        """Whether it fits in so many free bytes, as `--micro-batch-size auto` judges."""
        return self.device_bytes <= USABLE * free

    def to_json(self, free: int) -> dict[str, Any]:
        """Return plain values, and whether it fits in so many bytes."""
        return {**dataclasses.asdict(self), "fits": self.fits(free)}


def choices(prepared: Prepared, footprint: Footprint) -> list[Choice]:
    """Return the choices for a run, whose own footprint is given; nothing is computed or allocated."""
    resolved, config = prepared.resolved, prepared.config
    found = [
        _choice(f"--micro-batch-size {each.micro_batch_size}", footprint, each, each == resolved)
        for each in _smaller(resolved)
    ]
    stages = len(getattr(prepared.task.model.backbone, "stages", ())) or 1
    for value in _STAGES:
        if value != "1,2" or stages > 1:
            same = value == config.grad_checkpointing
            each = footprint if same else _recomputing(prepared, value)
            found.append(_choice(f"--grad-checkpointing {value}", each, resolved, same))
    for name in _configurations(resolved):
        other = _sharded(resolved, name)
        state = state_memory(prepared.facts["parameters"], other)
        same = other.ds_config == resolved.ds_config
        found.append(_choice(f"--ds-config {name}", dataclasses.replace(footprint, state=state), other, same))
    return found


def _choice(flag: str, footprint: Footprint, resolved: ResolvedRun, is_the_run: bool) -> Choice:
    return Choice(flag, footprint.expected(resolved), footprint.state.host, is_the_run)


def _smaller(resolved: ResolvedRun) -> Iterator[ResolvedRun]:
    """Yield the run with the largest micro-batches, each at most half of the one before, and with its own."""
    sizes: list[int] = []
    for size in reversed(divisors(resolved.images_per_device)):
        if size == resolved.micro_batch_size or (len(sizes) < _SIZES and (not sizes or size <= sizes[-1] // 2)):
            sizes.append(size)
    for size in sizes:
        yield resolved if size == resolved.micro_batch_size else resolved.in_micro_batches_of(size)


def _recomputing(prepared: Prepared, value: str) -> Footprint:
    model: Any = prepared.task.model
    own = prepared.config.checkpointed_stages
    model.checkpoint_stages(dataclasses.replace(prepared.config, grad_checkpointing=value).checkpointed_stages)
    try:
        return measure(prepared)
    finally:
        model.checkpoint_stages(own)


def _configurations(resolved: ResolvedRun) -> list[str]:
    """Return names of packaged configurations that differ in memory: stages part nothing with one process."""
    stages = ["zero0", "zero1", "zero2", "zero3"] if resolved.world_size > 1 else ["zero0", "zero1"]
    return [*stages, *(["zero2_offload", "zero3_offload"] if resolved.device == "cuda" else [])]


def _sharded(resolved: ResolvedRun, name: str) -> ResolvedRun:
    """Return the run under a packaged configuration."""
    other = read_ds_config(name)
    own = {field: getattr(resolved.deepspeed, field) for field in ("batch_size", "micro_batch_size", "accumulation")}
    other = dataclasses.replace(other, precision=resolved.precision, betas=resolved.deepspeed.betas, **own)
    return dataclasses.replace(resolved, stage=other.stage, ds_config=other.source, deepspeed=other)
