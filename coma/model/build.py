"""The network of a run, made from the names of its method and its backbone."""

from collections.abc import Mapping
from typing import Any

from coma.errors import UsageError, did_you_mean
from coma.model.coma import CoMA
from coma.model.independent import IndependentMasks
from coma.model.mae import MAE

METHODS = ("coma", "independent", "mae")


def build(
    model: str,
    method: str = "coma",
    *,
    views: int = 2,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    predict: int | None = None,
    decoder_depth: int | None = None,
    decoder_dim: int | None = None,
    memory_stages: int | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **backbone_kwargs: Any,
) -> CoMA | MAE:
    """Make the autoencoder for `--model`, `--method`, `--views` and the image size.

    Args:
        model: timm name of the backbone: dyvit_tiny, ..., dyvit_large, or a plain ViT such as vit_base_patch16_224.
        method: "coma", "mae", or "independent", CoMA with a random mask of its own for each view.
        views: views an image (not MAE).
        image_size: pixels, (height, width) if not square.
        patch_size: pixels of a DyViT's patch; None: 4. A mask unit is 8 patches.
        predict: how many other views each view predicts (not MAE); None: all.
        decoder_depth, decoder_dim: blocks and channels of the decoder; None: by the backbone.
        memory_stages: how many of the backbone's last stages the decoder sees; None: all.
        backbone_args: of a ViT that takes the weights of others, see `coma.model.encoders.build_backbone`.
        backbone_kwargs: for the backbone (`drop_path_rate`, ...).

    Raises:
        UsageError: a misspelt model or method (the closest ones named), or sizes that do not fit each other.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UsageError(f"no method named {method!r}: {hint + ' ' if hint else ''}choose {', '.join(METHODS)}")
    if patch_size is not None:
        backbone_kwargs["patch_size"] = patch_size
    if backbone_args is not None:
        backbone_kwargs["backbone_args"] = backbone_args
    decoder = {"decoder_depth": decoder_depth, "decoder_dim": decoder_dim, "memory_stages": memory_stages}
    if method == "mae":
        return MAE(model, img_size=image_size, **decoder, **backbone_kwargs)
    network = IndependentMasks if method == "independent" else CoMA
    return network(model, img_size=image_size, views=views, predict=predict, **decoder, **backbone_kwargs)
