"""An exponential moving average of the weights, kept where the optimizer keeps its own state.

It is one more state beside Adam's moments: cut among the processes as those are at any ZeRO stage, in float32, saved
with them, and taken up again by another number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from coma.training.engine.nvme import in_memory
from coma.training.engine.optimizer_state import pieces
from coma.training.processes.world import World

KIND = "average"
"""The state's name in the optimizer's."""


class WeightAverage:
    """The average of an engine's weights.

    Args:
        engine: DeepSpeed's.
        decay: what a step leaves of the average before it; below 1. Early on less is left, (1 + n) / (10 + n) at step
            n, or the average would be of the initial weights for long (as TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, engine: Any, decay: float) -> None:
        """Look at nothing yet."""
        self._engine, self._decay = engine, decay

    @cached_property
    def _flats(self) -> list[Tensor]:
        """The float32 weights of this process, as its optimizer has them."""
        return list({id(piece.flat): piece.flat for piece in pieces(self._engine)}.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`, counted from 1, which were just changed."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for flat in self._flats:
            state = self._engine.basic_optimizer.state[flat]
            with in_memory(self._engine, flat):
                if KIND in state:
                    state[KIND].lerp_(flat.detach(), 1 - decay)
                else:
                    state[KIND] = flat.detach().clone()

    def whole(self, weights: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
        """Return the average under the names of `full_weights`, with its buffers; collective, empty but on rank 0."""
        states = self._engine.basic_optimizer.state
        whole = {name: value.clone() for name, value in weights.items()}
        mine: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for piece in pieces(self._engine):
            if KIND in states.get(piece.flat, {}):  # but after a first step that was skipped
                mine[piece.name].append((piece.start, piece.of(states[piece.flat][KIND])))
        # Below stage 1 every process has all of it.
        parted = self._engine.zero_optimization()
        if not world.sum([len(mine)])[0] or not (parted or world.is_rank0):
            return whole
        for name, parameter in self._engine.module.named_parameters():
            average = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()), device=world.device)
            for start, values in mine[name]:
                average[start : start + len(values)] = values
            if parted:
                world.sum_on_rank0(average)
            if world.is_rank0:
                whole[name].view(-1).copy_(average)
        return whole
