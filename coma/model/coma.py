"""CoMA: complementary masked autoencoding (arXiv 2511.05929).

K complementary views partition an image's mask units. One forward pass encodes all of them, each blind to the
others; the decoder then predicts from each view the pixels that it does not see. Every patch is seen once and
predicted K - 1 times.

Legend: B images, K views, U mask units, V_k visible and W_k hidden units of view k.
"""

from typing import Any

import torch
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.autoencoder import MaskedAutoencoder
from coma.model.decoder import cross_attention_decoder
from coma.pipeline.views import view_sizes


class CoMA(MaskedAutoencoder):
    """Complementary masked autoencoder: K views of an image, each predicting what it does not see.

    Args:
        backbone: a DyViT (or timm ViT), or its timm name.
        img_size: image size in pixels, (height, width) if not square.
        views: K, into how many views the mask units are parted.
        predict: how many other views each view predicts (the following ones, cyclically); None: all.
        decoder_depth: blocks of the decoder; None: one.
        decoder_dim: channels of the decoder, a multiple of 32; None: by the backbone.
        memory_stages: how many of the backbone's last stages the decoder sees; None: all.
        unit_size: mask unit in pixels; None: 8 patches of a DyViT, 2 of a ViT.
        backbone_kwargs: for the backbone, if it is given by name (`patch_size`, `drop_path_rate`, ...).

    Raises:
        UsageError: a misspelt model, or sizes that do not fit each other.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "dyvit_base",
        *,
        img_size: int | tuple[int, int] = 224,
        views: int = 2,
        predict: int | None = None,
        decoder_depth: int | None = None,
        decoder_dim: int | None = None,
        memory_stages: int | None = None,
        unit_size: int | None = None,
        **backbone_kwargs: Any,
    ) -> None:
        if views < 2:
            raise UsageError(f"{views} view(s): complementary masking needs at least 2, or nothing is hidden")
        predict = views - 1 if predict is None else predict
        if not 1 <= predict < views:
            raise UsageError(f"predict {predict} of {views} views: a view predicts 1 to {views - 1} others")
        super().__init__(backbone, img_size, unit_size, **backbone_kwargs)
        if views > self.units:
            raise UsageError(
                f"{views} views of {self.units} mask unit(s) of {self.encoder.unit_size} pixels:"
                " take fewer views, larger images or smaller patches"
            )
        self.views, self.predict = views, predict
        self.view_sizes = view_sizes(self.units, views)
        self.decoder = cross_attention_decoder(self.encoder, decoder_dim, decoder_depth, memory_stages)

    def split_units(self, units: Tensor, predict_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Cut `units` [B, U] into K views; view k predicts views k + 1 ... k + `predict`, cyclically."""
        visible = list(torch.split(units, list(view_sizes(units.shape[1], self.views)), dim=1))
        predict = self.views - 1 if predict_all else self.predict
        hidden = [
            torch.cat([visible[(k + i) % self.views] for i in range(1, predict + 1)], dim=1) for k in range(self.views)
        ]
        return visible, hidden
