"""Pictures of what a DyViT computes: its features as colours, the windows its heads prefer, and its attention.

Hooks on the modules that were trained take the maps; the network itself has no code for them.

Legend: B images, N tokens, C channels, G head groups, T tokens of a unit, h x w the map of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from coma.errors import DivergedError, UsageError
from coma.model.attention import MultiWindowAttention
from coma.model.dyvit import DyViT
from coma.model.layout import Grid, to_map
from coma.pictures.columns import TILE_PX, Column, check_picture_name, enlarge, lay_out, save_picture
from coma.pictures.display import RGB, Display, Pixels
from coma.pictures.images import images_to_show
from coma.runs.names import LOOK_NAME
from coma.runs.read import load_autoencoder, naming_the_weights, run_of

_NARROW, _EVEN, _WIDE = (33, 102, 172), (247, 247, 247), (202, 90, 22)  # of a gate: blue, white, orange
_MARK = (255, 0, 80)


@dataclass(frozen=True)
class Gate:
    """How much each head group of a block counts: its weight α, mean over images and tokens; 1 at initialisation."""

    stage: int
    block: int
    windows: tuple[int | None, ...]
    """Tokens of each group's window; None: the whole view."""
    weights: tuple[float, ...]
    """Mean weight of each group; together they add up to the number of groups."""


@dataclass(frozen=True, eq=False)
class Sight:
    """Maps of a batch, stage by stage, and the gates of the blocks from the first to the last."""

    features: list[Tensor]
    """Feature map [B, h, w, C] of each stage."""
    preference: list[Tensor | None]
    """For each stage with a gate, [B, h, w] from -1 (narrowest window alone) to 1 (widest), mean over its blocks."""
    attended: Tensor
    """Attention [B, h, w] of the middle token in the last block of stage 3; it sums to 1."""
    gates: list[Gate]


@torch.no_grad()
def look(backbone: DyViT, images: Tensor) -> Sight:
    """Run images [B, 3, H, W] through the backbone in evaluation mode and keep what its blocks do.

    Raises:
        UsageError: an image size that does not fit.
        DivergedError: features are not finite.
    """
    grid = backbone.unit_grid(*images.shape[-2:])
    alphas: dict[tuple[int, int], Tensor] = {}
    attended: list[Tensor] = []
    hooks = []
    third = min(2, len(backbone.stages) - 1)  # the finest stage with global heads
    for s, stage in enumerate(backbone.stages):
        for i, block in enumerate(stage.blocks):  # type: ignore[arg-type]
            attention: MultiWindowAttention = block.attn
            if attention.gate is not None:

                def keep(_: nn.Module, __: object, logits: Tensor, at: tuple[int, int] = (s, i)) -> None:
                    alphas[at] = logits.shape[-1] * logits.float().softmax(dim=-1)

                hooks.append(attention.gate.register_forward_hook(keep))
            if s == third and i == len(stage.blocks) - 1:  # type: ignore[arg-type]
                hooks.append(
                    attention.register_forward_pre_hook(
                        lambda module, inputs: attended.append(_attention_of_the_middle(module, inputs[0], grid))
                    )
                )
    was_training = backbone.training
    backbone.eval()
    try:
        maps = backbone.forward_intermediates(images, norm=True, output_fmt="NHWC", intermediates_only=True)
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    preference: list[Tensor | None] = []
    for s in range(len(backbone.stages)):
        preferences = [_preference(alpha) for (stage, _), alpha in alphas.items() if stage == s]
        preference.append(
            to_map(torch.stack(preferences).mean(dim=0)[..., None], grid)[..., 0] if preferences else None
        )
    gates = [
        Gate(s + 1, i + 1, _windows(backbone, s, i), tuple(alpha.mean(dim=(0, 1)).tolist()))
        for (s, i), alpha in alphas.items()
    ]
    assert isinstance(maps, list)
    if not all(bool(m.isfinite().all()) for m in [*maps, attended[0]]):
        raise DivergedError("the features of these images are not finite")
    return Sight([m.float() for m in maps], preference, attended[0], gates)


def principal_colours(features: Tensor) -> Tensor:
    """Show the three strongest principal components as red, green and blue: [B, h, w, C] to [B, h, w, 3] in 0...1.

    Taken over the tokens of all images, so that like colours mean like features in all of them; each component is
    stretched between its 2nd and 98th percentile. Signs are fixed: the channel of greatest weight is positive.
    """
    b, h, w, c = features.shape
    rows = features.reshape(-1, c)
    rows = rows - rows.mean(dim=0)
    _, _, axes = torch.linalg.svd(rows, full_matrices=False)
    axes = axes[:3]
    strongest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    scores = rows @ (axes * strongest.sign()).T  # [N, 3 or less]
    low, high = (torch.quantile(scores, q, dim=0) for q in (0.02, 0.98))
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return nn.functional.pad(colours, (0, 3 - colours.shape[1])).reshape(b, h, w, 3)


def columns_of(backbone: DyViT, images: Tensor, sight: Sight, display: Display = RGB) -> list[Column]:
    """Return the picture's columns: the original, features of the last stages, window preferences, attention."""
    scale = max(1, -(-TILE_PX // max(images.shape[-2:])))
    original = enlarge(display.shown(images), scale)
    height, width = original.shape[1:3]
    columns = [Column("original", original)]
    for s in range(max(0, len(sight.features) - 3), len(sight.features)):
        colours = (principal_colours(sight.features[s]).cpu().numpy() * 255).astype(np.uint8)
        columns.append(Column(f"features {s + 1}", _blown_up(colours, height, width)))
    for s, preference in enumerate(sight.preference):
        if preference is not None:
            # The colours are stretched to the strongest preference, which the title gives.
            title = f"{_names(backbone, s)} ±{preference.abs().max():.2f}"
            columns.append(Column(title, _blown_up(_diverging(preference), height, width)))
    columns.append(Column("attention", _spotlight(original, sight.attended)))
    return columns


def look_at(
    run_or_checkpoint: Path | str,
    sources: Sequence[Path | str] = (),
    *,
    out: Path | str | None = None,
    count: int = 6,
    image_size: int | None = None,
    device: str = "cpu",
) -> tuple[Path, list[Gate]]:
    """Draw what a run's backbone sees in images, into a PNG, RUN/look.png by default.

    Args:
        run_or_checkpoint, sources, out, count, device: as `coma.pictures.reconstruct.reconstruct_run` has them.
        image_size: pixels of a side; None: that of the training. Larger ones show finer maps.

    Returns:
        the picture's path, and the gates.

    Raises:
        DataError: no such run, checkpoint, data or image.
        DivergedError: weights or features are not finite.
        UsageError: the backbone is no DyViT, `out` is no name of a picture, or a size does not fit.
    """
    run, checkpoint = run_of(run_or_checkpoint)
    out = check_picture_name(run / LOOK_NAME if out is None else out)
    autoencoder = load_autoencoder(checkpoint, device)
    backbone = autoencoder.backbone
    if not isinstance(backbone, DyViT):
        raise UsageError(f"{run} has trained a {type(backbone).__name__}: only a DyViT has windows to look at")
    images, _, display = images_to_show(run, autoencoder, sources, count=count, image_size=image_size, device=device)
    with naming_the_weights(checkpoint):
        sight = look(backbone, images)
    save_picture(lay_out(columns_of(backbone, images, sight, display)), out)
    return out, sight.gates


def _attention_of_the_middle(attention: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Attention of the middle token, softmax(q kᵀ / √D), mean over the widest group's heads: [B, N, C] to [B, h, w]."""
    assert isinstance(attention, MultiWindowAttention)
    g, d = len(attention.groups) - 1, attention.head_dim
    keys = torch.split(attention.kv(x), d, dim=-1)[2 * g]  # [B, N, D]
    positions = torch.arange(x.shape[1], device=x.device)
    raster = to_map(positions[None, :, None], grid)[0, :, :, 0]
    middle = int(raster[raster.shape[0] // 2, raster.shape[1] // 2])
    query = attention.q[g](x[:, middle]).reshape(len(x), -1, d)  # [B, H, D]
    weights = (query @ keys.transpose(1, 2) * d**-0.5).float().softmax(dim=-1).mean(dim=1)
    return to_map(weights[..., None], grid)[..., 0]


def _preference(alpha: Tensor) -> Tensor:
    """Turn weights [B, N, G] that add up to G, narrowest group first, into [B, N] from -1 to 1; 0 if all are equal."""
    groups = alpha.shape[-1]
    places = torch.linspace(-1, 1, groups, device=alpha.device)
    return (alpha / groups) @ places


def _windows(backbone: DyViT, stage: int, block: int) -> tuple[int | None, ...]:
    attention: MultiWindowAttention = backbone.stages[stage].blocks[block].attn  # type: ignore[index,union-attr]
    return tuple(group.window for group in attention.groups)


def _names(backbone: DyViT, stage: int) -> str:
    names = ["all" if window is None else str(window) for window in _windows(backbone, stage, 0)]
    return f"stage {stage + 1}: {' or '.join(names)}"


def _blown_up(tiles: Pixels, height: int, width: int) -> Pixels:
    """Enlarge maps [B, h, w, 3] to tiles without smoothing: a square is a token."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(t).resize(size, Image.Resampling.NEAREST)) for t in tiles])


def _diverging(preference: Tensor) -> Pixels:
    """Colour -1 blue, 0 white and 1 orange, stretched so that the strongest preference is a full colour."""
    x = preference.cpu().numpy()[..., None]
    x = x / max(float(np.abs(x).max()), 1e-6)
    narrow, even, wide = (np.array(colour, dtype=np.float64) for colour in (_NARROW, _EVEN, _WIDE))
    return np.where(x < 0, even + (narrow - even) * -x, even + (wide - even) * x).astype(np.uint8)


def _spotlight(original: Pixels, attended: Tensor) -> Pixels:
    """Darken what is not attended to, and frame the token in the middle, whose attention it is."""
    height, width = original.shape[1:3]
    h, w = attended.shape[1:]
    maps = (attended / attended.amax(dim=(1, 2), keepdim=True)).sqrt().cpu().numpy()
    light = np.stack(
        [
            np.asarray(Image.fromarray(m.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
            for m in maps
        ]
    )
    tiles = (original * (0.15 + 0.85 * light[..., None])).astype(np.uint8)
    top, left = h // 2 * height // h, w // 2 * width // w
    bottom, right = (h // 2 + 1) * height // h - 1, (w // 2 + 1) * width // w - 1
    tiles[:, [top, bottom], left : right + 1] = _MARK
    tiles[:, top : bottom + 1, [left, right]] = _MARK
    return tiles
