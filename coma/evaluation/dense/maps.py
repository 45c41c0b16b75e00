"""Frozen maps of patches: what a dense head sees of an image.

Legend: B images, C channels, h, w patches down and across.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.errors import DivergedError, UsageError
from coma.evaluation.maps import patch_maps
from coma.model.dyvit import DyViT


def default_stride(backbone: nn.Module) -> int:
    """Return the stride in pixels at which a backbone's patches are classified.

    It is that of the last stage but one of a hierarchical backbone (16 pixels for patches of 4), at which DyViT's
    decoder reads the stages too, and that of the patches of a ViT.
    """
    strides = sorted({each["reduction"] for each in _stages(backbone)})
    return int(strides[-2] if len(strides) > 1 else strides[-1])


def map_channels(backbone: nn.Module) -> int:
    """Return C of `dense_maps`."""
    channels = [int(each["num_chs"]) for each in _stages(backbone)]
    return sum(channels) if _is_hierarchical(backbone) else channels[-1]


@torch.no_grad()
def dense_maps(backbone: nn.Module, images: Tensor, stride: int | None = None) -> Tensor:
    """Compute the maps of images [B, 3, H, W] in float32: [B, C, H / stride, W / stride].

    The maps of a hierarchical backbone's stages lie above each other, the finer ones averaged and the coarser ones
    interpolated to the stride, so that C is the sum of the stages' channels. Of a backbone with one stride it is the
    last block's map. The last one has gone through the final norm.

    Raises:
        UsageError: the images are no multiple of the stride.
        DivergedError: a feature is not finite.
    """
    stride = default_stride(backbone) if stride is None else stride
    height, width = images.shape[2:]
    if height % stride or width % stride:
        raise UsageError(f"--stride {stride} does not divide a window of {height} x {width} pixels: give another")
    size = (height // stride, width // stride)
    with torch.autocast(images.device.type, enabled=False):
        if _is_hierarchical(backbone):
            maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
                images.float(), norm=_norms(backbone), intermediates_only=True, output_fmt="NCHW"
            )
        else:
            maps = [patch_maps(backbone, images.float())]
        x = torch.cat([_resampled(x.float(), size) for x in maps], dim=1)
    if not bool(x.isfinite().all()):
        raise DivergedError("the features of an image are not finite")
    return x


def _stages(backbone: nn.Module) -> list[dict[str, Any]]:
    """Channels and stride of each of a backbone's maps. Raises UsageError if it has none."""
    info = getattr(backbone, "feature_info", None)
    if not info or not hasattr(backbone, "forward_intermediates"):
        raise UsageError(f"a {type(backbone).__name__} has no maps of patches: name another model")
    return list(info)


def _is_hierarchical(backbone: nn.Module) -> bool:
    return len({each["reduction"] for each in _stages(backbone)}) > 1


def _norms(backbone: nn.Module) -> bool:
    """Whether a hierarchical backbone can norm its last map: convolutional networks have no norm of their own."""
    return isinstance(backbone, DyViT)


def _resampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a map [B, C, h, w] to a smaller size, or interpolate it to a larger one."""
    if x.shape[2] > size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
