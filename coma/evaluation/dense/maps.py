"""Frozen maps of patches: what a dense head sees of an image.

Legend: B images, C channels, h, w patches down and across.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.errors import DivergedError, UsageError


def default_stride(backbone: nn.Module) -> int:
    """Return the stride in pixels at which a backbone's patches are classified.

    It is that of the third of four stages (16 pixels for patches of 4), at which DyViT's decoder reads the stages
    too; for a backbone of one stride, such as a ViT, that one.
    """
    strides = _strides(backbone)
    return strides[min(2, len(strides) - 1)] if len(set(strides)) > 1 else strides[-1]


def map_channels(backbone: nn.Module) -> int:
    """Return C of `dense_maps`."""
    channels = [int(each["num_chs"]) for each in backbone.feature_info]  # type: ignore[union-attr]
    return sum(channels) if len(set(_strides(backbone))) > 1 else channels[-1]


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
    strides = _strides(backbone)
    stages = None if len(set(strides)) > 1 else [len(strides) - 1]
    with torch.autocast(images.device.type, enabled=False):
        maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
            images.float(), indices=stages, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        size = (height // stride, width // stride)
        x = torch.cat([_resampled(x.float(), size) for x in maps], dim=1)
    if not bool(x.isfinite().all()):
        raise DivergedError("the features of an image are not finite")
    return x


def _strides(backbone: nn.Module) -> list[int]:
    info = backbone.feature_info
    return [each["reduction"] for each in info]  # type: ignore[union-attr]


def _resampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a map [B, C, h, w] to a smaller size, or interpolate it to a larger one."""
    if x.shape[2] > size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
