"""One optimizer step on this rank's part of a batch: seeds, micro-batches, forward and backward pass, update."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from coma.training.engine.deterministic import deterministic_kernels
from coma.training.engine.engine import optimizer_step


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what is drawn in a step (drop path, augmentation) a function of seed, step and rank."""
    number = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode())
    torch.manual_seed(number)
    np.random.seed(number % (1 << 32))
    random.seed(number)


def micro_batches(images: int, size: int) -> list[slice]:
    """Cut a rank's part of a batch into consecutive micro-batches."""
    return [slice(start, start + size) for start in range(0, images, size)]


def train_step(
    engine: Any, inputs: Sequence[Tensor], micro_batch_size: int, after_forward: Callable[[], None] | None = None
) -> tuple[list[float], float, bool]:
    """Take one optimizer step with gradient accumulation over micro-batches; collective.

    `inputs` are the arguments of the network, each with one row per image. `after_forward` is called after each forward
    pass.

    Returns:
        The loss of each micro-batch of this rank, the global norm of the gradient before clipping, and whether the
        step was applied: it is not if that norm is not finite.
    """
    losses: list[Tensor] = []
    with deterministic_kernels():
        for part in micro_batches(len(inputs[0]), micro_batch_size):
            if losses:
                engine.step()  # counts the micro-batch before; only that of the last one updates the weights
            loss = engine(*(rows[part] for rows in inputs))
            if after_forward is not None:
                after_forward()
            engine.backward(loss)
            losses.append(loss.detach())
        grad_norm, applied = optimizer_step(engine)
    return torch.stack(losses).tolist(), grad_norm, applied
