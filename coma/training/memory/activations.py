"""Activation memory of a training step: tensors that are alive while a network runs on the meta device.

Nothing is computed there and nothing is allocated, so that a batch that would not fit can be measured, in tenths of a
second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_IMAGES = 2
"""Images that are measured: with one alone, some copies of tensors are views."""


@dataclass(frozen=True)
class Activations:
    """Bytes per image of a micro-batch; the gradients of the weights are not among them."""

    kept: int
    """Alive at the end of the forward pass."""
    peak: int
    """Most that is alive at a time in the forward and the backward pass."""


def measure_activations(
    build: Callable[[], nn.Module],
    example: Callable[[int], Sequence[Tensor]],
    dtype: torch.dtype,
    *,
    backward: bool = False,
) -> Activations:
    """Measure a training step of a network whose weights are of type `dtype`; random generators stay as they are.

    Args:
        build: makes the network, whose output is a loss.
        example: makes the arguments of the network for a number of images.
        dtype: type of the weights.
        backward: run the backward pass too, whose peak is above the forward pass's where activations are recomputed.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build().to(dtype)
        inputs = example(_IMAGES)
        alive = _Alive([*network.parameters(), *network.buffers(), *inputs])
        with _fused_attention(), alive:
            loss = network(*inputs)
            kept = alive.bytes
            if backward:
                for parameter in network.parameters():
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
                torch.autograd.backward(loss)  # `loss.backward()` would leave the mode
    return Activations(kept=kept // _IMAGES, peak=alive.peak // _IMAGES)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live; `known` ones are not counted."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Let attention keep what the fused kernels of real devices keep; on the meta device torch takes another way.

    The function is replaced, as a mode of torch's does not hold in what the backward pass recomputes in every version.
    """
    kernel = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kernel


class _Attention(torch.autograd.Function):
    """Attention of q [..., L, D], k and v [..., S, D], of which only the memory counts."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep queries, keys, values, the output and a number per query."""
        out = torch.empty_like(q.transpose(-2, -3)).transpose(-2, -3)  # laid out as torch's kernels do it
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Return gradients of the same sizes."""
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
