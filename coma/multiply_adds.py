"""How many multiply-adds a network's forward pass takes, by torch's FlopCounterMode."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def multiply_adds(model: nn.Module, *inputs: Tensor) -> float:
    """Of what the model takes: an autoencoder images [B, 3, H, W] and units [B, U], and its decoder counts too.

    On the meta device nothing is computed.
    """
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        model(*inputs)
    return float(counter.get_total_flops() / 2)


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the CPU's fused kernel, which the counter does not know. Shapes come in."""
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]
