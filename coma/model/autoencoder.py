"""The masked autoencoder that CoMA, its control and MAE share: images and mask units to a loss.

The masking convention, here and in the decoder: a view of an image is two lists of mask units, those that it sees
(`visible`) and those that it predicts (`hidden`), as indices into the image's units in raster order. A unit may be
in neither list.

Legend: B images, K views, U mask units, V_k visible and W_k hidden units of view k, V and W their sums over the
views, T patches of a unit that are predicted (of 16 px), P values of such a patch, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coma.model.blocks import init_weights
from coma.model.encoders import (
    Encoder,
    build_backbone,
    checkpoint_stages,
    encoder_of,
    init_backbone,
    predicted_patches,
    undecayed,
)
from coma.model.layout import Grid, from_units, take_units
from coma.pipeline.preprocessing import Preprocessing


class MaskedAutoencoder(nn.Module, ABC):
    """Backbone, decoder and loss; a subclass makes the decoder and splits units into visible and hidden ones.

    Args:
        backbone: a DyViT or timm ViT, or its timm name.
        img_size: image size in pixels, as the stream is to give it.
        unit_size: mask unit in pixels; None for the backbone's own.
        backbone_args: of a ViT that takes the weights of others, see `build_backbone`.
        backbone_kwargs: for the backbone, if it is given by name.
    """

    views: int
    """Into how many views the stream cuts the units."""
    keeps_image_losses = False
    """Whether `forward` leaves the loss of each image in `image_losses`; what it returns is the same to the bit."""
    image_losses: Tensor | None = None
    """[B] float32, detached: mean squared error of each image of the last forward pass."""
    preprocessing: Preprocessing | None = None
    """How its images are normalised; None: as the stream does by itself."""
    decoder: nn.Module
    """Called with stage features, grid, visible and hidden units, it returns the predictions [B, W·T, P]."""

    def __init__(
        self,
        backbone: str | nn.Module,
        img_size: int | tuple[int, int],
        unit_size: int | None = None,
        backbone_args: Mapping[str, Any] | None = None,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            if unit_size is not None and backbone.startswith("dyvit_"):
                backbone_kwargs["unit_size"] = unit_size
            backbone = build_backbone(backbone, img_size, backbone_args, **backbone_kwargs)
        self.backbone = backbone
        encoder = encoder_of(backbone, unit_size or self._default_unit_size(backbone))
        self._adapter = None if encoder is backbone else encoder  # a module under two names is saved twice
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        grid = self.encoder.unit_grid(*self.img_size)
        self.units = grid[0] * grid[1]
        self.tokens, self.patch_values = predicted_patches(self.encoder)

    @property
    def encoder(self) -> Encoder:
        """The backbone, as something that encodes mask units."""
        return self._adapter or self.backbone  # type: ignore[return-value]

    @staticmethod
    def _default_unit_size(backbone: nn.Module) -> int | None:
        """Pixels of a mask unit if none are given; None for the backbone's own."""
        return None

    # -- the method ------------------------------------------------------------------------------------------

    @abstractmethod
    def split_units(self, units: Tensor, predict_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Choose what each view sees and what it predicts.

        Args:
            units: [B, U] int64, a random permutation of each image's mask units.
            predict_all: let each view predict every unit that it does not see.

        Returns:
            `visible`, K of [B, V_k], and `hidden`, K of [B, W_k]: raster indices of units.
        """

    def forward(self, images: Tensor, units: Tensor) -> Tensor:
        """Mean squared error on normalised pixels over all predictions, a float32 scalar.

        Args:
            images: [B, 3, H, W], normalised.
            units: [B, U] int64, the permutation of mask units that lays the views side by side.
        """
        patches, grid = self.patchify(images, units)  # [B, U, T_1, P_1], those of the encoder
        visible, hidden = self.split_units(units)  # K of [B, V_k], K of [B, W_k]
        features = self.encode(patches, grid, visible)  # [B, V·T_s, C_s] for each stage s
        predicted = self.decoder(features, grid, visible, hidden)  # [B, W·T, P]
        targets = normalise_patches(self._to_predict(patches.detach()))[0]  # [B, U, T, P]
        targets = take_units(targets, torch.cat(hidden, dim=1))  # [B, W, T, P]
        # As F.mse_loss, which would keep both instead of their difference.
        squares = (predicted.float() - targets.flatten(1, 2)).square()
        loss: Tensor = squares.mean()
        if self.keeps_image_losses:
            self.image_losses = squares.detach().mean(dim=(1, 2))
        return loss

    def patchify(self, images: Tensor, units: Tensor) -> tuple[Tensor, Grid]:
        """Cut images [B, 3, H, W] into the encoder's patches [B, U, T_1, P_1], units in raster order.

        Returns:
            the patches, and how many units lie down and across an image.

        Raises:
            ValueError: `units` are not of as many images, or not of images of this size.
        """
        grid = self.encoder.unit_grid(*images.shape[-2:])
        if units.shape != (images.shape[0], grid[0] * grid[1]):
            raise ValueError(
                f"units of shape {tuple(units.shape)} for {len(images)} images of {grid[0]}x{grid[1]} units"
            )
        return self.encoder.unit_patches(images), grid

    def encode(self, patches: Tensor, grid: Grid, visible: list[Tensor]) -> list[Tensor]:
        """Encode all views in one pass, each blind to the others.

        Args:
            patches: [B, U, T_1, P_1], units in raster order.
            grid: mask units down and across the image.
            visible: K of [B, V_k], what each view sees.

        Returns:
            The features of each stage s, [B, V·T_s, C_s], view after view.
        """
        units = torch.cat(visible, dim=1)  # [B, V]
        sizes = [view.shape[1] for view in visible]
        return self.encoder.encode_patches(take_units(patches, units), grid, units, sizes)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, units: Tensor) -> Tensor:
        """Complete the image from each view: [B, K, 3, H, W] in the images' own normalised space.

        Visible units stay as they are, hidden ones are predicted. The network predicts patches normalised by their
        own mean and deviation, so these two are taken from the true patch, as is usual: the pictures show
        predicted structure, not predicted brightness and contrast.
        """
        patches, grid = self.patchify(images, units)
        visible, hidden = self.split_units(units, predict_all=True)
        features = self.encode(patches, grid, visible)
        predicted = self.decoder(features, grid, visible, hidden).float()  # [B, W·T, P]
        _, mean, deviation = normalise_patches(self._to_predict(patches))  # [B, U, T, 1]
        pictures = []
        predictions = torch.split(predicted, [self.tokens * view.shape[1] for view in hidden], dim=1)
        for visible_k, hidden_k, pixels in zip(visible, hidden, predictions, strict=True):
            pixels = pixels.reshape(*hidden_k.shape, self.tokens, -1)  # [B, W_k, T, P]
            pixels = pixels * take_units(deviation, hidden_k) + take_units(mean, hidden_k)
            kept = take_units(patches.float(), visible_k)  # [B, V_k, T_1, P_1]
            both = torch.cat([kept, pixels.reshape(*hidden_k.shape, *kept.shape[2:])], dim=1)  # [B, U, T_1, P_1]
            raster = take_units(both, torch.cat([visible_k, hidden_k], dim=1).argsort(dim=1))
            pictures.append(from_units(raster, grid, self.encoder.patch_size))
        return torch.stack(pictures, dim=1)

    def _to_predict(self, patches: Tensor) -> Tensor:
        """The encoder's patches [B, U, T_1, P_1] as those that the decoder predicts, [B, U, T, P]."""
        return patches.reshape(*patches.shape[:2], self.tokens, self.patch_values)

    # -- what a training loop asks for -----------------------------------------------------------------------

    def stream_options(self) -> dict[str, Any]:
        """Arguments that the `Stream` must be given for its batches to fit."""
        height, width = self.img_size
        return {
            "views": self.views,
            "unit_size": self.encoder.unit_size,
            "image_size": height if height == width else (height, width),
            **({} if self.preprocessing is None else {"preprocessing": self.preprocessing}),
        }

    def init_weights(self) -> None:
        """Initialise all weights anew: of a network made on the meta device, say, after `to_empty`."""
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):  # whose bias a ViT leaves as torch makes it
                module.reset_parameters()
        init_backbone(self.backbone)
        self.decoder.apply(init_weights)
        for name, parameter in self.decoder.named_parameters():
            if name.endswith("mask_token"):
                nn.init.normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of position and token parameters."""
        special = {f"backbone.{name}" for name in undecayed(self.backbone)}
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name in special or name.endswith("mask_token")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute backbone and decoder in the backward pass instead of keeping their activations."""
        self.checkpoint_stages(None if enable else ())

    def checkpoint_stages(self, stages: Collection[int] | None) -> None:
        """Recompute stages of the backbone, as `encoders.checkpoint_stages` does, and what the decoder makes of them.

        Without `stages`, all stages and the decoder's blocks are recomputed.
        """
        checkpoint_stages(self.backbone, stages)
        self.decoder.grad_checkpointing = stages is None  # type: ignore[assignment]
        if (memory := getattr(self.decoder, "memory", None)) is not None:
            memory.grad_checkpointing = stages is None or bool(stages)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 patches [..., P] of mean 0 and variance 1, their means and deviations [..., 1], as in MAE."""
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = (patches.var(dim=-1, keepdim=True) + eps).sqrt()
    return (patches - mean) / deviation, mean, deviation
