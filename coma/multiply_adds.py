"""How many multiply-adds a network's forward pass takes, by torch's FlopCounterMode."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def multiply_adds(model: nn.Module, images: Tensor, units: Tensor) -> float:
    """Of images [B, 3, H, W] with units [B, U], all views and the decoder; on the meta device nothing is computed."""
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        model(images, units)
    return float(counter.get_total_flops() / 2)


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the CPU's fused kernel, which the counter does not know. Shapes come in."""
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]
