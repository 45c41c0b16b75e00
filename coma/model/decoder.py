"""The cross-attention decoder: each hidden patch is predicted from the visible tokens of one view.

It sees features at a common stride, that of stage 3 (16 px for patches of 4), and predicts patches of that
size.

Legend: B images, K views, V_k visible and W_k hidden units of view k, V and W their sums over the views, T tokens of
a unit at the predicted stride, M = V·T memory tokens, Q = W·T queries, D decoder channels, C encoder channels.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.attention import attend
from coma.model.blocks import Mlp, init_weights, recomputed
from coma.model.encoders import Encoder, predicted_patches
from coma.model.layout import Grid, SinCosPosition

HEAD_DIM = 32
"""Channels of an attention head."""


class Memory(nn.Module):
    """Fusion of the last `stages` stages' features to one memory [B, M, D]: LN(Σ_s Linear_s(resample(LN(f_s)))).

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
        self.grad_checkpointing = False

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse the features of all stages, [B, V·T_s, C_s], to [B, M, D]."""
        features = features[-self.stages :]
        if self.grad_checkpointing and self.training:
            return recomputed(self._fuse, *features)
        return self._fuse(*features)

    def _fuse(self, *features: Tensor) -> Tensor:
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
    """Queries of the decoder: the mask token plus its position, for each hidden patch."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = SinCosPosition(dim, side)

    def forward(self, units: Tensor, grid: Grid) -> Tensor:
        """Make the queries of `units` [B, W], [B, W·T, D] in the dtype of the mask token."""
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
        """Let queries x [B, Q, D] attend to the memory [B, M, D] of their own view.

        `lengths` holds the numbers of queries and of memory tokens of each view.
        """
        k, v = torch.split(self.kv(memory), x.shape[-1], dim=-1)
        x = x + self.proj(self._attend_views(self.q(self.norm1(x)), k, v, lengths))
        x = x + self.mlp(self.norm2(x))
        return x

    def _attend_views(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[tuple[int, int]]) -> Tensor:
        runs = [(pair, len(list(same))) for pair, same in groupby(lengths)]  # equal neighbours go in one call
        if len(runs) == 1:
            return self._attend_run(q, k, v, runs[0][1])
        q_parts = torch.split(q, [length * count for (length, _), count in runs], 1)
        k_parts, v_parts = (torch.split(t, [length * count for (_, length), count in runs], 1) for t in (k, v))
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
        self.grad_checkpointing = False

    def forward(
        self, features: Sequence[Tensor], grid: Grid, visible: Sequence[Tensor], hidden: Sequence[Tensor]
    ) -> Tensor:
        """Predict the hidden patches of each view from what it sees.

        Args:
            features: stage features [B, V·T_s, C_s] of the visible units, view after view.
            grid: mask units down and across the image.
            visible: K of [B, V_k] int64, raster indices of the units that each view sees.
            hidden: K of [B, W_k] int64, of those that it predicts.

        Returns:
            [B, Q, patch_values], Q = W·T, view after view.
        """
        memory = self.memory(features)  # [B, M, D]
        # Keys that say where they lie let a query find its neighbours from the first step on (docs/experiments.md).
        memory = self.position(memory, grid, torch.cat(list(visible), dim=1))
        x = self.queries(torch.cat(list(hidden), dim=1), grid)  # [B, Q, D]
        lengths = [
            (self.tokens * hidden_k.shape[1], self.tokens * visible_k.shape[1])
            for visible_k, hidden_k in zip(visible, hidden, strict=True)
        ]
        for block in self.blocks:
            again = self.grad_checkpointing and self.training
            x = recomputed(block, x, memory, lengths) if again else block(x, memory, lengths)
        pixels: Tensor = self.head(self.norm(x))
        return pixels


def cross_attention_decoder(
    encoder: Encoder, dim: int | None = None, depth: int | None = None, memory_stages: int | None = None
) -> Decoder:
    """Make the decoder that fits an encoder.

    Args:
        encoder: whose features it is to take.
        dim: channels, a multiple of 32; None: a quarter of the encoder's last stage, or a third of 768 and more.
        depth: blocks; None: one, as two were no better in small experiments (docs/experiments.md), and cost more.
        memory_stages: how many of the encoder's last stages it sees; None: all.

    Raises:
        UsageError: sizes that cannot be.
    """
    encoder_dim, stages = encoder.stage_dims[-1], len(encoder.stage_dims)
    if dim is None:
        dim = max(1, round(encoder_dim / (4 if encoder_dim < 768 else 3) / HEAD_DIM)) * HEAD_DIM
    depth = 1 if depth is None else depth
    check_decoder_size(dim, depth)
    memory_stages = stages if memory_stages is None else memory_stages
    if not 1 <= memory_stages <= stages:
        raise UsageError(f"memory of {memory_stages} stages: this backbone has {stages}, take 1 or more of them")
    tokens, patch_values = predicted_patches(encoder)
    decoder = Decoder(encoder.stage_dims, encoder.stage_tokens, tokens, patch_values, dim, depth, memory_stages)
    decoder.apply(init_weights)
    return decoder


def check_decoder_size(dim: int, depth: int) -> None:
    """Raise UsageError if a decoder cannot have so many channels or blocks."""
    if dim % HEAD_DIM or dim < HEAD_DIM or depth < 1:
        raise UsageError(
            f"decoder of {depth} block(s) of {dim} channels: take one block or more,"
            f" and a multiple of {HEAD_DIM} channels"
        )
