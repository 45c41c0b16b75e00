"""Export of a run to a folder that `timm.create_model("local-dir:...", pretrained=True)` takes, without DeepSpeed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from coma.errors import UsageError
from coma.exports.card import card, metrics_until
from coma.exports.curves import curves
from coma.exports.folder import (
    CARD_NAME,
    CONFIG_NAME,
    CURVES_NAME,
    DECODER_NAME,
    ONNX_NAME,
    SECTION,
    WEIGHTS_NAME,
    check_free,
    writing,
)
from coma.exports.onnx import check_onnx, write_onnx
from coma.exports.push import check_push, push_folder
from coma.installed.versions import coma_version
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.runs.names import checkpoint_step
from coma.runs.read import is_finetuned, load_autoencoder, load_classifier, network_of, read_config, run_of

if TYPE_CHECKING:
    from coma.model.classifier import Classifier
    from coma.model.coma import CoMA
    from coma.model.mae import MAE

LICENSE = "unknown"
"""The Hub's name for weights whose license nobody has stated."""


def export_run(
    run: Path | str,
    folder: Path | str,
    *,
    with_decoder: bool = False,
    onnx: bool = False,
    license: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """Write a run's backbone (its newest checkpoint's, or the one named) to `folder`, whole or not at all.

    Args:
        run: run folder, or one of its checkpoints.
        folder: new, empty, or an earlier export, which is replaced.
        with_decoder: add the decoder, for `coma pretrain --init`.
        onnx: add an ONNX file.
        license: for the card: a name that the Hub knows (apache-2.0, cc-by-nc-4.0, ...); None: "unknown".
        push: OWNER/NAME of the repository on the Hub to upload the folder to; the card has its name and the curves.
        private: whether a repository that is made for it is private.

    Returns:
        description of the export as JSON values, with the code that loads it.

    Raises:
        DataError: no run, or damaged weights.
        UsageError: `folder` holds something else than an export; or `push` lacks a licence, a token or a good name.
        ComaError: `folder` could not be written, or the Hub does not take it.
    """
    folder = Path(folder)
    if private and push is None:
        raise UsageError("--private is for --push OWNER/NAME: add that, or leave it out")
    if push is not None:
        check_push(push, license)
    license = LICENSE if license is None else license
    from safetensors.torch import save_file

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise UsageError(f"--license {license!r}: give a name that the Hub knows: apache-2.0, mit, other, ...")
    if onnx:
        check_onnx()
    check_free(folder)
    run, checkpoint = run_of(Path(run))
    content, step = read_config(run), checkpoint_step(checkpoint)
    network, decoder = _networks(run, checkpoint, content, with_decoder=with_decoder)
    backbone, model = network.backbone, content.get("resolved", {}).get("network", network_of(content))
    preprocessing = network.preprocessing or DEFAULT
    config = timm_config(backbone, network.img_size, model, license, preprocessing)
    config[SECTION] = {
        "version": coma_version(),
        "model": model["model"],
        "method": content["config"].get("method", "finetune"),
        "views": content["config"].get("views", 1),
        "patch_size": patch_size(backbone),
        **({"backbone_args": model["backbone_args"]} if model.get("backbone_args") else {}),
        **({"pixels": preprocessing.to_json()} if preprocessing != DEFAULT else {}),
        "step": step,
        "decoder": with_decoder,
    }
    weights = backbone_weights(backbone)
    parameters = sum(value.numel() for value in weights.values())
    drawn = curves(metrics_until(run, step)) if push is not None else None
    text = card(
        run, content, config, step=step, parameters=parameters, onnx=onnx, repository=push, curves=drawn is not None
    )
    with writing(folder) as place:
        save_file(weights, place / WEIGHTS_NAME, metadata={"format": "pt"})
        if decoder is not None:
            tensors = {name: value.contiguous() for name, value in decoder.state_dict().items()}
            save_file(tensors, place / DECODER_NAME, metadata={"format": "pt"})
        if onnx:
            write_onnx(backbone, (preprocessing.channels, *network.img_size), place / ONNX_NAME)
        (place / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        (place / CARD_NAME).write_text(text, encoding="utf-8")
        if drawn is not None:
            (place / CURVES_NAME).write_bytes(drawn)
    pushed = None
    if push is not None:
        message = f"{config['architecture']} after {step:,} steps"
        pushed = push_folder(folder, push, private=private, message=message)
    return {
        "export": str(folder),
        "model": config["architecture"],
        "parameters": parameters,
        "features": config["num_features"],
        "classes": config["num_classes"] or None,
        "step": step,
        "decoder": with_decoder,
        "onnx": str(folder / ONNX_NAME) if onnx else None,
        "load": f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)",
        **({} if pushed is None else {"url": pushed["url"], "commit": pushed["commit"]}),
    }


def _networks(
    run: Path, checkpoint: Path, content: dict[str, Any], *, with_decoder: bool
) -> tuple[CoMA | MAE | Classifier, nn.Module | None]:
    """Load the network that a run has trained, and its decoder, if that is wanted."""
    if not is_finetuned(content):
        autoencoder = load_autoencoder(checkpoint)
        return autoencoder, autoencoder.decoder if with_decoder else None
    if with_decoder:
        raise UsageError(f"{run} is a fine-tuned classifier and has no decoder: leave out --with-decoder")
    return load_classifier(checkpoint), None


def timm_config(
    backbone: nn.Module,
    img_size: tuple[int, int],
    model: dict[str, Any],
    license: str,
    preprocessing: Preprocessing = DEFAULT,
) -> dict[str, Any]:
    """Return config.json as timm reads it: the network's arguments, and how its images were prepared.

    Args:
        backbone: with or without a classifier.
        img_size: (height, width) in pixels.
        model: its name, patch size and further arguments, and a classifier's class names, as the run's config.json has
            them.
        license: name of a license for the Hub.
        preprocessing: mean and deviation of its images' channels.
    """
    height, width = img_size
    classes: int = backbone.num_classes  # type: ignore[assignment]
    names = model.get("class_names")
    cfg: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    args: dict[str, Any] = {"img_size": height if height == width else [height, width]}
    if model["patch_size"] is not None:
        args["patch_size"] = model["patch_size"]
    channels = preprocessing.channels
    if channels != 3:
        args["in_chans"] = channels
    pool_size = None
    if _is_vit(backbone):  # as `build_backbone` makes them, and at any size
        own = model.get("backbone_args") or {"class_token": False, "fc_norm": False}
        args |= {**own, "global_pool": "avg", "dynamic_img_size": True}
    else:
        stride = backbone.feature_info[-1]["reduction"]  # type: ignore[index]
        pool_size = [height // stride, width // stride]
    return {
        "architecture": model["model"],
        "num_classes": classes,
        **({"label_names": list(names)} if names else {}),
        "num_features": backbone.num_features,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": {
            "tag": "coma",
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": classes,
            "pool_size": pool_size,
            # timm would adapt this convolution to other channels, and takes the weights for those of three.
            "first_conv": cfg["first_conv"] if channels == 3 else [],
            "classifier": cfg["classifier"],
            "license": license,
        },
    }


def backbone_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the weights under timm's names; a ViT's fixed positions are a parameter to timm."""
    weights = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    if _is_vit(backbone) and backbone.pos_embed is not None:
        weights["pos_embed"] = backbone.pos_embed.detach().contiguous()  # type: ignore[operator]
    return weights


def patch_size(backbone: nn.Module) -> int:
    """Return the side of a backbone's patches in pixels."""
    side: Any = backbone.patch_embed.patch_size[0] if _is_vit(backbone) else backbone.patch_size  # type: ignore
    return int(side)


def _is_vit(backbone: nn.Module) -> bool:
    from timm.models import VisionTransformer

    return isinstance(backbone, VisionTransformer)
