"""Measurements of a network: multiply-adds of a forward pass, and the memory of its activations.

`keep_freed_memory` is here because it makes timings on a CPU those of the network and not of the C library.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536
"""glibc's defaults."""


def multiply_adds(model: nn.Module, *inputs: Tensor) -> float:
    """Count the multiply-adds of one forward pass of `model` over `inputs`, by torch's FlopCounterMode.

    An autoencoder takes images [B, 3, H, W] and units [B, U], and its decoder is counted too. On the meta device
    nothing is computed.
    """
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        model(*inputs)
    return float(counter.get_total_flops() / 2)


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Count for the CPU's fused attention kernel, which FlopCounterMode does not know; q, k and v are shapes."""
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def kept_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Measure the activation memory: bytes that autograd saves while `run` runs `model`, without its weights.

    Of what is recomputed in the backward pass (activation checkpointing) these are the inputs alone.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees; does nothing where the C library is not glibc.

    glibc gives blocks of more than 32 MiB back to the kernel at once, which then has to zero every page of them
    again: a sixth of a dyvit_base's training step of 8 images (docs/experiments.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # no block of its own mapping
        mallopt(_M_TRIM_THRESHOLD, -1)  # never give back the top of the heap


def give_back_freed_memory() -> None:
    """Undo `keep_freed_memory`, and give what was kept back to the kernel."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        library.malloc_trim(0)
