"""Parts of DyViT: patch embedding, merging, transformer block, stage, and their initial weights.

None of them imports timm, whose import ends with that of `coma.model.dyvit`, which needs this module.

Legend: B images, V mask units, T tokens of a unit, N = V·T tokens, P values of a patch, C channels.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coma.model.attention import HeadGroup, MultiWindowAttention
from coma.model.layout import Grid, SinCosPosition

BLOCKS_PER_UNIT = 2
"""Blocks of a stage that are recomputed together: of each unit the input is kept."""


def recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a function, keeping none of its activations: the backward pass calls it again (activation checkpointing).

    Random numbers are drawn the second time as they were the first.
    """
    out: Tensor = checkpoint(function, *args, use_reentrant=False)
    return out


class Mlp(nn.Sequential):
    """Linear, GELU, Linear: [..., C] to [..., C]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(OrderedDict(fc1=nn.Linear(dim, hidden_dim), act=nn.GELU(), fc2=nn.Linear(hidden_dim, dim)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch of an image with this probability."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop or scale the branch x [B, ...] of each image."""
        if not self.training:
            return x
        keep = 1 - self.rate
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep)


class PatchEmbed(nn.Module):
    """Linear embedding of patches plus a learned position inside the unit: [B, V, T, P] to [B, V·T, C]."""

    def __init__(self, patch_values: int, unit_tokens: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_values, dim)
        self.position = nn.Parameter(torch.zeros(unit_tokens, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches [B, V, T, P] as tokens [B, V·T, C], in the dtype of the weights."""
        x: Tensor = self.proj(patches.to(self.position.dtype))  # a quantised layer's weight tells no dtype
        return (x + self.position.to(x.dtype)).flatten(1, 2)


class Merge(nn.Module):
    """Patch merging: 2x2 tokens, consecutive in Morton order, become one of twice the channels."""

    def __init__(self, dim: int, out_dim: int, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm_layer(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge tokens [B, N, C] to [B, N/4, 2C]."""
        b, n, c = x.shape
        merged: Tensor = self.reduction(self.norm(x.reshape(b, n // 4, 4 * c)))
        return merged


class Block(nn.Module):
    """Pre-norm transformer block: DM-MSA, then an MLP."""

    def __init__(
        self,
        dim: int,
        head_dim: int,
        groups: Sequence[HeadGroup],
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = MultiWindowAttention(dim, head_dim, groups)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, view_tokens: Sequence[int]) -> Tensor:
        """Transform tokens x [B, N, C] of views with `view_tokens` tokens each."""
        x = x + self.drop_path(self.attn(self.norm1(x), view_tokens))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """One resolution of DyViT: merging (but in the first stage), positions (in the third), blocks."""

    def __init__(self, merge: nn.Module, position: SinCosPosition | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.merge = merge
        self.position = position
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False
        """Whether a training step recomputes the stage, merging and embedding included, in its backward pass."""

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        units: Tensor | None,
        view_sizes: Sequence[int],
        window_sizes: Sequence[int] | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Transform tokens x [B, N, C] to [B, N, C], or to [B, N/4, 2C] where the stage merges.

        `units` and `view_sizes` are those of `DyViT.encode`. With `window_sizes`, which cut the same units into
        windows, most blocks attend in those instead of the views. `embed` makes the tokens of x, if it holds patches.
        """

        def run(x: Tensor, first: int, last: int) -> Tensor:
            if first == 0:
                x = self.merge(x if embed is None else embed(x))
                if self.position is not None:
                    x = self.position(x, grid, units)
            unit_tokens = x.shape[1] // sum(view_sizes)
            for i in range(first, last):
                sizes = view_sizes if window_sizes is None or self.stays_global(i) else window_sizes
                x = self.blocks[i](x, [size * unit_tokens for size in sizes])
            return x

        depth = len(self.blocks)
        if not (self.grad_checkpointing and self.training):
            return run(x, 0, depth)
        for first in range(0, max(1, depth), BLOCKS_PER_UNIT):
            x = recomputed(run, x, first, min(first + BLOCKS_PER_UNIT, depth))
        return x

    def stays_global(self, block: int) -> bool:
        """Whether a block attends beyond windows: every fourth and the last, as in ViTDet (arXiv 2203.16527)."""
        return block % 4 == 3 or block == len(self.blocks) - 1


def init_weights(module: nn.Module) -> None:
    """Initialise a module, for `Module.apply`: Xavier-uniform matrices and zero biases, as in MAE, and zero gates."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "normalized_shape"):  # LayerNorm, RMSNorm; of use to a network made on the meta device
        module.reset_parameters()  # type: ignore[operator]
    elif isinstance(module, MultiWindowAttention):
        module.init_gate()  # `apply` goes from the leaves up
