"""The variants of DyViT that timm knows by name; importing this module registers them."""

from __future__ import annotations

from typing import Any

from timm.models import adapt_input_conv, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from coma.errors import UsageError

# The module, not its class: where `coma.model.dyvit` is what imports timm first, it is only half there by now.
from coma.model import dyvit


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": (),  # patches are embedded by a linear layer, which `_fit_channels` sees to
        "classifier": "head.fc",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {f"dyvit_{size}.coma_in1k": _cfg() for size in ("nano", "tiny", "small", "base", "large")}
)


def _fit_channels(weights: dict[str, Tensor], model: dyvit.DyViT) -> dict[str, Tensor]:
    """Fit weights to another number of image channels, as timm does with those of a first convolution."""
    name, side = "patch_embed.proj.weight", model.patch_size
    if weights[name].shape[1] % side**2:
        return weights  # of another patch size, which loading them will say
    kernel = weights[name].reshape(-1, side, side, weights[name].shape[1] // side**2)
    kernel = kernel.permute(0, 3, 1, 2)  # [dim, channels, side, side]
    if kernel.shape[1] == model.in_chans:
        return weights
    if kernel.shape[1] != 3:
        raise UsageError(
            f"these weights are for images of {kernel.shape[1]} channels, and in_chans is {model.in_chans}: only those "
            "for RGB fit other channels, so leave in_chans out"
        )
    fitted = adapt_input_conv(model.in_chans, kernel)
    return {**weights, name: fitted.permute(0, 2, 3, 1).flatten(1)}


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dyvit.DyViT:
    model = build_model_with_cfg(
        dyvit.DyViT,
        name,
        pretrained,
        pretrained_filter_fn=_fit_channels,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    if isinstance(model, dyvit.DyViT):  # not a feature extractor
        model.set_input_size(model.img_size if "img_size" in kwargs else model.pretrained_cfg["input_size"][1:])
    return model  # type: ignore[no-any-return]


@register_model  # type: ignore[untyped-decorator]
def dyvit_nano(pretrained: bool = False, **kwargs: Any) -> dyvit.DyViT:
    """1.6 M parameters: for `coma demo`, tests and first tries on a CPU; every kind of head group is there."""
    shape = {
        "dims": (32, 64, 128, 256),
        "depths": (1, 1, 4, 1),
        "head_dims": (16, 16, 32, 32),
        "heads": (((16, 1), (64, 1)), ((4, 2), (16, 2)), ((4, 1), (None, 3)), ((None, 8),)),
    }
    return _create("dyvit_nano", pretrained, shape | kwargs)


@register_model  # type: ignore[untyped-decorator]
def dyvit_tiny(pretrained: bool = False, **kwargs: Any) -> dyvit.DyViT:
    """8.0 M parameters, 1.47 G multiply-adds at 224 px."""
    shape = {
        "dims": (64, 128, 256, 512),
        "depths": (1, 1, 6, 1),
        "heads": (((16, 1), (64, 1)), ((4, 2), (16, 2)), ((4, 1), (None, 3)), ((None, 8),)),
    }
    return _create("dyvit_tiny", pretrained, shape | kwargs)


@register_model  # type: ignore[untyped-decorator]
def dyvit_small(pretrained: bool = False, **kwargs: Any) -> dyvit.DyViT:
    """26.7 M parameters, 4.08 G multiply-adds at 224 px."""
    return _create("dyvit_small", pretrained, {"depths": (1, 1, 8, 2)} | kwargs)


@register_model  # type: ignore[untyped-decorator]
def dyvit_base(pretrained: bool = False, **kwargs: Any) -> dyvit.DyViT:
    """42.6 M parameters, 6.66 G multiply-adds at 224 px."""
    return _create("dyvit_base", pretrained, {"depths": (1, 2, 14, 3)} | kwargs)


@register_model  # type: ignore[untyped-decorator]
def dyvit_large(pretrained: bool = False, **kwargs: Any) -> dyvit.DyViT:
    """94.9 M parameters, 16.7 G multiply-adds at 224 px."""
    shape = {
        "dims": (144, 288, 576, 1152),
        "depths": (1, 2, 18, 2),
        "head_dims": (48, 48, 64, 64),
        "heads": (((16, 1), (64, 2)), ((4, 2), (16, 4)), ((4, 3), (None, 6)), ((None, 18),)),
    }
    return _create("dyvit_large", pretrained, shape | kwargs)
