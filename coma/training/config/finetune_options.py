"""Options of `coma finetune`: a frozen dataclass, validated once, when made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from coma.errors import UsageError
from coma.runs.names import CHECKPOINTS_NAME
from coma.shards.option import option, option_like
from coma.shards.shares import named_sources
from coma.training.config.options import RunConfig, model_option, optimisation_option

augmentation_option = partial(option, panel="Augmentation", identity=True)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Options of a fine-tuning run; the defaults are MAE's for ViT-B (arXiv 2111.06377, table 9)."""

    command: ClassVar[str] = "finetune"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    source: Path | str = option(
        help="Backbone to fine-tune: a run, a checkpoint, an export, or a model of timm or the Hub (hf-hub:NAME).",
        argument=True,
        metavar="RUN|EXPORT|NAME",
    )
    image_size: int | None = option_like(RunConfig, "image_size", shown_default="as in pre-training")
    crop_scale: float = option_like(RunConfig, "crop_scale", 0.08)
    rand_augment: int = augmentation_option(
        9, help="Magnitude of RandAugment, two operations per image, up to 30; 0: none.", least=0, most=30
    )
    erasing: float = augmentation_option(
        0.25, help="Share of images of which a random rectangle is erased.", least=0, most=1
    )
    mixup: float = augmentation_option(0.8, help="Alpha of mixup; 0: none.", least=0, most=100)
    cutmix: float = augmentation_option(
        1.0, help="Alpha of CutMix; 0: none. With mixup, each step takes either at random.", least=0, most=100
    )
    label_smoothing: float = augmentation_option(
        0.1, help="Share of a label that is spread over all classes.", least=0, most=0.99
    )
    drop_path: float = model_option(
        0.1, help="Stochastic depth: drop rate of the last block, rising linearly from 0.", least=0, most=0.99
    )
    ema_decay: float = model_option(
        0.0,
        help="Decay of an exponential moving average (EMA) of the weights, such as 0.9999, which is evaluated "
        "and exported in their place; 0: none.",
        least=0,
        most=0.999999,
    )
    base_lr: float = option_like(RunConfig, "base_lr", 5e-4)
    layer_decay: float = optimisation_option(  # of BEiT, arXiv 2106.08254
        0.65, help="Learning rate of a layer as a share of that of the layer above it.", above=0, most=1, identity=True
    )
    seed: int = option_like(RunConfig, "seed", help="Random seed for sample order, crops and augmentation.")
    out: Path | None = option_like(RunConfig, "out", shown_default="runs/RUN-finetune[-NUMBER]")
    evaluate_every: int | None = option_like(
        RunConfig, "evaluate_every", 1, help="Epochs between evaluations on split val.", shown_default=None
    )

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        super().__post_init__()
        if isinstance(self.data, tuple | list):
            raise UsageError(f"data is {list(self.data)}, and fine-tuning takes one data set: give that alone")
        if isinstance(self.data, str):
            named_sources([self.data])  # which refuses a share

    @property
    def name(self) -> str:
        """The source's name, with what was done to it."""
        text = str(self.source)
        if (name := re.match(r"hf.hub:[^/]*/?([^@]*)", text)) is not None:
            return f"{name[1]}-finetune"
        path = Path(text.removeprefix("local-dir:")).resolve()
        if path.parent.name == CHECKPOINTS_NAME:
            path = path.parent.parent
        return f"{path.name}-finetune"

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return self.mixup > 0 or self.cutmix > 0
