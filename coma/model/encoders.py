"""The interface of a backbone for pre-training on mask units, and timm's ViT under it.

DyViT encodes units itself; `ViTEncoder` gives a plain vision transformer the same interface, so that masking
and backbone can be combined freely.

Legend: B images, U mask units, V encoded units, T patches of a unit, P values of a patch, C channels.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from coma.errors import DataError, UsageError, did_you_mean
from coma.model.blocks import init_weights, recomputed
from coma.model.dyvit import DyViT
from coma.model.layout import Grid, SinCosPosition, from_units, to_units, unit_grid


class Encoder(Protocol):
    """A backbone that encodes mask units in views that do not see each other; `DyViT` explains each member."""

    unit_size: int
    patch_size: int
    in_chans: int
    stage_dims: tuple[int, ...]
    """Channels of each stage."""
    stage_tokens: tuple[int, ...]
    """Tokens of a unit in each stage."""

    def unit_grid(self, height: int, width: int) -> Grid:
        """Mask units down and across an image of this many pixels."""

    def unit_patches(self, images: Tensor) -> Tensor:
        """Cut images [B, 3, H, W] into patches [B, U, T, P]."""

    def encode_patches(
        self, patches: Tensor, grid: Grid, units: Tensor | None = None, view_sizes: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode patches [B, V, T, P] of `units` [B, V] to the features of each stage s, [B, V·T_s, C_s]."""


def predicted_patches(encoder: Encoder) -> tuple[int, int]:
    """Return how many patches of a unit a decoder predicts, and how many values a patch has.

    They are those of stage 3 (16 px for patches of 4), or of the only stage.
    """
    tokens = encoder.stage_tokens[min(2, len(encoder.stage_tokens) - 1)]
    return tokens, encoder.unit_size**2 * encoder.in_chans // tokens


def build_backbone(
    name: str, img_size: int | tuple[int, int], args: Mapping[str, Any] | None = None, **kwargs: Any
) -> DyViT | VisionTransformer:
    """Make a DyViT or a ViT by its timm name, without classifier, ready for `encoder_of`.

    A ViT gets MAE's fixed sine-cosine positions (as a buffer) and no class token: its features are pooled by
    averaging, and every parameter is used inside the module that owns it.

    Args:
        name: timm's name of it.
        img_size: side of the images in pixels, or (height, width).
        args: for a ViT that is to take the weights of others: timm's arguments that its class token, registers and
            norms follow from (`vit_args`); its positions are learned ones then.
        kwargs: further arguments of the model.

    Raises:
        UsageError: there is no such model; the closest names are given.
    """
    if args is not None:
        own: VisionTransformer = timm.create_model(
            name, num_classes=0, img_size=img_size, global_pool="avg", **{**args, **kwargs}
        )
        return own
    check_model_name(name)
    if not name.startswith("vit_"):
        model: DyViT = timm.create_model(name, num_classes=0, img_size=img_size, **kwargs)
        return model
    pooled = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    vit: VisionTransformer = timm.create_model(name, num_classes=0, img_size=img_size, **pooled, **kwargs)
    if vit.num_prefix_tokens or vit.pos_embed is None:
        raise UsageError(f"{name!r} has tokens that are no patches: only plain ViTs can be pre-trained")
    del vit.pos_embed
    init_backbone(vit)
    return vit


def init_backbone(backbone: nn.Module) -> None:
    """Initialise all weights of a backbone of `build_backbone`, and a ViT's fixed positions."""
    if not isinstance(backbone, VisionTransformer):
        backbone.init_weights()  # type: ignore[operator]
        return
    backbone.apply(init_weights)
    proj = backbone.patch_embed.proj.weight
    nn.init.xavier_uniform_(proj.view(proj.shape[0], -1))
    if has_own_positions(backbone):
        for parameter in (backbone.pos_embed, backbone.cls_token, backbone.reg_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        return
    _fix_positions(backbone)


def _fix_positions(vit: VisionTransformer) -> None:
    """Give a ViT MAE's sine-cosine positions for its grid, as a buffer."""
    table = SinCosPosition(vit.embed_dim, side=1).table(vit.patch_embed.grid_size, vit.patch_embed.proj.weight.device)
    vit.register_buffer("pos_embed", table.flatten(0, 1)[None].clone(), persistent=False)


def set_image_size(backbone: DyViT | VisionTransformer, side: int) -> None:
    """Let a backbone take images of so many pixels a side: learned positions are resampled, as timm does.

    Raises:
        UsageError: the side is no multiple of the patch, or of a DyViT's mask unit.
    """
    if isinstance(backbone, DyViT):
        backbone.set_input_size(side)
        return
    if side % (patch := backbone.patch_embed.patch_size[0]):
        raise UsageError(f"image size {side} is no multiple of the ViT's patch of {patch} pixels")
    fixed = not has_own_positions(backbone)
    if fixed:
        del backbone.pos_embed
        backbone.pos_embed = None
    backbone.set_input_size(img_size=side)
    if fixed:
        del backbone.pos_embed
        _fix_positions(backbone)


def give_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights under timm's names into a backbone of `build_backbone`; a classifier's are left out.

    Args:
        backbone: what to load them into; its own classifier, if it has one, stays as it is.
        weights: tensors by name.
        where: the file that they are from, for the error.

    Raises:
        DataError: the weights are another network's.
    """
    classifier = f"{backbone.pretrained_cfg['classifier']}."  # type: ignore[index]
    fixed = isinstance(backbone, VisionTransformer) and not has_own_positions(backbone)  # they follow from the size
    own = {name: value for name, value in backbone.state_dict().items() if name.startswith(classifier)}
    taken = {
        name: value
        for name, value in weights.items()
        if not name.startswith(classifier) and not (fixed and name == "pos_embed")
    }
    try:
        backbone.load_state_dict(own | taken)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the weights in {where} do not fit this backbone ({reason})") from None


def has_own_positions(backbone: nn.Module) -> bool:
    """Whether a ViT has positions of its own, learned ones or none, in place of the fixed ones of `build_backbone`."""
    position = getattr(backbone, "pos_embed", False)
    return position is None or isinstance(position, nn.Parameter)


def undecayed(backbone: nn.Module) -> set[str]:
    """Return the names of a backbone's positions and tokens, which are no matrices and have no weight decay."""
    names: set[str] = backbone.no_weight_decay()  # type: ignore[operator]
    return names | {"reg_token"}  # which older versions of timm leave out


def checkpoint_stages(backbone: nn.Module, stages: Collection[int] | None) -> None:
    """Let a training step recompute the activations of some stages in its backward pass, and keep the others'.

    Args:
        backbone: a DyViT, or a ViT, which has one stage.
        stages: numbers of the stages, from 1; None: all.

    Raises:
        UsageError: the backbone has no such stage.
    """
    parts: Sequence[Any] = list(backbone.stages) if isinstance(backbone, DyViT) else [backbone]
    count = len(parts)
    if stages and max(stages) > count:
        has = "one stage: use 1 or all" if count == 1 else f"{count} stages: use some of 1 to {count}, or all"
        raise UsageError(f"--grad-checkpointing names stage {max(stages)}, and this backbone has {has}")
    for number, part in enumerate(parts, start=1):
        part.grad_checkpointing = stages is None or number in stages


def model_names() -> list[str]:
    """Names of the backbones that can be pre-trained."""
    names: list[str] = timm.list_models("dyvit_*") + timm.list_models("vit_*_patch*_[0-9]*")
    return [name for name in names if "reg" not in name and "clip" not in name]


def check_model_name(name: str) -> None:
    """Raise UsageError, which gives the closest names, for one that is none of `model_names`.

    Of a part of a name those of 16-pixel patches and 224-pixel images come first: vit_base_patch16_224 for "vit_base".
    """
    names = model_names()
    if name in names:
        return
    typed = re.sub(r"[^a-z0-9]+", "_", name.lower().partition(".")[0])  # without the name of timm's weights
    plain = [each for each in names if re.fullmatch(r"dyvit_\w+|vit_[a-z]+_patch\d+_\d+", each)]
    longer = sorted((each for each in plain if each.startswith(typed)), key=lambda each: ("16_224" not in each, each))
    hint = did_you_mean(typed, plain, most=3) or "choose dyvit_base, vit_base_patch16_224, ..."
    if longer:
        hint = f"did you mean {' or '.join(map(repr, longer[:3]))}?"
    raise UsageError(f"no model named {name!r} can be pre-trained: {hint}")


def encoder_of(backbone: nn.Module, unit_size: int | None = None) -> Encoder:
    """Return the backbone as an `Encoder`; `unit_size` in pixels for a ViT (a DyViT has its own)."""
    if isinstance(backbone, DyViT):
        if unit_size not in (None, backbone.unit_size):
            raise UsageError(f"mask unit of {unit_size} pixels, but the DyViT was built for {backbone.unit_size}")
        return backbone
    if isinstance(backbone, VisionTransformer):
        return ViTEncoder(backbone, unit_size or 2 * backbone.patch_embed.patch_size[0])
    raise UsageError(f"a {type(backbone).__name__} cannot be pre-trained: the backbone is a DyViT or a timm ViT")


class ViTEncoder:
    """timm's ViT as an `Encoder`: its blocks are given the patches of each view alone.

    It owns no parameters and calls the ViT's own modules, so the ViT is what is trained and saved.
    """

    def __init__(self, vit: VisionTransformer, unit_size: int) -> None:
        self.vit = vit
        self.patch_size: int = vit.patch_embed.patch_size[0]
        side = unit_size // self.patch_size
        if unit_size % self.patch_size or side < 1 or side & (side - 1):
            raise UsageError(
                f"mask unit of {unit_size} pixels with a patch of {self.patch_size}:"
                " a unit's side is 1, 2, 4, ... patches"
            )
        self.unit_size = unit_size
        self.in_chans: int = vit.patch_embed.proj.in_channels
        self.stage_dims: tuple[int, ...] = (vit.embed_dim,)
        self.stage_tokens: tuple[int, ...] = (side**2,)
        self.position: SinCosPosition | LearnedPosition
        self.position = LearnedPosition(vit, side) if has_own_positions(vit) else SinCosPosition(vit.embed_dim, side)

    def unit_grid(self, height: int, width: int) -> Grid:
        """Mask units down and across an image of this many pixels; UsageError if they do not fill it."""
        return unit_grid(height, width, self.unit_size)

    def unit_patches(self, images: Tensor) -> Tensor:
        """Cut images [B, 3, H, W] into [B, U, T, P], units in raster order."""
        self.unit_grid(*images.shape[-2:])
        return to_units(images, self.unit_size, self.patch_size)

    def encode_patches(
        self, patches: Tensor, grid: Grid, units: Tensor | None = None, view_sizes: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode patches [B, V, T, P] as a list of one feature tensor [B, V·T, C], normed; see `DyViT.encode`."""
        b, v, t, _ = patches.shape
        # The patches in a row make an image for timm's convolutional embedding.
        strip = from_units(patches.reshape(b, v * t, 1, -1), (1, v * t), self.patch_size)  # [B, 3, p, V·T·p]
        embed = self.vit.patch_embed
        x = embed.proj(strip.to(embed.proj.weight.dtype)).flatten(2).transpose(1, 2)  # [B, V·T, C]
        x = self.vit.norm_pre(self.position(embed.norm(x), grid, units))
        prefix = self._prefix()
        first = 0 if prefix is None else prefix.shape[1]
        runs = [(size * t, len(list(same))) for size, same in groupby(view_sizes or (v,))]
        parts = []
        for part, (tokens, _) in zip(torch.split(x, [n * count for n, count in runs], 1), runs, strict=True):
            out = part.reshape(-1, tokens, x.shape[-1])
            if prefix is not None:  # each view has its own class token
                out = torch.cat([prefix.to(out.dtype).expand(len(out), -1, -1), out], dim=1)
            for block in self.vit.blocks:
                out = recomputed(block, out) if self.vit.grad_checkpointing and self.vit.training else block(out)
            parts.append(out[:, first:].reshape(b, -1, x.shape[-1]))
        norm = self.vit.norm if isinstance(self.vit.fc_norm, nn.Identity) else self.vit.fc_norm
        return [norm(torch.cat(parts, dim=1))]

    def _prefix(self) -> Tensor | None:
        """Return the class token and registers, as they enter the first block: [1, n, C]; None if there are none."""
        vit = self.vit
        tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if not tokens:
            return None
        prefix = torch.cat(tokens, dim=1)
        if vit.pos_embed is not None and not vit.no_embed_class:
            prefix = prefix + vit.pos_embed[:, : prefix.shape[1]]
        entering: Tensor = vit.norm_pre(prefix)
        return entering


class LearnedPosition:
    """A ViT's own positions, resampled for grids of another size than those that it holds, as timm does."""

    def __init__(self, vit: VisionTransformer, side: int) -> None:
        self.vit, self.side = vit, side

    def __call__(self, x: Tensor, grid: Grid, units: Tensor | None = None) -> Tensor:
        """Add positions to x [B, V·side², C] of `units` [B, V] (None: all, in raster order)."""
        learned, size = self.vit.pos_embed, (grid[0] * self.side, grid[1] * self.side)
        if learned is None:
            return x
        patches = learned[:, 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens :]
        held = tuple(self.vit.patch_embed.grid_size)
        if size != held:
            patches = resample_abs_pos_embed(patches, new_size=size, old_size=held, num_prefix_tokens=0)
        raster = patches.reshape(*size, -1).permute(2, 0, 1)[None]  # [1, C, rows, columns]
        table = to_units(raster, self.side, 1)[0].to(x.dtype)  # [U, side², C]
        positions = table[None] if units is None else table[units]
        return x + positions.flatten(1, 2)
