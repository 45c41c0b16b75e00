"""Exponential moving average (EMA) of the weights, kept where the optimizer keeps its own state.

It is one more state beside Adam's moments: partitioned among the processes as those are at any ZeRO stage, in
float32, saved with them, and restored by another number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from coma.training.engine.nvme import in_memory
from coma.training.engine.optimizer_state import partitions
from coma.training.processes.world import World

_KIND = "average"
"""The state's name in the optimizer, beside exp_avg and exp_avg_sq."""


class ExponentialMovingAverage:
    """The EMA of an engine's weights.

    `decay` is the share of the average that a step keeps; below 1. Early steps keep less, (1 + n) / (10 + n) at step n,
    or the average would be of the initial weights for long (as TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, engine: Any, decay: float) -> None:
        """Keep the engine; memory is allocated when the first average is asked for."""
        self._engine, self._decay = engine, decay

    @cached_property
    def _flats(self) -> list[Tensor]:
        """The optimizer's float32 tensors of weights on this process."""
        return list({id(each.flat): each.flat for each in partitions(self._engine)}.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for flat in self._flats:
            state = self._engine.basic_optimizer.state[flat]
            with in_memory(self._engine, flat):
                if _KIND in state:
                    state[_KIND].lerp_(flat.detach(), 1 - decay)
                else:
                    state[_KIND] = flat.detach().clone()

    def gather(self, weights: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
        """Return `weights`, those of `full_weights`, with the average in the parameters' place.

        Collective; the result is empty but on rank 0. Buffers stay those of `weights`.
        """
        states = self._engine.basic_optimizer.state
        averaged = {name: value.clone() for name, value in weights.items()}
        own: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for partition in partitions(self._engine):
            if _KIND in states.get(partition.flat, {}):  # not after a first step that was skipped
                own[partition.name].append((partition.start, partition.of(states[partition.flat][_KIND])))
        # Below stage 1 every process has all of it.
        partitioned = self._engine.zero_optimization()
        if not world.sum([len(own)])[0] or not (partitioned or world.is_rank0):
            return averaged
        for name, parameter in self._engine.module.named_parameters():
            average = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()), device=world.device)
            for start, values in own[name]:
                average[start : start + len(values)] = values
            if partitioned:
                world.sum_on_rank0(average)
            if world.is_rank0:
                averaged[name].view(-1).copy_(average)
        return averaged
