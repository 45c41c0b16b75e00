"""A backbone with a linear classifier on its averaged tokens, and its loss, for fine-tuning.

Legend: B images, N classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.model.encoders import build_backbone
from coma.pipeline.preprocessing import DEFAULT, Preprocessing

_HEAD_DEVIATION = 2e-5


class Classifier(nn.Module):
    """The network that fine-tuning trains; `backbone` is an ordinary timm model with its classifier.

    Args:
        model: timm name of the backbone, a DyViT or a plain ViT.
        classes: N, the number of classes.
        img_size: side of the images in pixels.
        patch_size: side of a patch in pixels; None: the model's own.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        preprocessing: how its images are normalised, and how many channels they have.
        args: of a ViT that takes the weights of others, see `build_backbone`.

    Raises:
        UsageError: no such model, or sizes that do not fit each other.
    """

    def __init__(
        self,
        model: str,
        classes: int,
        *,
        img_size: int = 224,
        patch_size: int | None = None,
        drop_path_rate: float = 0.0,
        preprocessing: Preprocessing = DEFAULT,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.preprocessing = preprocessing
        options: dict[str, Any] = {} if patch_size is None else {"patch_size": patch_size}
        if preprocessing.channels != 3:
            options["in_chans"] = preprocessing.channels
        self.backbone = build_backbone(model, img_size, args, drop_path_rate=drop_path_rate, **options)
        self.backbone.reset_classifier(classes)
        head: Any = self.backbone.get_classifier()
        nn.init.trunc_normal_(head.weight, std=_HEAD_DEVIATION)  # as MAE: all classes alike at first
        nn.init.zeros_(head.bias)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, a float32 scalar.

        Args:
            images: [B, 3, H, W], normalised.
            targets: [B, N] float, the share of each class in an image; a row adds up to 1.
        """
        logits = self.logits(images)
        return -(targets.float() * F.log_softmax(logits, dim=1)).sum(dim=1).mean()

    def logits(self, images: Tensor) -> Tensor:
        """Classify images [B, 3, H, W]: [B, N] float32."""
        logits: Tensor = self.backbone(images.to(next(self.parameters()).dtype))
        return logits.float()

    @property
    def crop_unit(self) -> int:
        """Pixels of which an image's side has to be a multiple."""
        if (unit := getattr(self.backbone, "unit_size", None)) is not None:
            return int(unit)
        patches: Any = self.backbone.patch_embed
        return int(patches.patch_size[0])


@torch.no_grad()
def correct_of(logits: Tensor, labels: Tensor, k: int = 1) -> int:
    """Count the rows of `logits` [B, N] whose `labels` [B] are among the k highest."""
    return int((logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]).any(dim=1).sum())
