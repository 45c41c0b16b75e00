"""MAE (arXiv 2111.06377), for comparison: one random quarter of the units is visible, the rest is predicted.

The same stream feeds it: of the four views that the stream cuts it sees the first.

Legend: B images, U mask units, V visible and W hidden units, T patches of a unit, C, D channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.autoencoder import MaskedAutoencoder
from coma.model.blocks import init_weights, recomputed
from coma.model.decoder import HEAD_DIM, check_decoder_size, cross_attention_decoder
from coma.model.encoders import Encoder, predicted_patches
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
        self.grad_checkpointing = False

    def forward(
        self, features: Sequence[Tensor], grid: Grid, visible: Sequence[Tensor], hidden: Sequence[Tensor]
    ) -> Tensor:
        """Predict [B, W·T, patch_values] from the last of `features`, [B, V·T, C].

        `visible` and `hidden` hold one view's units, [B, V] and [B, W] raster indices.
        """
        x = self.embed(features[-1])  # [B, V·T, D]
        b, visible_tokens, d = x.shape
        mask_tokens = self.mask_token.to(x.dtype).expand(b, hidden[0].shape[1] * self.tokens, d)
        x = self.position(torch.cat([x, mask_tokens], dim=1), grid, torch.cat([visible[0], hidden[0]], dim=1))
        for block in self.blocks:
            x = recomputed(block, x) if self.grad_checkpointing and self.training else block(x)
        pixels: Tensor = self.head(self.norm(x[:, visible_tokens:]))
        return pixels


class MAE(MaskedAutoencoder):
    """Masked autoencoder: encodes a random quarter of the image, predicts the rest.

    With a ViT, units are its patches and the decoder is MAE's (8 blocks of 512 channels for ViT-B and
    larger). With a DyViT, units are the DyViT's and the decoder is CoMA's, so that the two methods differ in
    the masking alone.

    Args:
        backbone: a timm ViT or a DyViT, or its timm name.
        img_size: image size in pixels, (height, width) if not square.
        decoder_depth, decoder_dim: blocks and channels (a multiple of 32) of the decoder; None: by the backbone.
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
        self.views = VIEWS
        if isinstance(self.backbone, VisionTransformer):
            self.decoder: nn.Module = self_attention_decoder(self.encoder, decoder_dim, decoder_depth)
        else:
            self.decoder = cross_attention_decoder(self.encoder, decoder_dim, decoder_depth, memory_stages)

    def split_units(self, units: Tensor, predict_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """One view sees the first quarter of `units` [B, U] and predicts the rest, `predict_all` or not."""
        visible_units = units.shape[1] // VIEWS
        return [units[:, :visible_units]], [units[:, visible_units:]]

    @staticmethod
    def _default_unit_size(backbone: nn.Module) -> int | None:
        """Return the side of a ViT's patch; None for a DyViT, whose own unit stands."""
        return backbone.patch_embed.patch_size[0] if isinstance(backbone, VisionTransformer) else None


def self_attention_decoder(encoder: Encoder, dim: int | None = None, depth: int | None = None) -> SelfAttentionDecoder:
    """Make MAE's decoder for an encoder: by default 8 blocks of 512 channels, smaller for those below ViT-B."""
    encoder_dim = encoder.stage_dims[-1]
    dim = min(512, round(encoder_dim * 2 / 3 / HEAD_DIM) * HEAD_DIM) if dim is None else dim
    depth = (8 if encoder_dim >= 768 else 4) if depth is None else depth
    check_decoder_size(dim, depth)
    decoder = SelfAttentionDecoder(encoder_dim, *predicted_patches(encoder), dim, depth)
    decoder.apply(init_weights)
    return decoder
