"""CoMA: complementary masked autoencoding (arXiv 2511.05929).

K complementary views partition an image's mask units. One forward encodes all of them, each blind to the
others; the decoder then predicts from each view the pixels that it does not see. Every patch is seen once and
predicted K - 1 times.

Legend: B images, K views, U mask units, T patches of a unit to predict, Q predictions, P values of a patch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.errors import UsageError
from coma.model.blocks import init_weights
from coma.model.decoder import HEAD_DIM, Decoder, Painting, Range, take, units_in
from coma.model.encoders import Encoder, build_backbone, encoder_of, predicted_tokens
from coma.model.layout import Grid, from_units, take_units
from coma.pipeline.views import view_sizes


class MaskedAutoencoder(nn.Module, ABC):
    """What CoMA and MAE share: images and mask units in, a loss or pictures of the predictions out.

    A subclass says which units each view sees and predicts (`paintings`) and makes the decoder.

    Args:
        backbone: a DyViT or timm ViT, or its timm name.
        img_size: image size in pixels, as the stream is to give it.
        unit_size: mask unit in pixels; None for the backbone's own.
        backbone_kwargs: for the backbone, if it is given by name.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        img_size: int | tuple[int, int],
        unit_size: int | None = None,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            if unit_size is not None and backbone.startswith("dyvit_"):
                backbone_kwargs["unit_size"] = unit_size
            backbone = build_backbone(backbone, img_size, **backbone_kwargs)
        self.backbone = backbone
        encoder = encoder_of(backbone, unit_size or self._default_unit_size(backbone))
        self._adapter = None if encoder is backbone else encoder  # a module under two names is saved twice
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        grid = self.encoder.unit_grid(*self.img_size)
        self.units = grid[0] * grid[1]
        self.tokens = predicted_tokens(self.encoder)
        self.patch_values = self.encoder.unit_size**2 * self.encoder.in_chans // self.tokens
        self.decoder: nn.Module

    @property
    def encoder(self) -> Encoder:
        """The backbone, as something that encodes mask units."""
        return self._adapter or self.backbone  # type: ignore[return-value]

    # -- what a subclass decides -----------------------------------------------------------------------------

    @abstractmethod
    def paintings(self, units: int, every: bool = False) -> tuple[Painting, ...]:
        """Which of `units` units each view sees and predicts; `every`: all that it does not see."""

    @abstractmethod
    def stream_views(self) -> int:
        """Into how many views the stream is to part the units."""

    def lay_units(self, units: Tensor) -> Tensor:
        """The units [B, U] in the order to which the paintings' ranges refer, those that are seen first."""
        return units

    def seen_units(self, units: Tensor) -> list[Tensor]:
        """What each view sees of images with `units` [B, U]: K of [B, V] int64, raster indices."""
        laid = self.lay_units(units)
        return [take(laid, [painting.visible]) for painting in self.paintings(units.shape[1], every=True)]

    @staticmethod
    def _default_unit_size(backbone: nn.Module) -> int | None:
        """Pixels of a mask unit if none are given; None for the backbone's own."""
        return None

    # -- training --------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, units: Tensor) -> Tensor:
        """Mean squared error on normalised pixels over all predictions, a float32 scalar.

        Args:
            images: [B, 3, H, W], normalised.
            units: [B, U] int64, the permutation of mask units that lays the views side by side.
        """
        paintings = self.paintings(units.shape[1])
        patches, grid, units = self._lay(images, units)
        predicted = self._predict(patches, grid, units, paintings)
        targets = normalise_patches(patches.detach().reshape(*units.shape, self.tokens, -1))[0]
        hidden = torch.cat([take(targets, painting.hidden) for painting in paintings], dim=1)
        return F.mse_loss(predicted.float(), hidden.flatten(1, 2))

    def predict_pixels(self, images: Tensor, units: Tensor) -> Tensor:
        """Predicted normalised pixels, [B, Q, P]: view after view, the units that each is to predict."""
        paintings = self.paintings(units.shape[1])
        patches, grid, units = self._lay(images, units)
        return self._predict(patches, grid, units, paintings)

    def stream_options(self) -> dict[str, Any]:
        """Arguments that the `Stream` must be given for its batches to fit."""
        height, width = self.img_size
        return {
            "views": self.stream_views(),
            "unit_size": self.encoder.unit_size,
            "image_size": height if height == width else (height, width),
        }

    def no_weight_decay(self) -> set[str]:
        """Names of position and token parameters."""
        of_backbone: set[str] = self.backbone.no_weight_decay()  # type: ignore[operator]
        special = {f"backbone.{name}" for name in of_backbone}
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name in special or name.endswith("mask_token")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    # -- looking ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, images: Tensor, units: Tensor) -> Tensor:
        """What each view makes of the image: [B, K, 3, H, W] in the images' own normalised space.

        Visible units stay as they are; hidden patches are painted. The network predicts patches normalised by
        their
        own mean and deviation, so these two are taken from the true patch, as is usual: the pictures show
        predicted structure, not predicted brightness and contrast.
        """
        paintings = self.paintings(units.shape[1], every=True)
        patches, grid, units = self._lay(images, units)
        predicted = self._predict(patches, grid, units, paintings).float()
        _, mean, deviation = normalise_patches(patches.reshape(*units.shape, self.tokens, -1))
        pictures = []
        sizes = [self.tokens * units_in(painting.hidden) for painting in paintings]
        for painting, pixels in zip(paintings, torch.split(predicted, sizes, 1), strict=True):
            pixels = pixels.reshape(len(images), -1, self.tokens, self.patch_values)
            pixels = pixels * take(deviation, painting.hidden) + take(mean, painting.hidden)
            seen = take(patches.float(), [painting.visible])
            canvas = torch.cat([seen, pixels.reshape(len(images), -1, *patches.shape[2:])], dim=1)
            raster = take(units, [painting.visible, *painting.hidden]).argsort(dim=1)
            laid = take_units(canvas, raster)
            pictures.append(from_units(laid, grid, _patch_size(laid, self.encoder.in_chans)))
        return torch.stack(pictures, dim=1)

    def _lay(self, images: Tensor, units: Tensor) -> tuple[Tensor, Grid, Tensor]:
        """The images' patches in laid order, [B, L, T, P], the grid of units, and that order [B, L]."""
        grid = self.encoder.unit_grid(*images.shape[-2:])
        if units.shape != (images.shape[0], grid[0] * grid[1]):
            raise ValueError(
                f"units of shape {tuple(units.shape)} for {len(images)} images of {grid[0]}x{grid[1]} units"
            )
        units = self.lay_units(units)
        return take_units(self.encoder.unit_patches(images), units), grid, units

    def _predict(self, patches: Tensor, grid: Grid, units: Tensor, paintings: Sequence[Painting]) -> Tensor:
        """Encode of `patches` [B, L, T, P] what the paintings see, decode what they predict: [B, Q, P]."""
        seen = max(painting.visible[1] for painting in paintings)
        sizes = [units_in([painting.visible]) for painting in paintings]
        features = self.encoder.encode_patches(patches[:, :seen], grid, units[:, :seen], sizes)
        predicted: Tensor = self.decoder(features, grid, units, paintings)
        return predicted

    def _cross_attention_decoder(
        self, dim: int | None, depth: int | None, memory_stages: int | None = None
    ) -> Decoder:
        dim = default_decoder_dim(self.encoder.stage_dims[-1]) if dim is None else dim
        depth = 1 if depth is None else depth
        self._check_decoder(dim, depth)
        stages = self.encoder.stage_dims, self.encoder.stage_tokens
        memory_stages = len(stages[0]) if memory_stages is None else memory_stages
        if not 1 <= memory_stages <= len(stages[0]):
            raise UsageError(
                f"memory of {memory_stages} stages: this backbone has {len(stages[0])}, take 1 or more of them"
            )
        decoder = Decoder(*stages, self.tokens, self.patch_values, dim, depth, memory_stages)
        decoder.apply(init_weights)
        return decoder

    @staticmethod
    def _check_decoder(dim: int, depth: int) -> None:
        if dim % HEAD_DIM or dim < HEAD_DIM or depth < 1:
            raise UsageError(
                f"decoder of {depth} block(s) of {dim} channels: take one block or more,"
                f" and a multiple of {HEAD_DIM} channels"
            )


class CoMA(MaskedAutoencoder):
    """Complementary masked autoencoder: K views of an image, each predicting what it does not see.

    Args:
        backbone: a DyViT (or timm ViT), or its timm name.
        img_size: image size in pixels, (height, width) if not square.
        views: K, into how many views the mask units are parted.
        predict: how many other views each view predicts (the following ones, cyclically); None: all.
        decoder_depth, decoder_dim: blocks and channels (a multiple of 32) of the decoder; None: one, and by the
        backbone.
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
        self.decoder = self._cross_attention_decoder(decoder_dim, decoder_depth, memory_stages)

    def paintings(self, units: int, every: bool = False) -> tuple[Painting, ...]:
        """View k sees its own units and predicts those of the `predict` views that follow it."""
        return complementary(view_sizes(units, self.views), self.views - 1 if every else self.predict)

    def stream_views(self) -> int:
        """K."""
        return self.views


def complementary(sizes: Sequence[int], predict: int) -> tuple[Painting, ...]:
    """View k sees units [k] and predicts views k + 1 ... k + predict, cyclically."""
    stops = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    ranges: list[Range] = [(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    k_views = len(sizes)
    return tuple(
        Painting(ranges[k], tuple(ranges[(k + j) % k_views] for j in range(1, predict + 1)))
        for k in range(k_views)
    )


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 patches [..., P] of mean 0 and variance 1, their means and deviations [..., 1], as in MAE."""
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = (patches.var(dim=-1, keepdim=True) + eps).sqrt()
    return (patches - mean) / deviation, mean, deviation


def default_decoder_dim(encoder_dim: int) -> int:
    """Channels of the cross-attention decoder for a backbone of `encoder_dim` output channels.

    It has one block: two were no better in small experiments (docs/experiments.md), and cost more.
    """
    return max(1, round(encoder_dim / (4 if encoder_dim < 768 else 3) / HEAD_DIM)) * HEAD_DIM


def _patch_size(patches: Tensor, channels: int) -> int:
    return math.isqrt(patches.shape[-1] // channels)
