"""One optimizer step on this rank's part of a batch: seeds, micro-batches, forward and backward pass, update."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils import deterministic

from coma.training.engine.engine import optimizer_step


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what is drawn in a step (drop path, augmentation) a function of seed, step and rank."""
    number = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode())
    torch.manual_seed(number)
    np.random.seed(number % (1 << 32))
    random.seed(number)


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let torch choose kernels that compute the same bits each time, for the length of a block.

    On a GPU the backward passes of attention and of convolutions add up in the order in which threads finish, unless
    asked not to. An operation that has no such kernel raises RuntimeError, so nothing but the step is in the block.
    """
    settings: Any = deterministic
    mode, fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    settings.fill_uninitialized_memory = False  # a debugging aid that writes to memory twice
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fill


def micro_batches(images: int, size: int) -> list[slice]:
    """Cut a rank's part of a batch into consecutive micro-batches."""
    return [slice(start, start + size) for start in range(0, images, size)]


def train_step(engine: Any, inputs: Sequence[Tensor], micro_batch_size: int) -> tuple[list[float], float, bool]:
    """Take one optimizer step with gradient accumulation over micro-batches; collective.

    `inputs` are the arguments of the network, each with one row per image.

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
            engine.backward(loss)
            losses.append(loss.detach())
        grad_norm, applied = optimizer_step(engine)
    return torch.stack(losses).tolist(), grad_norm, applied
