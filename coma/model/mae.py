"""MAE (arXiv 2111.06377), for comparison: one random quarter of the units is seen, the rest predicted.

The same stream feeds it: of four complementary views it uses the first.

Legend: B images, U mask units, V visible units, T patches of a unit, Q hidden patches, C, D channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.blocks import init_weights
from coma.model.coma import MaskedAutoencoder
from coma.model.decoder import HEAD_DIM, Painting
from coma.model.layout import Grid, SinCosPosition

VIEWS = 4
LayerNorm = partial(nn.LayerNorm, eps=1e-6)  # as in MAE and timm's ViT; torch's own default is 1e-5


class SelfAttentionDecoder(nn.Module):
    """MAE's decoder: visible features and mask tokens together through plain transformer blocks."""

    def __init__(self, encoder_dim: int, tokens: int, patch_values: int, dim: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = SinCosPosition(dim, round(tokens**0.5))
        self.blocks = nn.ModuleList(
            Block(dim, dim // HEAD_DIM, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, patch_values)
        self.tokens = tokens

    def forward(
        self, features: Sequence[Tensor], grid: Grid, units: Tensor, paintings: Sequence[Painting]
    ) -> Tensor:
        """The last of `features` [B, V·T, C], `units` [B, U], the V seen first, to [B, Q, patch_values]."""
        visible = self.embed(features[-1])
        b, seen, d = visible.shape
        masks = self.mask_token.to(visible.dtype).expand(b, units.shape[1] * self.tokens - seen, d)
        x = self.position(torch.cat([visible, masks], dim=1), grid, units)
        for block in self.blocks:
            x = block(x)
        pixels: Tensor = self.head(self.norm(x[:, seen:]))
        return pixels


class MAE(MaskedAutoencoder):
    """Masked autoencoder: encodes a random quarter of the image, predicts the rest.

    With a ViT, units are its patches and the decoder is MAE's (8 blocks of 512 channels for ViT-B and
    larger). With a DyViT, units are the DyViT's and the decoder is CoMA's, so that the two methods differ in
    the masking alone.

    Args:
        backbone: a timm ViT or a DyViT, or its timm name.
        img_size: image size in pixels, (height, width) if not square.
        decoder_depth, decoder_dim: blocks and channels (a multiple of 32) of the decoder; None: by the
        backbone.
        memory_stages: how many of a DyViT's last stages the decoder sees; None: all. A ViT has one.
        backbone_kwargs: for the backbone, if it is given by name.

    Raises:
        UsageError: a misspelt model, or sizes that do not fit each other.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "vit_base_patch16_224",
        *,
        img_size: int | tuple[int, int] = 224,
        decoder_depth: int | None = None,
        decoder_dim: int | None = None,
        memory_stages: int | None = None,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__(backbone, img_size, **backbone_kwargs)
        if self.units < VIEWS:
            raise UsageError(
                f"{self.units} mask unit(s) of {self.encoder.unit_size} pixels: MAE shows one in {VIEWS},"
                " so larger images or smaller patches are needed"
            )
        if isinstance(self.backbone, VisionTransformer):
            self.decoder: nn.Module = self._self_attention_decoder(decoder_dim, decoder_depth)
        else:
            self.decoder = self._cross_attention_decoder(decoder_dim, decoder_depth, memory_stages)

    @property
    def view_sizes(self) -> tuple[int, int]:
        """Units that the encoder sees, and those that it does not."""
        return self.units // VIEWS, self.units - self.units // VIEWS

    def paintings(self, units: int, every: bool = False) -> tuple[Painting, ...]:
        """The first quarter is seen, the rest predicted."""
        visible = units // VIEWS
        return (Painting((0, visible), ((visible, units),)),)

    def stream_views(self) -> int:
        """Four views, whose first is seen."""
        return VIEWS

    @staticmethod
    def _default_unit_size(backbone: nn.Module) -> int | None:
        """A ViT's patch."""
        return backbone.patch_embed.patch_size[0] if isinstance(backbone, VisionTransformer) else None

    def _self_attention_decoder(self, dim: int | None, depth: int | None) -> SelfAttentionDecoder:
        encoder_dim = self.encoder.stage_dims[-1]
        dim = min(512, round(encoder_dim * 2 / 3 / HEAD_DIM) * HEAD_DIM) if dim is None else dim
        depth = (8 if encoder_dim >= 768 else 4) if depth is None else depth
        self._check_decoder(dim, depth)
        decoder = SelfAttentionDecoder(encoder_dim, self.tokens, self.patch_values, dim, depth)
        decoder.apply(init_weights)
        return decoder
