"""The decoder: hidden patches ask the visible tokens of one view by cross-attention, and are painted.

It sees features at a common stride, that of stage 3 (16 px for patches of 4), and predicts patches of that
size.

Legend: B images, V encoded units, T tokens of a unit at the predicted stride, M = V·T memory tokens, Q
queries, D decoder channels, C encoder channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from coma.model.attention import attend
from coma.model.blocks import Mlp
from coma.model.layout import Grid, SinCosPosition

HEAD_DIM = 32

Range = tuple[int, int]
"""Units [start, stop) in the order in which they were laid."""


@dataclass(frozen=True)
class Painting:
    """One view's part: it sees `visible` and predicts the units in the ranges of `hidden`."""

    visible: Range
    hidden: tuple[Range, ...]


def take(x: Tensor, ranges: Sequence[Range], tokens: int = 1) -> Tensor:
    """Concatenate ranges of units along dimension 1, `tokens` rows of it a unit."""
    return torch.cat([x[:, start * tokens : stop * tokens] for start, stop in ranges], dim=1)


def units_in(ranges: Sequence[Range]) -> int:
    """How many units the ranges hold."""
    return sum(stop - start for start, stop in ranges)


class Memory(nn.Module):
    """LN(Σ_s Linear_s(resample(LN(f_s)))): the features of the last `stages` stages as one memory [B, M, D].

    Finer stages are resampled by laying the tokens of a coarse one side by side (consecutive in Morton
    order), coarser ones by repeating. The last stage comes normed from the backbone.
    """

    def __init__(
        self, stage_dims: Sequence[int], stage_tokens: Sequence[int], tokens: int, dim: int, stages: int
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.stages = stages
        stage_dims, self.stage_tokens = tuple(stage_dims[-stages:]), tuple(stage_tokens[-stages:])
        last = stages - 1
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels) if s < last else nn.Identity() for s, channels in enumerate(stage_dims)
        )
        self.linears = nn.ModuleList(
            nn.Linear(channels * max(1, stage // tokens), dim, bias=s == last)  # one bias for the sum
            for s, (channels, stage) in enumerate(zip(stage_dims, self.stage_tokens, strict=True))
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of all stages, [B, V·T_s, C_s], to [B, V·T, D]."""
        features = features[-self.stages :]
        b = features[0].shape[0]
        units = features[0].shape[1] // self.stage_tokens[0]
        total = None
        for x, stage, norm, linear in zip(features, self.stage_tokens, self.norms, self.linears, strict=True):
            rows = min(stage, self.tokens)
            part = linear(norm(x).reshape(b, units, rows, -1))  # [B, V, rows, D]
            if rows < self.tokens:
                part = part.repeat_interleave(self.tokens // rows, dim=2)
            total = part if total is None else total + part
        memory: Tensor = self.norm(total)
        return memory.flatten(1, 2)


class Queries(nn.Module):
    """A mask token at each hidden patch: units [B, W] to [B, W·T, D]."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = SinCosPosition(dim, side)

    def forward(self, units: Tensor, grid: Grid) -> Tensor:
        """Positions of the patches of `units` [B, W] plus the mask token, in its dtype."""
        queries: Tensor = self.position(self.mask_token, grid, units)
        return queries


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP; queries do not see each other, nor views other views' memory."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, memory: Tensor, lengths: Sequence[tuple[int, int]]) -> Tensor:
        """x [B, Q, D], memory [B, M, D]; `lengths`: each view's number of queries and of memory tokens."""
        k, v = torch.split(self.kv(memory), x.shape[-1], dim=-1)
        x = x + self.proj(self._attend_views(self.q(self.norm1(x)), k, v, lengths))
        x = x + self.mlp(self.norm2(x))
        return x

    def _attend_views(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[tuple[int, int]]) -> Tensor:
        runs = [(pair, len(list(same))) for pair, same in groupby(lengths)]  # equal neighbours go in one call
        if len(runs) == 1:
            return self._attend_run(q, k, v, runs[0][1])
        q_parts = torch.split(q, [length * count for (length, _), count in runs], 1)
        k_parts, v_parts = (
            torch.split(t, [length * count for (_, length), count in runs], 1) for t in (k, v)
        )
        counts = [count for _, count in runs]
        return torch.cat(
            [self._attend_run(*part) for part in zip(q_parts, k_parts, v_parts, counts, strict=True)], dim=1
        )

    def _attend_run(self, q: Tensor, k: Tensor, v: Tensor, views: int) -> Tensor:
        b, length, d = q.shape

        def split(x: Tensor) -> Tensor:  # [B, n, D] to [B·views, heads, n / views, HEAD_DIM]
            return x.reshape(b * views, -1, self.heads, HEAD_DIM).transpose(1, 2)

        return attend(split(q), split(k), split(v)).transpose(1, 2).reshape(b, length, d)


class Decoder(nn.Module):
    """Cross-attention decoder from stage features to the pixels of hidden patches.

    Args:
        stage_dims, stage_tokens: channels and tokens of a unit in each of the encoder's stages.
        tokens: patches of a unit to predict.
        patch_values: values of such a patch.
        dim: decoder channels, a multiple of 32.
        depth: blocks.
        memory_stages: how many of the encoder's last stages the memory takes from.
    """

    def __init__(
        self,
        stage_dims: Sequence[int],
        stage_tokens: Sequence[int],
        tokens: int,
        patch_values: int,
        dim: int,
        depth: int,
        memory_stages: int,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.memory = Memory(stage_dims, stage_tokens, tokens, dim, memory_stages)
        self.position = SinCosPosition(dim, round(tokens**0.5))
        self.queries = Queries(dim, round(tokens**0.5))
        self.blocks = nn.ModuleList(CrossBlock(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, patch_values)

    def forward(
        self, features: Sequence[Tensor], grid: Grid, units: Tensor, paintings: Sequence[Painting]
    ) -> Tensor:
        """Predict every painting's hidden patches, one after the other.

        Args:
            features: stage features [B, V·T_s, C_s] of the units that the paintings see, in their order.
            grid: mask units down and across the image.
            units: [B, U] int64, the units in laid order, to which the paintings' ranges refer.
            paintings: what each view sees and predicts.

        Returns:
            [B, Q, patch_values], Q = T x the sum of the paintings' hidden units.
        """
        memory = self.memory(features)  # [B, V·T, D]
        # Keys that say where they lie let a query find its neighbours from the first step on (docs/experiments.md).
        memory = self.position(memory, grid, units[:, : memory.shape[1] // self.tokens])
        x = self.queries(torch.cat([take(units, painting.hidden) for painting in paintings], dim=1), grid)
        lengths = [
            (self.tokens * units_in(painting.hidden), self.tokens * units_in([painting.visible]))
            for painting in paintings
        ]
        for block in self.blocks:
            x = block(x, memory, lengths)
        pixels: Tensor = self.head(self.norm(x))
        return pixels
