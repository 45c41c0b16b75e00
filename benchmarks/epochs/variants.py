"""Variants that are compared. To try an idea, add a row, write down what it should do, and run it.

The networks are for 32-pixel images and one core: a plain ViT of 1.2 M parameters (patches of 4 px, 64 of them) and a
DyViT of 0.97 M (three stages, patches of 1 px, 64 mask units of 4 px), so both hide and predict squares of 4 px.
"""

import ast
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.epochs.levers import LeverCoMA, LeverDyViT, LeverMAE, Levers, permuted_units
from coma.errors import UsageError
from coma.model.build import build
from coma.model.coma import CoMA
from coma.model.mae import MAE

MAE_VISIBLE = 0.25

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
WIDER_VIT: dict[str, Any] = VIT | {"embed_dim": 256, "depth": 2, "num_heads": 8}
WIDER_DYVIT: dict[str, Any] = DYVIT | {
    "dims": (32, 64, 256),
    "depths": (1, 1, 2),
    "heads": (*DYVIT["heads"][:2], ((None, 8),)),
}


DEEP_VIT: dict[str, Any] = WIDER_VIT | {"depth": 4}
WIDEST_DYVIT: dict[str, Any] = DYVIT | {
    "dims": (32, 64, 512),
    "depths": (1, 1, 1),
    "heads": (*DYVIT["heads"][:2], ((None, 16),)),
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
    visible: float = MAE_VISIBLE
    """Share of the mask units that is seen (MAE)."""
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
    bfloat16: bool = True
    """Whether matrix products are in bfloat16; weights, targets and losses are float32."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    levers: Levers = field(default_factory=Levers)
    """Changes that are on trial."""

    def build(self, image_size: int) -> CoMA | MAE:
        """Build the network, untrained."""
        decoder = {
            "decoder_depth": self.decoder_depth,
            "decoder_dim": self.decoder_dim,
            "memory_stages": self.memory_stages,
        }
        if self.method == "mae" and (self.levers != Levers() or self.visible != MAE_VISIBLE):
            return LeverMAE(self.visible, self.levers, self.model, img_size=image_size, **decoder, **self.backbone)
        if self.levers != Levers():
            backbone = LeverDyViT(self.levers, img_size=image_size, **self.backbone)
            options = decoder | {"views": self.views, "predict": self.predict, "img_size": image_size}
            return LeverCoMA(backbone, self.levers, **options)
        given = {"views": self.views, "predict": self.predict, "image_size": image_size, **decoder}
        return build(self.model, self.method, **given, **self.backbone)

    def loss(self, model: CoMA | MAE, images: Tensor, samples: Tensor, epochs: Tensor, *, seed: int) -> Tensor:
        """Return the loss of one batch; the masks are keyed by (seed, epoch, sample), as the stream's are."""
        orders = [
            permuted_units(self.levers, samples, epochs, seed=seed + mask * 1_000_003, units=model.units)
            for mask in range(self.masks)
        ]
        loss: Tensor = model(images.repeat(self.masks, 1, 1, 1), torch.cat(orders))
        return loss


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
        _COMA,
        # Width in place of depth, at about as many parameters (1.35 and 1.27 M).
        dataclasses.replace(_MAE, name="mae-wide", backbone=WIDE_VIT),
        dataclasses.replace(_COMA, name="coma-wide", backbone=WIDE_DYVIT),
        # More of it (1.59 and 1.48 M), and for MAE a decoder of one block.
        dataclasses.replace(_MAE, name="mae-256", backbone=WIDER_VIT, decoder_depth=1, decoder_dim=64),
        dataclasses.replace(_COMA, name="coma-256", backbone=WIDER_DYVIT),
        # More again, where CoMA still gains by width and MAE does not, but by depth (2.86 and 3.17 M).
        dataclasses.replace(_MAE, name="mae-deep", backbone=DEEP_VIT, decoder_depth=1, decoder_dim=64, batch_size=32),
        dataclasses.replace(_COMA, name="coma-512", backbone=WIDEST_DYVIT),
        # Controls: several masks an image but no partition; the backbone alone; random masks in place of a partition.
        dataclasses.replace(_MAE, name="mae-4masks", backbone=WIDE_VIT, masks=4, batch_size=16),
        dataclasses.replace(_COMA, name="mae-dyvit", backbone=WIDE_DYVIT, method="mae", batch_size=64),
        dataclasses.replace(_COMA, name="independent", backbone=WIDE_DYVIT, method="independent"),
    )
}

CHOSEN = {
    "mae": "mae-deep",
    "mae-compute": "mae-deep:masks=4,batch_size=16",
    "coma": "coma-512",
}
"""Rows that are compared on the test images, by name, written as for `variant`: each as `choose` found it best."""


def variant(text: str) -> Variant:
    """Return a row by its name, changed as what follows says: NAME:lr=2e-3,batch_size=32,levers.fused=True.

    A change names a field of `Variant`, of its `levers`, or an entry of its `backbone` (backbone.depth=4).

    Raises:
        UsageError: no such row or field, or a value that does not fit.
    """
    name, _, changes = text.partition(":")
    if name not in VARIANTS:
        raise UsageError(f"no variant named {name!r}: choose {', '.join(VARIANTS)} (benchmarks/epochs/variants.py)")
    row = VARIANTS[name]
    for change in _split_changes(changes):
        key, _, value = change.partition("=")
        row = _changed(row, key, _read(value), text)
    return dataclasses.replace(row, name=text)


def chosen(name: str) -> Variant:
    """Return the row that was chosen under this name.

    Raises:
        UsageError: none was: the test images are for what was chosen without them.
    """
    if name not in CHOSEN:
        rows = f"one of {', '.join(CHOSEN)}" if CHOSEN else "nothing yet: run `choose`, and add the best row to CHOSEN"
        raise UsageError(f"{name!r} was not chosen (benchmarks/epochs/variants.py); what may be tested is {rows}")
    return dataclasses.replace(variant(CHOSEN[name]), name=name)


def _split_changes(text: str) -> list[str]:
    """Cut at the commas that stand outside of brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts if text else []


def _read(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _changed(row: Variant, key: str, value: Any, text: str) -> Variant:
    part, _, name = key.rpartition(".")
    of: Any = row.levers if part == "levers" else row
    names = list(row.backbone) if part == "backbone" else [field.name for field in dataclasses.fields(of)]
    if part not in ("", "levers", "backbone") or name not in names:
        raise UsageError(f"variant {text!r}: there is no {key!r} to change; {part or 'a row'} has {', '.join(names)}")
    if part == "backbone":
        return dataclasses.replace(row, backbone=row.backbone | {name: value})
    before = getattr(of, name)
    if before is not None and not isinstance(value, type(before)) and not (isinstance(before, float) and value == 0):
        raise UsageError(f"variant {text!r}: {key} is {before!r}, and {value!r} is of another kind")
    changed = dataclasses.replace(of, **{name: value})
    if not 0 < (changed if part == "" else row).lr < 1:
        raise UsageError(f"variant {text!r}: the learning rate {value!r} is not between 0 and 1")
    return dataclasses.replace(row, levers=changed) if part == "levers" else changed
