"""Load a frozen backbone, whatever named it: a run, an export, or a timm model with its weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
from timm.models import PretrainedCfg
from torch import nn

from coma.errors import DataError, UsageError, did_you_mean
from coma.exports.folder import CONFIG_NAME, SECTION, is_export
from coma.exports.load import load_export
from coma.exports.timm_models import HUB, LOCAL, asking, check_hub, plain
from coma.model.dyvit import DyViT
from coma.model.encoders import set_image_size
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.runs.lines import read_object
from coma.runs.names import checkpoint_step
from coma.runs.read import (
    is_finetuned,
    load_autoencoder,
    load_classifier,
    read_config,
    require_finite,
    run_of,
)
from coma.runs.read import preprocessing_of as preprocessing_of_run

logger = logging.getLogger(__name__)

_SOURCE = re.compile(f"({HUB}|{LOCAL})(.+)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without classifier, in evaluation mode, and how it wants its images."""

    module: nn.Module
    """A timm model: images [B, C, H, W] become vectors [B, C]; `forward_features` gives its tokens."""
    name: str
    """Name of its architecture in timm."""
    origin: str
    """What its weights are from: a checkpoint, an export, or timm's name of them."""
    step: int | None
    """Training step of a run's checkpoint or an export."""
    image_size: int
    """Side of the images in pixels."""
    preprocessing: Preprocessing

    def stream_options(self) -> dict[str, Any]:
        """Return the arguments with which a `Stream(training=False)` gives it the images that it wants."""
        return {
            "image_size": self.image_size,
            "unit_size": self.image_size,  # nothing is masked
            "views": 1,
            "preprocessing": self.preprocessing,
        }

    def digest(self) -> str:
        """Return a hash of its weights."""
        import xxhash

        digest = xxhash.xxh3_64()
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_backbone(
    model: Path | str, *, image_size: int | None = None, untrained: bool = False, device: str = "cpu"
) -> Backbone:
    """Load the backbone that `model` names.

    Args:
        model: a run folder (its newest checkpoint's weights are taken), one of its checkpoints, an export, a folder
            that timm has saved, or a name in timm: `vit_small_patch14_dinov2.lvd142m`, `hf-hub:owner/name`,
            `local-dir:folder`.
        image_size: side of the images in pixels; None: that of the model.
        untrained: take a name in timm without its weights, initialised by a fixed seed.
        device: where it is to run.

    Raises:
        DataError: a run, export or folder that is not whole, or weights that are not to be had.
        UsageError: there is no such model, it has no weights and `untrained` is not set, or a size does not fit.
        DivergedError: weights are not finite.
    """
    named, path = plain(model), Path(model)
    source = _SOURCE.fullmatch(named)
    if source and source[1] == LOCAL:
        path = Path(source[2])
        if not path.is_dir():
            raise DataError(f"{named}: no such folder")
    if untrained and (path.exists() or source):
        raise UsageError(f"--untrained is for the name of a model in timm; {named} has weights")
    if not (path.exists() and not (source and source[1] != LOCAL)):
        backbone = _from_timm(named, image_size, untrained=untrained)
    elif is_export(path) and _has(path, SECTION):
        backbone = _from_export(path, image_size)
    elif _has(path, "architecture"):
        backbone = _from_timm(f"{LOCAL}{path}", image_size, untrained=False)
    else:
        backbone = _from_run(path, image_size)
    backbone.module.requires_grad_(False).to(device).eval()
    return backbone


def _has(folder: Path, key: str) -> bool:
    """Whether a folder's config.json has a key: `architecture` if timm can read it, `coma` if it is an export."""
    return (folder / CONFIG_NAME).is_file() and key in read_object(folder / CONFIG_NAME)


def _from_run(path: Path, image_size: int | None) -> Backbone:
    run, checkpoint = run_of(path)
    content = read_config(run)
    if is_finetuned(content):
        module: Any = load_classifier(checkpoint).backbone
        module.reset_classifier(0)
    else:
        module = load_autoencoder(checkpoint).backbone
    return _own(module, str(checkpoint), checkpoint_step(checkpoint), image_size, preprocessing_of_run(content))


def _from_export(folder: Path, image_size: int | None) -> Backbone:
    network, step = load_export(folder)
    return _own(network.backbone, str(folder), step, image_size, network.preprocessing or DEFAULT)


def _own(module: Any, origin: str, step: int, image_size: int | None, preprocessing: Preprocessing) -> Backbone:
    """Describe a backbone that was trained here."""
    cfg = module.pretrained_cfg
    if image_size is not None:
        set_image_size(module, image_size)
    size = image_size or _square(module, origin)
    return Backbone(module, str(cfg["architecture"]), origin, step, size, preprocessing)


def _from_timm(name: str, image_size: int | None, *, untrained: bool) -> Backbone:
    """Make a model of timm with its weights, or say in one line why there are none."""
    import torch

    if not _SOURCE.fullmatch(name):
        _check_name(name, untrained=untrained)
    if untrained:
        torch.manual_seed(0)
    else:
        check_hub(name, name)
    # Made without its classifier, timm would leave whatever weights are missing at random, in silence.
    module: Any = asking(lambda: _created(name, image_size, {"pretrained": not untrained}), name, name)
    module.reset_classifier(0)
    require_finite(module.state_dict(), Path(name))
    cfg = module.pretrained_cfg
    if (channels := int(cfg["input_size"][0])) != 3:
        raise UsageError(
            f"{name} takes images of {channels} channels, of a type that timm does not tell: name a run or an export"
        )
    size = image_size or _square(module, name)
    preprocessing = DEFAULT if isinstance(module, DyViT) else preprocessing_of(cfg, name)  # as it is trained here
    return Backbone(module, str(cfg["architecture"]), name, None, size, preprocessing)


def _created(name: str, image_size: int | None, options: dict[str, Any]) -> Any:
    """Make a model for images of a size: transformers are told it, convolutional networks take any."""
    if image_size is None:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, img_size=image_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)


def _check_name(name: str, *, untrained: bool) -> None:
    """Refuse a name that timm does not have, and one without weights unless it is to be untrained."""
    architecture, _, tag = name.partition(".")
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(architecture):
        close = did_you_mean(architecture, timm.list_models(), most=3)
        hint = f": {close}" if close else "; a model on the Hub is hf-hub:OWNER/NAME"
        raise UsageError(f"no run, export or timm model named {name!r}{hint}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise UsageError(f"timm has no weights {name!r}: " + (f"it has {', '.join(tags[:5])}" if tags else "none"))
    if not untrained and not timm.models.is_model_pretrained(name):
        raise UsageError(f"timm has no weights for {name!r}: name a run or an export, or give --untrained")


def preprocessing_of(cfg: dict[str, Any] | PretrainedCfg, name: str) -> Preprocessing:
    """Return what a model's `pretrained_cfg` says of its images, with a warning where the stream differs."""
    told = cast("dict[str, Any]", cfg if isinstance(cfg, dict) else cfg.to_dict())
    mean, std = (_three(told.get(key), fallback) for key, fallback in (("mean", DEFAULT.mean), ("std", DEFAULT.std)))
    wanted, mode = told.get("interpolation") or "bilinear", told.get("crop_mode") or "center"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if wanted == "bilinear" else "bicubic"
    if wanted != interpolation:
        logger.warning("%s wants images resized by %s; they are resized by bicubic", name, wanted)
    if mode not in ("center", "squash"):
        logger.warning("%s wants images with crop_mode %s; they are cropped at the centre", name, mode)
    return Preprocessing(
        mean=mean,
        std=std,
        crop_fraction=min(1.0, float(told.get("crop_pct") or DEFAULT.crop_fraction)),
        interpolation=interpolation,
        squash=mode == "squash",
    )


def _three(values: Any, fallback: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = map(float, values or fallback)
    return red, green, blue


def _square(module: Any, name: str) -> int:
    """Return the side of the square images that a model takes; UsageError for others.

    A transformer that was made for another size than timm's usual one has that in its patch embedding alone.
    """
    made_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
    height, width = map(int, made_for or module.pretrained_cfg["input_size"][1:])
    if height != width:
        raise UsageError(f"{name} takes images of {height}x{width} pixels, which are no squares: give --image-size")
    return height
