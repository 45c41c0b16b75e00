"""Vectors and patch maps of images, of any timm model: what `coma embed` writes and dense evaluation is fitted on.

Legend: B images, C channels, h x w the map of the last stage.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from coma.errors import UsageError


def vectors(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return one vector an image, pooled as the model itself does: images [B, 3, H, W] → [B, C].

    It is what the model gives without its classifier (`num_classes=0`): the class token of most ViTs of timm, the
    mean of the patches of what is trained here.
    """
    return _pooled(backbone, backbone(images))


def patch_maps(backbone: nn.Module, images: Tensor, stride: int | None = None) -> Tensor:
    """Return the last stage's features as a map: images [B, 3, H, W] → [B, C, h, w].

    They are normed where the model can do that, and class and register tokens are left out. With `stride` the map has
    one vector each so many pixels of the image, resampled bilinearly from the model's own.

    Raises:
        UsageError: the model has no maps, or the stride does not divide the image.
    """
    return vectors_and_maps(backbone, images, stride)[1]


def vectors_and_maps(backbone: nn.Module, images: Tensor, stride: int | None = None) -> tuple[Tensor, Tensor]:
    """Return `vectors` [B, C] and `patch_maps` [B, C, h, w] of one forward pass."""
    model: Any = backbone
    if hasattr(model, "forward_intermediates"):
        tokens, (maps,) = _last_stage(model, images)
    else:
        tokens = model.forward_features(images)
        maps = _as_map(model, tokens, images)
    return _pooled(backbone, model.forward_head(tokens)), _resampled(maps, images, stride)


def map_size(image_size: int, stride: int) -> int:
    """Return the side of a map with one vector each `stride` pixels. Raises UsageError if it does not divide."""
    if stride < 1 or image_size % stride:
        fitting = ", ".join(str(each) for each in range(1, image_size + 1) if image_size % each == 0)
        raise UsageError(f"--stride {stride} does not divide images of {image_size} pixels: give one of {fitting}")
    return image_size // stride


def _pooled(backbone: nn.Module, vectors: Tensor) -> Tensor:
    if vectors.ndim != 2:
        shape = "x".join(map(str, vectors.shape[1:]))
        raise UsageError(
            f"a {type(backbone).__name__} gives {shape} values an image, not one vector: name another model"
        )
    return vectors


def _last_stage(model: Any, images: Tensor) -> Any:
    """Return the tokens of the whole model and a list of the last stage's map, normed where the model can."""
    try:
        return model.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW")
    except AssertionError:  # "normalization of features not supported"
        return model.forward_intermediates(images, indices=1, norm=False, output_fmt="NCHW")


def _as_map(model: Any, tokens: Tensor, images: Tensor) -> Tensor:
    """Lay out the result of `forward_features` as [B, C, h, w], for a model that does not itself."""
    channels = int(model.num_features)
    if tokens.ndim == 4 and tokens.shape[1] == channels:
        return tokens
    if tokens.ndim == 4 and tokens.shape[3] == channels:
        return tokens.permute(0, 3, 1, 2)
    if tokens.ndim == 3:
        tokens = tokens[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        height, width = images.shape[-2:]
        down = round((tokens.shape[1] * height / width) ** 0.5)
        if down and tokens.shape[1] % down == 0:
            return tokens.transpose(1, 2).reshape(len(tokens), channels, down, -1)
    raise UsageError(f"a {type(model).__name__} has no map of patches: name another model")


def _resampled(maps: Tensor, images: Tensor, stride: int | None) -> Tensor:
    if stride is None:
        return maps
    height, width = images.shape[-2:]
    size = (map_size(height, stride), map_size(width, stride))
    if size == tuple(maps.shape[-2:]):
        return maps
    shrinks = size[0] < maps.shape[-2]
    return interpolate(maps.float(), size, mode="bilinear", antialias=shrinks)
