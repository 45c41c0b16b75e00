"""Weights that a run can start from: those of a run, of an export, or of a model of timm, here or on the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import xxhash
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from coma.errors import DataError, UsageError, did_you_mean
from coma.exports.export import patch_size
from coma.exports.folder import SECTION, Export, read_export
from coma.exports.folder import WEIGHTS_NAME as EXPORT_WEIGHTS_NAME
from coma.exports.timm_models import HUB, LOCAL, asking, check_hub, plain
from coma.model.dyvit import DyViT
from coma.model.encoders import model_names
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.runs.names import CONFIG_NAME, checkpoint_step
from coma.runs.read import as_data_error, preprocessing_of, read_config, read_weights, require_finite, run_of
from coma.shards.files import local_path

_BACKBONE, _DECODER = "backbone.", "decoder."
_SIZES = ("img_size", "patch_size", "in_chans", "num_classes", "dynamic_img_size", "dynamic_img_pad")
_TRAINING = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_NOT_OURS = (*_SIZES, *_TRAINING, "global_pool", "weight_init", "fix_init", "strict_img_size", "features_only")
"""Arguments of a timm model that a run has of its own, or that say nothing about its weights."""


@dataclass(frozen=True, eq=False)
class PretrainedBackbone:
    """Weights of a backbone, and what they were trained for."""

    path: Path | str
    """What was named: a folder, or a name of timm's."""
    words: str
    """What it is, for the console."""
    model: str
    """Its timm name."""
    patch_size: int | None
    """Side of a patch in pixels; None: the model's own."""
    image_size: int
    """Side in pixels of the images that it was trained on."""
    weights: dict[str, Tensor]
    """Weights under timm's names."""
    method: str | None = None
    """Method of the pre-training, whose decoder this is."""
    decoder: dict[str, Tensor] | None = None
    """Weights of the decoder, if there are any."""
    backbone_args: dict[str, Any] | None = None
    """Arguments of a ViT with learned positions, see `coma.model.encoders.build_backbone`; None: as coma makes it."""
    grid: tuple[int, int] | None = None
    """Patches down and across, for which learned positions were trained."""
    preprocessing: Preprocessing = DEFAULT
    """How the images of a run were normalised, or those of an export's."""
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation by which a model of timm takes its pixels; None: it is one of coma's."""
    export: Export | None = None
    """The export that it is, if it is one."""
    windows: tuple[Any, ...] = ()
    """Windows of a DyViT's head groups, where it is not known that they are the model's own."""
    kind: str = ""
    """Kind of a ViT's blocks, where it is not known that it is the model's own."""

    def digest(self, *, with_decoder: bool = False) -> str:
        """Return a hash of the backbone's weights, the same for a run and its export; of the decoder's too if asked."""
        digest = xxhash.xxh3_64()
        if with_decoder and self.export is not None:
            return self.export.digest()
        for name, value in sorted(self.weights.items()):
            if name == "pos_embed" and self.backbone_args is None:  # follows from the image size, is in exports only
                continue
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
        for name, value in sorted((self.decoder or {}).items()) if with_decoder else ():
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def is_elsewhere(given: Path | str) -> bool:
    """Whether a source is the name of a model that timm would download; False for a folder of this machine."""
    text = plain(given)
    return text.startswith(HUB) or not (text.startswith(LOCAL) or _is_path(text))


def folder_of(given: Path | str) -> Path:
    """Return the folder that a source of this machine names."""
    return local_path(Path(plain(given).removeprefix(LOCAL)))


def read_backbone(given: Path | str) -> PretrainedBackbone:
    """Read the backbone of a run (its newest checkpoint), of a checkpoint, of an export, or of a model of timm.

    Args:
        given: a folder; or a model of timm as timm names it, `vit_base_patch16_224.mae`, `hf-hub:OWNER/NAME`,
            `local-dir:FOLDER`.

    Raises:
        DataError: it is none of these, or damaged.
        UsageError: a model of timm that cannot be pre-trained here, or has no weights.
        ComaError: its weights could not be downloaded.
    """
    if is_elsewhere(given):
        return _of_timm(plain(given), str(given))
    path = folder_of(given)
    with as_data_error(path):
        config = _config_of(path)
        if "architecture" not in config:
            if not path.exists() and (hint := _similar(str(given))):
                raise DataError(f"no run or export at {given}, and no model of timm has that name: {hint}")
            return _of_run(path)
    if SECTION not in config:
        if not (path / EXPORT_WEIGHTS_NAME).is_file():
            raise DataError(
                f"{path / EXPORT_WEIGHTS_NAME} is missing, and no other kind of weights is read: save the model with "
                "safe_serialization=True"
            )
        return _of_timm(f"{LOCAL}{path}", str(given))
    export = read_export(path)
    return PretrainedBackbone(
        path=path,
        words=f"an export of {export.config[SECTION].get('step', '?')} steps of {export.model}",
        model=export.model,
        patch_size=export.patch_size,
        image_size=export.image_size,
        weights=export.weights(),
        method=export.method,
        decoder=export.decoder_weights() if export.decoder else None,
        backbone_args=export.config[SECTION].get("backbone_args"),
        grid=_grid(export.config["model_args"]["img_size"], export.patch_size),
        preprocessing=export.preprocessing,
        export=export,
    )


def _of_run(path: Path) -> PretrainedBackbone:
    run, checkpoint = run_of(path)
    content = read_config(run)
    resolved = content.get("resolved", {})
    config = resolved.get("network", content["config"])
    try:
        model, patch, size = config["model"], config["patch_size"], config["image_size"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{run / CONFIG_NAME} is damaged: it lacks {error}") from None
    weights = read_weights(checkpoint)
    args = resolved.get("network", resolved).get("backbone_args")
    return PretrainedBackbone(
        path=path,
        words=f"a run of {checkpoint_step(checkpoint)} steps of {model}",
        model=model,
        patch_size=patch,
        image_size=size,
        weights=_under(_BACKBONE, weights),
        method=content["config"].get("method"),
        decoder=_under(_DECODER, weights) or None,
        backbone_args=args,
        grid=_grid(size, patch or own_patch(model)) if args else None,
        preprocessing=preprocessing_of(content),
    )


def _of_timm(name: str, given: str) -> PretrainedBackbone:
    """Read a model of timm by its name or place."""
    check_hub(name, given)
    with torch.device("meta"):  # its class, before its weights are downloaded
        _check_class(asking(lambda: _create(name, pretrained=False), name, given), given)
    model = asking(lambda: _create(name, pretrained=True), name, given)
    saved = asking(lambda: _saved_args(name), name, given)
    architecture = str(model.pretrained_cfg["architecture"])  # type: ignore[index]
    require_finite(model.state_dict(), Path(given))
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    tag = f".{cfg['tag']}" if cfg.get("tag") and not name.startswith((HUB, LOCAL)) else ""
    patch = patch_size(model)
    size: Any = model.img_size if isinstance(model, DyViT) else model.patch_embed.img_size  # type: ignore
    return PretrainedBackbone(
        path=given,
        words=f"{architecture}{tag} of timm",
        model=architecture,
        patch_size=patch,
        image_size=int(min(size)),
        weights={key: value.float() for key, value in model.state_dict().items()},
        backbone_args=None if isinstance(model, DyViT) else vit_args(model, saved),
        grid=_grid(size, patch),
        pixels=(tuple(cfg["mean"]), tuple(cfg["std"])),
        windows=windows_of(model),
        kind=kind_of_blocks(model),
    )


def vit_args(vit: nn.Module, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by which timm makes the same blocks, class token, registers and norms, without classifier.

    Args:
        vit: the model.
        saved: arguments that it was made with, beside those of its name.
    """
    assert isinstance(vit, VisionTransformer)
    kept = {name: value for name, value in saved.items() if name not in _NOT_OURS}
    return {
        **kept,
        "class_token": vit.cls_token is not None,
        "reg_tokens": vit.num_reg_tokens,
        "no_embed_class": bool(vit.no_embed_class),
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
    }


def windows_of(model: nn.Module) -> tuple[Any, ...]:
    """Return the windows of a DyViT's head groups, for each stage; none of another model."""
    if not isinstance(model, DyViT):
        return ()
    blocks: list[Any] = [stage.blocks[0] for stage in model.stages]  # type: ignore[index]
    return tuple(tuple(group.window for group in block.attn.groups) for block in blocks)


def kind_of_blocks(model: nn.Module) -> str:
    """Return a ViT's blocks and norms in words that differ where they compute something else; none of a DyViT."""
    if not isinstance(model, VisionTransformer):
        return ""
    return " ".join(str(each) for each in (model.blocks[0], model.norm_pre, model.norm, model.fc_norm))


def _create(name: str, *, pretrained: bool) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=pretrained, in_chans=3)
    return model.eval()


def _saved_args(name: str) -> dict[str, Any]:
    """Return the arguments that a model was made with beside its name, as timm has saved them."""
    if name.startswith(LOCAL):
        config = json.loads((Path(name.removeprefix(LOCAL)) / CONFIG_NAME).read_text())
        return dict(config.get("model_args") or {})
    if name.startswith(HUB):
        return dict(timm.models.load_model_config_from_hf(name.removeprefix(HUB))[2])
    return {}


def _check_class(model: nn.Module, given: str) -> None:
    """Raise UsageError unless the model is a DyViT, or a ViT whose blocks take nothing but tokens."""
    if isinstance(model, DyViT):
        return
    kind = type(model).__name__
    embed = getattr(model, "patch_embed", None)
    plain = type(model) is VisionTransformer and type(embed) is PatchEmbed
    if plain and len({*embed.patch_size, *embed.proj.kernel_size, *embed.proj.stride}) == 1:  # type: ignore
        return
    why = {"Eva": "with rotary positions", "VisionTransformer": "whose patches are not embedded by one convolution"}
    reason = f"timm's {kind} {why.get(kind, '')}".strip()
    raise UsageError(
        f"{given} is {reason}, which cannot be pre-trained here: take a plain ViT (timm's VisionTransformer), such as "
        "vit_base_patch16_224 or vit_base_patch14_dinov2, or a DyViT"
    )


def _is_path(text: str) -> bool:
    """Whether a text without a prefix names a folder rather than a model of timm."""
    return "/" in text or Path(text).exists() or not timm.is_model(text.partition(".")[0])


def _config_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json; empty where there is none that can be read."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _similar(name: str) -> str:
    """Return a hint at a model whose name is like a misspelt one."""
    return did_you_mean(name.partition(".")[0], model_names()) if "/" not in name else ""


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def own_patch(model: str) -> int:
    """Return the side in pixels of a model's patches, where no other is asked for."""
    with torch.device("meta"):
        return patch_size(timm.create_model(model, num_classes=0))


def _grid(size: Any, patch: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch
