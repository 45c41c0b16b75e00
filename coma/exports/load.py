"""Load an export as the autoencoder that it was made of, to be scored as a run is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coma.errors import DataError
from coma.exports.folder import CONFIG_NAME, SECTION, read_export
from coma.model.encoders import give_weights
from coma.runs.read import build_model

if TYPE_CHECKING:
    from coma.model.coma import CoMA
    from coma.model.mae import MAE


def load_export(folder: Path | str, device: str = "cpu") -> tuple[CoMA | MAE, int]:
    """Return the network, in evaluation mode, and the step it was exported at; its decoder is not trained.

    Raises:
        DataError: `coma export` did not write the folder, or something in it is damaged.
    """
    model, step = build_export(Path(folder))
    give_weights(model.backbone, read_export(folder).weights(), Path(folder))
    return model.to(device).eval(), step


def build_export(folder: Path, image_size: int | None = None) -> tuple[CoMA | MAE, int]:
    """Return the network that an export describes, not yet with its weights, and the step it was exported at.

    With `image_size` it takes images of so many pixels a side, as no weight depends on that.

    Raises:
        DataError: `coma export` did not write the folder, or its description is damaged.
        UsageError: the model cannot take images of that size.
    """
    export = read_export(folder)
    try:
        model_args, section = export.config["model_args"], export.config[SECTION]
        size = model_args["img_size"] if image_size is None else image_size
        config = {
            "model": export.model,
            "method": "mae" if export.method == "finetune" else export.method,  # only the backbone is used
            "views": int(section["views"]),
            "image_size": size if isinstance(size, int) else tuple(size),
            "patch_size": model_args.get("patch_size"),
        }
        step = int(section["step"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / CONFIG_NAME} is damaged: export the run anew") from None
    return build_model(config), step
