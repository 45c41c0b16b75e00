"""DyViT: a hierarchical vision transformer with dynamic multi-window self-attention.

Four stages at strides 4, 8, 16, 32 (patch size times 1, 2, 4, 8). Attention stays inside mask units of 32 px
(8 patches) in stages 1 and 2, and inside a view from stage 3 on, so that one dense forward pass encodes several
views of an image at once and pre-training computes exactly what downstream use computes.

Legend: B images, U mask units, V encoded units, T tokens of a unit, N = V·T tokens, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.attention import HeadGroup
from coma.model.blocks import Block, Merge, PatchEmbed, Stage, init_weights
from coma.model.layout import Grid, SinCosPosition, take_units, to_map, to_units, unit_grid, unit_windows

__all__ = ["DyViT"]

Heads = Sequence[Sequence[tuple[int | None, int]]]
"""For each stage its head groups, (window tokens or None for global, heads)."""


class DyViT(nn.Module):
    """Hierarchical vision transformer whose tokens can be encoded in complementary views.

    Args:
        img_size: the usual input in pixels, one side or (height, width); any other whose sides are multiples of the
            unit is taken too.
        patch_size: pixels of a patch's side, the stride of stage 1.
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: "avg", "max", ... or "" for none, as timm's ClassifierHead has it.
        unit_size: pixels of a mask unit's side: `patch_size` times 8 (the default), 16, 32...; with three stages
            4 is allowed, for small images.
        dims: channels of the stages, of which there are four, or three.
        depths: blocks of each stage.
        head_dims: channels of a head in each stage.
        heads: head groups of each stage, (window in tokens or None for global, heads).
        mlp_ratio: hidden over outer width of the MLPs.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        window_units: on images of more units a side than this, as in detection, the global heads of stage 3 attend
            in windows of so many units a side, but for every fourth block and the last. None: nowhere. The
            weights are the same, and pre-training takes no notice.
        norm_layer: makes the norms, called with a number of channels, as `partial(nn.LayerNorm, eps=1e-6)` is.
        weight_init: "" for the initial weights of `init_weights`, "skip" for torch's own, which saves the time where
            others are loaded next.
        device: where the parameters are to be.
        dtype: precision of the parameters.

    Raises:
        UsageError: sizes that do not fit each other.
    """

    output_fmt = "NHWC"
    """Layout of what `forward_features` returns, for timm."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        unit_size: int | None = None,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (1, 2, 14, 3),
        head_dims: Sequence[int] = (32, 32, 64, 64),
        heads: Heads = (((16, 1), (64, 2)), ((4, 2), (16, 4)), ((4, 2), (None, 4)), ((None, 12),)),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        window_units: int | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        weight_init: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if window_units is not None and window_units < 1:
            raise UsageError(f"window_units={window_units}: a window has 1 unit a side or more, None is none")
        if weight_init not in ("", "skip"):
            raise UsageError(f"weight_init={weight_init!r}: it is '' for DyViT's own initial weights, or 'skip'")
        self.window_units = window_units
        self.pretrained_cfg: dict[str, Any] = {}  # timm's builder sets it
        self.patch_size = patch_size
        self.unit_size = unit_size or 8 * patch_size
        self.stage_dims = tuple(dims)
        self.stage_tokens = _stage_tokens(self.unit_size, patch_size, heads)
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.unit_grid(*self.img_size)  # refuses what does not fit

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.stage_dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**s, "module": f"stages.{s}"}
            for s, dim in enumerate(self.stage_dims)
        ]

        self.patch_embed = PatchEmbed(in_chans * patch_size**2, self.stage_tokens[0], dims[0])
        total = sum(depths)
        rates = (drop_path_rate * i / max(1, total - 1) for i in range(total))
        self.stages = nn.ModuleList()
        for s, dim in enumerate(self.stage_dims):
            groups = [HeadGroup(window, count) for window, count in heads[s]]
            self.stages.append(
                Stage(
                    merge=Merge(dims[s - 1], dim, norm_layer) if s else nn.Identity(),
                    position=SinCosPosition(dim, round(self.stage_tokens[s] ** 0.5)) if s == 2 else None,
                    blocks=[
                        Block(dim, head_dims[s], groups, mlp_ratio, next(rates), norm_layer) for _ in range(depths[s])
                    ],
                )
            )
        self.norm = norm_layer(self.num_features)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC"
        )
        self.head_hidden_size = self._pooled_features()
        if weight_init != "skip":
            self.init_weights()
        self.to(device=device, dtype=dtype)

    def init_weights(self) -> None:
        """Initialise all weights: Xavier-uniform matrices and zero biases, as in MAE, and zero gates."""
        self.apply(init_weights)
        nn.init.trunc_normal_(self.patch_embed.position, std=0.02)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)

    # -- encoding ---------------------------------------------------------------------------------

    def unit_grid(self, height: int, width: int) -> Grid:
        """Mask units down and across an image of this many pixels; UsageError if they do not fill it."""
        patches = self.unit_size // self.patch_size
        return unit_grid(height, width, self.unit_size, f"or the patch size (a unit is {patches} patches)")

    def unit_patches(self, images: Tensor) -> Tensor:
        """Cut images [B, 3, H, W] into [B, U, T, P], units in raster order and their patches in Morton order."""
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise UsageError(
                f"images of shape {list(images.shape)}: this model takes [images, {self.in_chans} channels, height,"
                " width]; timm.create_model's in_chans makes it take others"
            )
        self.unit_grid(*images.shape[-2:])
        return to_units(images, self.unit_size, self.patch_size)

    def encode(
        self, images: Tensor, units: Tensor | None = None, view_sizes: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode units in views that do not see each other.

        Args:
            images: [B, 3, H, W], normalised.
            units: [B, V] int64 indices of mask units, V <= U; None: all in raster order. Units that are not
                listed are not encoded.
            view_sizes: lengths of the views that lie side by side in `units`, their sum V; None: one view.

        Returns:
            The features of the four stages, [B, V·T_s, C_s] with units in the given order; T_s = 64, 16, 4, 1 for
            units of 8 patches, C_s = `stage_dims`. The last has gone through the final norm.
        """
        grid = self.unit_grid(*images.shape[-2:])
        patches = take_units(self.unit_patches(images), units)
        return self.encode_patches(patches, grid, units, view_sizes)

    def encode_patches(
        self, patches: Tensor, grid: Grid, units: Tensor | None = None, view_sizes: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode patches [B, V, T, P] that already lie in the order of `units`, as `encode` does.

        Gathering pixels, not features (views matter from stage 3 on only), costs nothing in the backward pass and
        gives every stage's features in the order of the views.
        """
        features = list(self._stages(patches, grid, units, view_sizes))
        return [*features[:-1], self.norm(features[-1])]

    def _stages(
        self,
        patches: Tensor,
        grid: Grid,
        units: Tensor | None = None,
        view_sizes: Sequence[int] | None = None,
        window_sizes: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        view_sizes = (patches.shape[1],) if view_sizes is None else tuple(view_sizes)
        if sum(view_sizes) != patches.shape[1]:
            raise ValueError(f"views of {view_sizes} units do not add up to the {patches.shape[1]} units given")
        x = patches
        for s, stage in enumerate(self.stages):
            embed = None if s else self.patch_embed
            x = stage(x, grid, units, view_sizes, window_sizes if s == 2 else None, embed)
            yield x

    def _whole(self, images: Tensor, grid: Grid) -> Iterator[Tensor]:
        """Features of each stage for whole images, units in raster order, windowed on large grids if asked for."""
        patches, side = self.unit_patches(images), self.window_units
        if side is None or max(grid) <= side:
            yield from self._stages(patches, grid)
            return
        order, sizes = unit_windows(grid, side, patches.device)
        back = order.argsort()
        units = order.expand(len(patches), -1)
        for x in self._stages(patches[:, order], grid, units, window_sizes=sizes):
            b, n, c = x.shape
            yield x.reshape(b, len(order), n // len(order), c)[:, back].reshape(b, n, c)

    # -- the interface timm's models share --------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] to a feature map [B, h, w, C] at stride 32 (8 patches), normed."""
        grid = self.unit_grid(*x.shape[-2:])
        *_, tokens = self._whole(x, grid)
        return to_map(self.norm(tokens), grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify a feature map [B, h, w, C]: logits [B, num_classes], or pooled features [B, C]."""
        out: Tensor = self.head(x, pre_logits=pre_logits)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [B, 3, H, W]: logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the feature maps of the stages, as timm's models do.

        Args:
            x: [B, 3, H, W].
            indices: the last n stages if int, all if None, else those listed.
            norm: put the last stage's features through the final norm.
            stop_early: stop after the last stage asked for, whose features [B, h, w, C] are then what is returned
                beside the list.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list alone, not (`forward_features(x)`, list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is NCHW or NHWC, not {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.stages), indices)
        grid = self.unit_grid(*x.shape[-2:])
        maps: list[Tensor] = []
        for s, tokens in enumerate(self._whole(x, grid)):
            is_last = s == len(self.stages) - 1
            if s in wanted:
                nhwc = to_map(self.norm(tokens) if norm and is_last else tokens, grid)
                maps.append(nhwc.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else nhwc)
            if s == last and stop_early:
                break
        if intermediates_only:
            return maps
        return to_map(self.norm(tokens) if is_last else tokens, grid), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one asked for, the norm and the classifier, as timm's models do."""
        wanted: list[int]
        wanted, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.stage_dims[last]
        if prune_norm or pruned:  # norm and classifier are made for the last stage
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0)
        return wanted

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Set the size in pixels that the model is said to take, as timm's models do; no weight depends on it.

        Raises:
            UsageError: the size is no multiple of the mask unit.
        """
        size = to_2tuple(img_size)
        self.unit_grid(*size)
        self.img_size = size
        self.pretrained_cfg["input_size"] = (self.in_chans, *size)
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}  # what newer timm saves for the Hub

    def get_classifier(self) -> nn.Module:
        """The last linear layer (or Identity)."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` outputs, 0 for none."""
        self.num_classes = num_classes
        self.head.in_features = self.num_features  # fewer after `prune_intermediate_layers`
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self._pooled_features()
        like = self.patch_embed.position
        self.head.to(like.device, like.dtype).train(self.training)

    def _pooled_features(self) -> int:
        return self.num_features * int(self.head.global_pool.feat_mult())  # "catavgmax" doubles them

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute all stages in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: positions, which are matrices in shape only."""
        return {"patch_embed.position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for layer-wise learning rates."""
        blocks: str | list[tuple[str, tuple[int, ...] | None]] = r"^stages\.(\d+)"
        if not coarse:
            blocks = [(r"^stages\.(\d+)\.merge", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": blocks}


def _stage_tokens(unit_size: int, patch_size: int, heads: Heads) -> tuple[int, ...]:
    """Tokens of a unit in each stage; UsageError if the unit, the patch and the windows do not fit each other."""
    side, least = unit_size // patch_size, 2 ** (len(heads) - 1)
    if unit_size % patch_size or side < least or side & (side - 1):
        raise UsageError(
            f"mask unit of {unit_size} pixels with a patch of {patch_size}: a unit's side is {least} patches"
            f" ({least * patch_size} pixels), or {2 * least}, {4 * least}, ..."
        )
    tokens = tuple((side >> s) ** 2 for s in range(len(heads)))
    for s, groups in enumerate(heads):
        for window, _ in groups:
            if window is not None and tokens[s] % window:
                raise UsageError(f"stage {s + 1}: a window of {window} tokens does not fit the {tokens[s]} of a unit")
    return tokens
