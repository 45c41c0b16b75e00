"""Where fine-tuning takes a backbone from: a run, one of its checkpoints, or an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xxhash
from torch import Tensor

from coma.export.folder import is_export, read_export
from coma.runs.read import read_config, read_weights, run_of

_PREFIX = "backbone."


@dataclass(frozen=True, eq=False)
class Source:
    """A pre-trained backbone."""

    path: Path
    model: str
    """Its timm name."""
    patch_size: int | None
    """In pixels; None: the model's own."""
    image_size: int
    """That it was trained on, the side in pixels."""
    weights: dict[str, Tensor]
    """Under timm's names."""

    def digest(self) -> str:
        """Return a hash of the weights, the same for a run and its export."""
        found = xxhash.xxh3_64()
        for name, value in sorted(self.weights.items()):
            if name == "pos_embed":  # a ViT's, which follows from the image's size, stands in exports alone
                continue
            found.update(name.encode())
            found.update(value.contiguous().numpy().tobytes())
        return found.hexdigest()


def read_source(path: Path) -> Source:
    """Read a run's newest checkpoint, the one named, or an export.

    Raises:
        DataError: it is none of these, or damaged.
    """
    if is_export(path):
        export = read_export(path)
        return Source(path, export.model, export.patch_size, export.image_size, export.weights())
    run, checkpoint = run_of(path)
    content = read_config(run)
    config = content.get("resolved", {}).get("network", content["config"])
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in read_weights(checkpoint).items()
        if name.startswith(_PREFIX)
    }
    return Source(path, config["model"], config["patch_size"], config["image_size"], weights)
