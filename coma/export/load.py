"""An export read back as the autoencoder that it was made of, to be scored as a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import DataError
from coma.export.folder import CONFIG_NAME, SECTION, read_export
from coma.model.encoders import give_weights
from coma.runs.read import build_model

if TYPE_CHECKING:
    from coma.model.coma import CoMA
    from coma.model.mae import MAE


def load_export(folder: Path, device: str = "cpu") -> tuple[CoMA | MAE, int]:
    """Return the network, in evaluation mode, and the step it was exported at; its decoder is as it was made.

    Raises:
        DataError: `coma export` did not write the folder, or something in it is damaged.
    """
    export = read_export(folder)
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text())
        made_with, section = content["model_args"], content[SECTION]
        size = made_with["img_size"]
        config = {
            "model": export.model,
            "method": "mae" if export.method == "finetune" else export.method,  # only the backbone is used
            "views": int(section["views"]),
            "image_size": size if isinstance(size, int) else tuple(size),
            "patch_size": made_with.get("patch_size"),
        }
        step = int(section["step"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / CONFIG_NAME} is damaged: export the run anew") from None
    model = build_model(config)
    give_weights(model.backbone, export.weights(), folder)
    return model.to(device).eval(), step
