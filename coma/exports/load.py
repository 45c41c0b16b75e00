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
    folder = Path(folder)
    export = read_export(folder)
    try:
        model_args, section = export.config["model_args"], export.config[SECTION]
        size = model_args["img_size"]
        config = {
            "model": export.model,
            "method": "mae" if export.method == "finetune" else export.method,  # only the backbone is used
            "views": int(section["views"]),
            "image_size": size if isinstance(size, int) else tuple(size),
            "patch_size": model_args.get("patch_size"),
            "backbone_args": section.get("backbone_args"),
            "pixels": section.get("pixels"),
        }
        step = int(section["step"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / CONFIG_NAME} is damaged: export the run anew") from None
    model = build_model(config)
    give_weights(model.backbone, export.weights(), folder)
    return model.to(device).eval(), step
