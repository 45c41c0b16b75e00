"""Changes to the method that are tried one at a time: what is predicted, what the encoder gives, which masks there are.

None of them is in the product unless it wins (docs/experiments.md). They are written for the small networks of
variants.py, whose mask unit is one token of the last stage.

Legend: B images, K views, U mask units, W hidden units of all views, R registers, P values of a patch, C channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.errors import UsageError
from coma.model.autoencoder import MaskedAutoencoder, normalise_patches
from coma.model.blocks import init_weights
from coma.model.coma import CoMA
from coma.model.decoder import Decoder, Memory
from coma.model.dyvit import DyViT
from coma.model.layout import Grid, take_units, to_map, to_units
from coma.model.mae import MAE
from coma.pipeline.views import partition_units

ORIENTATIONS = 9
"""Directions, from 0 to 180 degrees, that a histogram of gradients tells apart, as in MaskFeat."""
PROJECTED, TEMPERATURE = 64, 0.2
"""Channels of what is contrasted, and what its similarities are divided by."""
LOW_PASS = 0.5
"""Share of the frequencies, from zero to Nyquist's, that a low-frequency target keeps."""


@dataclass(frozen=True)
class Levers:
    """Changes to CoMA; MAE takes `target` and `block`. All at their defaults is the method as it is."""

    target: Literal["patch", "low-pass", "batch", "gradients"] = "patch"
    """What is predicted: pixels normalised within the patch, the same of an image without its high frequencies (PixMIM,
    arXiv 2303.02416), pixels normalised over the batch, or histograms of oriented gradients (MaskFeat, 2112.09133)."""
    consistency: float = 0.0
    """Weight of the variance among the predictions of one unit from several views (EMAE, arXiv 2302.14431)."""
    local: float = 0.0
    """Weight of decoders of their own on stages 1 and 2, and of a coarse target for the last stage: LocalMIM (arXiv
    2303.05251) with pixels."""
    contrast: float = 0.0
    """Weight of a loss by which the views of an image are told from those of the other images in the batch, by their
    mean tokens: SupCon's (arXiv 2004.11362), with views that share no pixel in place of crops."""
    fused: bool = False
    """Whether features and decoder take the fusion of all stages (MFF, arXiv 2308.00261)."""
    registers: int = 0
    """Number of learned tokens beside the patches of each view, from the last stage's entry on (Pixio, 2512.15715)."""
    pooled: Literal["patches", "registers"] = "patches"
    """Tokens whose mean are an image's features."""
    block: int = 1
    """Side, in mask units, of the squares that are seen or hidden together."""


class LeverDyViT(DyViT):
    """DyViT with registers in its last stage and a fusion of its stages, as `Levers` asks for."""

    def __init__(self, levers: Levers, **options: Any) -> None:
        super().__init__(num_classes=0, **options)
        self.levers = levers
        dim = self.stage_dims[-1]
        self.registers = nn.Parameter(torch.zeros(levers.registers, dim)) if levers.registers else None
        if self.registers is not None:
            nn.init.normal_(self.registers, std=0.02)
        self.fusion = Memory(self.stage_dims, self.stage_tokens, 1, dim, len(self.stage_dims)) if levers.fused else None
        if self.fusion is not None:
            self.fusion.apply(init_weights)

    def _stages(
        self,
        patches: Tensor,
        grid: Grid,
        units: Tensor | None = None,
        view_sizes: Sequence[int] | None = None,
        window_sizes: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """As DyViT's, but that the last stage's blocks see each view's registers; only `pooled` keeps them."""
        stages = super()._stages(patches, grid, units, view_sizes, window_sizes)
        if self.registers is None:
            yield from stages
            return
        for _ in self.stages[:-1]:
            x = next(stages)
            yield x
        sizes = (patches.shape[1],) if view_sizes is None else tuple(view_sizes)
        last, count = self.stages[-1], len(self.registers)
        x = last.position(last.merge(x), grid, units)  # [B, V, C]
        extra = self.registers.to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([t for view in torch.split(x, sizes, dim=1) for t in (extra, view)], dim=1)
        for block in last.blocks:
            x = block(x, [size + count for size in sizes])
        views = torch.split(x, [size + count for size in sizes], dim=1)
        if view_sizes is None and self.levers.pooled == "registers":
            # What is pooled: as many tokens as the map has, all of them the registers' mean.
            yield views[0][:, :count].mean(dim=1, keepdim=True).expand(-1, sizes[0], -1)
            return
        yield torch.cat([view[:, count:] for view in views], dim=1)

    def encode_patches(
        self, patches: Tensor, grid: Grid, units: Tensor | None = None, view_sizes: Sequence[int] | None = None
    ) -> list[Tensor]:
        """As DyViT's; with a fusion, that is the last stage's features."""
        features = super().encode_patches(patches, grid, units, view_sizes)
        return features if self.fusion is None else [*features[:-1], self.fusion(features)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] to a map [B, h, w, C]."""
        if self.fusion is None:
            return super().forward_features(x)
        grid = self.unit_grid(*x.shape[-2:])
        return to_map(self.encode_patches(self.unit_patches(x), grid)[-1], grid)


class LeverCoMA(CoMA):
    """CoMA with the changes that `Levers` asks for."""

    def __init__(self, backbone: LeverDyViT, levers: Levers, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.levers = levers
        dim = self.decoder.head.in_features  # type: ignore[union-attr]
        _fit_head(self, levers.target)
        stages = zip(backbone.stage_dims[:-1], backbone.stage_tokens[:-1], strict=True)
        self.local_decoders = nn.ModuleList(
            Decoder((channels,), (tokens,), 1, self.patch_values, dim, 1, 1) for channels, tokens in stages
        )
        self.projector = _projector(backbone.stage_dims[-1]) if levers.contrast else None
        self.coarse = nn.Linear(self.patch_values, self.patch_values)
        if not levers.local:
            self.local_decoders, self.coarse = nn.ModuleList(), nn.Identity()  # type: ignore[assignment]
        self.local_decoders.apply(init_weights)
        self.coarse.apply(init_weights)

    def forward(self, images: Tensor, units: Tensor) -> Tensor:
        """Return the loss of images [B, 3, H, W] whose units lie in the order of `units` [B, U]."""
        levers = self.levers
        patches, grid = self.patchify(images, units)
        visible, hidden = self.split_units(units)
        features = self.encode(patches, grid, visible)
        predicted = self.decoder(features, grid, visible, hidden).float()  # [B, W, P]
        hidden_units = torch.cat(hidden, dim=1)  # [B, W]
        targets = take_units(_targets(self, levers.target, images, patches), hidden_units).flatten(1, 2)  # [B, W, P]
        loss = (predicted - targets).square().mean()
        if levers.consistency:
            order = hidden_units.argsort(dim=1, stable=True)[..., None].expand_as(predicted)
            of_unit = predicted.gather(1, order).unflatten(1, (self.units, -1))  # [B, U, K - 1, P]
            loss = loss + levers.consistency * of_unit.var(dim=2, unbiased=False).mean()
        if self.projector is not None:
            sizes = [view.shape[1] for view in visible]
            means = [view.mean(dim=1) for view in torch.split(features[-1], sizes, dim=1)]
            loss = loss + levers.contrast * _contrast(self.projector(torch.stack(means, dim=1)).float())
        if levers.local:
            for s, decoder in enumerate(self.local_decoders):
                fine = decoder(features[s : s + 1], grid, visible, hidden).float()
                loss = loss + levers.local * (fine - targets).square().mean()
            wide = take_units(self._surroundings(images), hidden_units).flatten(1, 2)
            loss = loss + levers.local * (self.coarse(predicted) - wide).square().mean()
        return loss

    def no_weight_decay(self) -> set[str]:
        """Names of position and token parameters, registers among them."""
        names = {"backbone.registers"} if self.levers.registers else set()
        return super().no_weight_decay() | names

    def _surroundings(self, images: Tensor) -> Tensor:
        """The square of twice a unit's side around each unit, at half the resolution, [B, U, 1, P], normalised."""
        side = self.encoder.unit_size
        halved = F.avg_pool2d(F.pad(images.float(), [side // 2] * 4, mode="reflect"), 2)
        around = F.unfold(halved, side, stride=side // 2).transpose(1, 2)  # [B, U, P]
        return normalise_patches(around[:, :, None])[0]


class LeverMAE(MAE):
    """MAE that sees another share of the units than a quarter, or predicts another target."""

    def __init__(self, visible: float, levers: Levers, *backbone: Any, **options: Any) -> None:
        super().__init__(*backbone, **options)
        if levers != Levers(target=levers.target, block=levers.block):
            raise UsageError("of the levers, MAE knows target and block alone; the others are changes to CoMA")
        self.visible_units, self.target = round(visible * self.units), levers.target
        _fit_head(self, levers.target)

    def split_units(self, units: Tensor, predict_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """See the first of `units` [B, U] and predict the rest."""
        return [units[:, : self.visible_units]], [units[:, self.visible_units :]]

    def forward(self, images: Tensor, units: Tensor) -> Tensor:
        """Return the loss of images [B, 3, H, W] whose units lie in the order of `units` [B, U]."""
        patches, grid = self.patchify(images, units)
        visible, hidden = self.split_units(units)
        predicted = self.decoder(self.encode(patches, grid, visible), grid, visible, hidden).float()  # [B, W, P]
        targets = take_units(_targets(self, self.target, images, patches), hidden[0]).flatten(1, 2)  # [B, W, P]
        return (predicted - targets).square().mean()


def _targets(model: MaskedAutoencoder, target: str, images: Tensor, patches: Tensor) -> Tensor:
    """Return what is predicted of each unit, [B, U, 1, P] float32."""
    if target == "batch":
        pixels = model._to_predict(patches).float()
        mean, deviation = pixels.mean(dim=(0, 1, 2)), pixels.std(dim=(0, 1, 2))
        return (pixels - mean) / (deviation + 1e-6)
    if target == "gradients":
        return _gradient_histograms(images.float(), model.encoder.unit_size)
    if target == "low-pass":
        patches = to_units(_low_pass(images.float()), model.encoder.unit_size, model.encoder.patch_size)
    return normalise_patches(model._to_predict(patches))[0]


def _projector(channels: int) -> nn.Sequential:
    projector = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, PROJECTED))
    projector.apply(init_weights)
    return projector


def _contrast(views: Tensor) -> Tensor:
    """Return SupCon's loss of views [B, K, C]: those of an image belong together."""
    images, count = views.shape[:2]
    z = F.normalize(views.flatten(0, 1), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    log_share = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    image = torch.arange(images).repeat_interleave(count)
    positive = (image[:, None] == image) & ~itself
    return -log_share[positive].mean()


def _fit_head(model: MaskedAutoencoder, target: str) -> None:
    """Give the decoder as many outputs as the target has values."""
    if target == "gradients":
        head = nn.Linear(model.decoder.head.in_features, 3 * ORIENTATIONS)  # type: ignore[union-attr,arg-type]
        init_weights(head)
        model.decoder.head = head


def permuted_units(levers: Levers, samples: Tensor, epochs: Tensor, *, seed: int, units: int) -> Tensor:
    """Permute mask units [B, U] as the stream does; with a `block`, squares of units stay together."""
    if levers.block == 1:
        return partition_units(samples, epochs, seed=seed, units=units)
    side, block = round(units**0.5), levers.block
    blocks = partition_units(samples, epochs, seed=seed, units=units // block**2)  # [B, U / block²]
    raster = torch.arange(units).reshape(side // block, block, side // block, block)
    members = raster.transpose(1, 2).reshape(-1, block**2)  # units of each block
    return members[blocks].flatten(1)


def _low_pass(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] without the frequencies above `LOW_PASS` of Nyquist's."""
    height, width = images.shape[-2:]
    down = torch.fft.fftfreq(height).abs() * 2
    across = torch.fft.rfftfreq(width) * 2
    kept = (down[:, None] ** 2 + across**2) <= LOW_PASS**2
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(height, width))


def _gradient_histograms(images: Tensor, side: int) -> Tensor:
    """Histograms of oriented gradients of images [B, 3, H, W] in cells of `side` pixels, [B, U, 1, 3 x 9].

    The nine values of a cell's channel have a length of 3, so that they vary about as much as normalised pixels.
    """
    padded = F.pad(images, [1] * 4, mode="reflect")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    direction = (torch.atan2(down, across) / torch.pi * ORIENTATIONS).floor().long() % ORIENTATIONS
    strength = torch.hypot(across, down)[..., None] * F.one_hot(direction, ORIENTATIONS)  # [B, 3, H, W, 9]
    cells = F.avg_pool2d(strength.movedim(-1, 2).flatten(1, 2), side)  # [B, 27, h, w]
    histograms = F.normalize(cells.unflatten(1, (3, ORIENTATIONS)), dim=2) * ORIENTATIONS**0.5
    return histograms.flatten(1, 2).flatten(2).transpose(1, 2)[:, :, None]
