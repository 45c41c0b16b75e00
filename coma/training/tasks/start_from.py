"""Start a run from earlier weights: `coma pretrain --init EXPORT`, and the backbone that `coma finetune` is given.

Only weights are taken: the run starts at step 0 with a new optimizer. Resuming a run is another matter
(`coma.training.engine.checkpoint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.exports.export import patch_size
from coma.exports.folder import Export, is_export, read_export
from coma.model.encoders import give_weights
from coma.runs.names import CONFIG_NAME
from coma.runs.read import read_config, read_weights, run_of
from coma.training.config.options import PretrainConfig

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

_PREFIX = "backbone."


def check_init(export: Export, config: PretrainConfig) -> None:
    """Check that --init holds the network of --model; its image size and method may differ.

    Raises:
        UsageError: it holds another network.
    """
    if export.model != config.model:
        raise UsageError(
            f"--init {export.folder} holds a {export.model}, and --model is {config.model}: give --model {export.model}"
        )


def load_init(model: MaskedAutoencoder, export: Export, config: PretrainConfig) -> None:
    """Load the backbone of --init into a new network, and the decoder if the export has one.

    Raises:
        UsageError: its patch size differs, or its decoder is of another method.
        DataError: the weights are damaged.
    """
    here = patch_size(model.backbone)
    if export.patch_size != here:
        raise UsageError(
            f"--init {export.folder} has patches of {export.patch_size} pixels, and this run's are {here}: "
            f"give --patch-size {export.patch_size}"
        )
    give_weights(model.backbone, export.weights(), export.folder)
    if not export.decoder:
        return
    try:
        model.decoder.load_state_dict(export.decoder_weights())
    except RuntimeError:
        raise UsageError(
            f"--init {export.folder} has the decoder of --method {export.method}, which is not that of --method "
            f"{config.method}: give --method {export.method}, or export without --with-decoder"
        ) from None


@dataclass(frozen=True, eq=False)
class PretrainedBackbone:
    """The backbone that fine-tuning starts from."""

    path: Path
    model: str
    """Its timm name."""
    patch_size: int | None
    """Side of a patch in pixels; None: the model's own."""
    image_size: int
    """Side in pixels of the images that it was trained on."""
    weights: dict[str, Tensor]
    """Weights under timm's names."""

    def digest(self) -> str:
        """Return a hash of the weights, the same for a run and its export."""
        digest = xxhash.xxh3_64()
        for name, value in sorted(self.weights.items()):
            if name == "pos_embed":  # a ViT's, which follows from the image size, is in exports only
                continue
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def read_backbone(path: Path | str) -> PretrainedBackbone:
    """Read the backbone of a run (its newest checkpoint), of a checkpoint, or of an export.

    Raises:
        DataError: it is none of these, or damaged.
    """
    path = Path(path)
    if is_export(path):
        export = read_export(path)
        return PretrainedBackbone(path, export.model, export.patch_size, export.image_size, export.weights())
    run, checkpoint = run_of(path)
    content = read_config(run)
    config = content.get("resolved", {}).get("network", content["config"])
    try:
        model, patch, size = config["model"], config["patch_size"], config["image_size"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{run / CONFIG_NAME} is damaged: it lacks {error}") from None
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in read_weights(checkpoint).items()
        if name.startswith(_PREFIX)
    }
    return PretrainedBackbone(path, model, patch, size, weights)
