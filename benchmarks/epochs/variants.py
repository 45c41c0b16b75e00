"""Variants that are compared. To try an idea, add a row, write down what it should do, and run it.

The networks are for 32-pixel images and one core: a plain ViT of 1.2 M parameters (patches of 4 px, 64 of them) and a
DyViT of 0.97 M (three stages, patches of 1 px, 64 mask units of 4 px), so both hide and predict squares of 4 px.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from coma.errors import UsageError
from coma.model.build import build
from coma.model.coma import CoMA
from coma.model.mae import MAE
from coma.pipeline.views import partition_units

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
DYVIT: dict[str, Any] = {
    "patch_size": 1,
    "unit_size": 4,
    "dims": (32, 64, 128),
    "depths": (1, 1, 5),
    "head_dims": (16, 32, 32),
    "heads": (((4, 1), (16, 1)), ((4, 2),), ((None, 4),)),
}
WIDE_VIT: dict[str, Any] = VIT | {"embed_dim": 192, "depth": 3, "num_heads": 6}
WIDE_DYVIT: dict[str, Any] = DYVIT | {
    "dims": (32, 64, 192),
    "depths": (1, 1, 3),
    "heads": (*DYVIT["heads"][:2], ((None, 6),)),
}


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained."""

    name: str
    method: str
    model: str
    lr: float
    """AdamW's highest learning rate at the batch size below."""
    backbone: dict[str, Any] = field(default_factory=dict)
    views: int = 4
    """Number of views of an image (CoMA)."""
    masks: int = 1
    """Number of independent random masks that each image is shown under in a step (MAE)."""
    predict: int | None = None
    """Number of other views that each view predicts (CoMA); None: all."""
    decoder_depth: int | None = None
    decoder_dim: int | None = None
    memory_stages: int | None = None
    """Number of a DyViT's last stages that the decoder sees; None: all."""
    batch_size: int = 64
    weight_decay: float = 0.05
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after its warm-up. Constant: averaged weights are scored, and one run gives the curve."""
    warmup_steps: int = 100
    averaged_images: int = 6_400
    """Images over which an exponential average of the weights reaches back; 0: the weights are scored as they are."""
    crop_scale: tuple[float, float] = (0.2, 1.0)

    def build(self, image_size: int) -> CoMA | MAE:
        """Build the network, untrained."""
        return build(
            self.model,
            self.method,
            views=self.views,
            predict=self.predict,
            image_size=image_size,
            decoder_depth=self.decoder_depth,
            decoder_dim=self.decoder_dim,
            memory_stages=self.memory_stages,
            **self.backbone,
        )

    def loss(self, model: CoMA | MAE, images: Tensor, samples: Tensor, epochs: Tensor, *, seed: int) -> Tensor:
        """Return the loss of one batch; the masks are keyed by (seed, epoch, sample), as the stream's are."""
        losses = []
        for mask in range(self.masks):
            units = partition_units(samples, epochs, seed=seed + mask * 1_000_003, units=model.units)
            losses.append(model(images, units))
        return torch.stack(losses).mean()


_MAE = Variant("mae", "mae", "vit_tiny_patch16_224", lr=1e-3, backbone=VIT)
_COMA = Variant(
    "coma",
    "coma",
    "dyvit_nano",
    lr=1e-3,
    backbone=DYVIT,
    decoder_depth=1,
    decoder_dim=64,
    memory_stages=1,
    batch_size=16,  # times four views: as many as MAE has in a step
)

VARIANTS = {
    row.name: row
    for row in (
        _MAE,
        # Controls: several masks an image but no partition; the backbone alone; random masks in place of a partition.
        dataclasses.replace(_MAE, name="mae-4masks", masks=4),
        dataclasses.replace(_COMA, name="mae-dyvit", method="mae", batch_size=64),
        dataclasses.replace(_COMA, name="independent", method="independent"),
        _COMA,
        # Width in place of depth, at about as many parameters (1.35 and 1.27 M).
        dataclasses.replace(_MAE, name="mae-wide", backbone=WIDE_VIT),
        dataclasses.replace(_COMA, name="coma-wide", backbone=WIDE_DYVIT),
        dataclasses.replace(_COMA, name="coma-allstages", memory_stages=None),
        dataclasses.replace(_COMA, name="coma-2blocks", decoder_depth=2),
        dataclasses.replace(_COMA, name="coma-k2", views=2, batch_size=32),
        dataclasses.replace(_COMA, name="coma-predict1", predict=1),
    )
}


def variant(text: str) -> Variant:
    """A row by its name; NAME:LR or NAME:LR:BATCH is the same with another learning rate and batch size, to tune it."""
    name, *tuned = text.split(":")
    if name not in VARIANTS:
        raise UsageError(f"no variant named {name!r}: choose {', '.join(VARIANTS)} (benchmarks/epochs/variants.py)")
    row = VARIANTS[name]
    if not tuned:
        return row
    try:
        lr, batch_size = (*map(float, tuned[:1]), row.lr)[0], (*map(int, tuned[1:]), row.batch_size)[0]
    except ValueError:
        lr = batch_size = 0
    if len(tuned) > 2 or not 0 < lr < 1 or batch_size < 1:
        raise UsageError(
            f"variant {text!r}: {':'.join(tuned)!r} is no learning rate between 0 and 1 and batch size;"
            f" write {name}:1e-3, or {name}:1e-3:64"
        )
    return dataclasses.replace(row, name=text, lr=lr, batch_size=batch_size)
