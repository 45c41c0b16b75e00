"""DM-MSA: dynamic multi-window self-attention (DyViT's mixer).

Heads come in groups. The H_g heads of group g attend inside windows of w_g consecutive tokens, or, for a
global group, inside each view; they share one key and value head (multi-query). A gate per token weighs the
groups.

Legend: B images, N tokens, C channels, G groups, H_g heads of a group, D head channels, w window tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HeadGroup:
    """Heads that share one key and value head and attend in windows of `window` tokens (None: the whole view)."""

    window: int | None
    heads: int


class MultiWindowAttention(nn.Module):
    """Grouped multi-query attention over several windows, fused by a gate: [B, N, C] to [B, N, C].

    Output W_o · concat_g(α_g O_g), with α = G · softmax(W x) per token. W starts at zero, so that α starts at
    one and the layer as plain concatenation. After DW-ViT (arXiv 2203.12856) and multi-query attention
    (1911.02150).
    """

    def __init__(self, dim: int, head_dim: int, groups: Sequence[HeadGroup]) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.groups = tuple(groups)
        width = head_dim * sum(group.heads for group in self.groups)
        # A projection a group leaves its queries contiguous, so that folding heads into length costs nothing.
        self.q = nn.ModuleList(nn.Linear(dim, head_dim * group.heads) for group in self.groups)
        self.kv = nn.Linear(dim, 2 * len(self.groups) * head_dim)
        self.gate = nn.Linear(dim, len(self.groups), bias=False) if len(self.groups) > 1 else None
        self.proj = nn.Linear(width, dim)
        self.init_gate()

    def init_gate(self) -> None:
        """Set the gate to zero, so that the layer starts as plain concatenation of the groups."""
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor, view_tokens: Sequence[int]) -> Tensor:
        """Mix tokens inside windows and views.

        Args:
            x: [B, N, C], the tokens of all views side by side.
            view_tokens: tokens of each view, N in all.
        """
        kv = torch.split(self.kv(x), self.head_dim, dim=-1)  # 2G of [B, N, D]
        weights: Sequence[Tensor | None] = (None,)
        if self.gate is not None:
            weights = torch.split(
                len(self.groups) * self.gate(x).softmax(dim=-1).to(x.dtype), 1, dim=-1
            )  # G of [B, N, 1]
        mixed = []
        for g, (group, project) in enumerate(zip(self.groups, self.q, strict=True)):
            parts = (x.shape[1],) if group.window else tuple(view_tokens)
            out = attend_within(project(x), kv[2 * g], kv[2 * g + 1], group.window, parts, weights[g])
            mixed.append(out)  # [B, N, H_g·D]
        projected: Tensor = self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=-1))
        return projected


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, parts: Sequence[int], weights: Tensor | None = None
) -> Tensor:
    """Multi-query attention inside windows, or inside each part where `window` is None.

    Args:
        q: [B, N, H·D], contiguous. k, v: [B, N, D], one head for all queries.
        window: tokens of a window; None for the whole part.
        parts: lengths of the parts that lie side by side in N.
        weights: [B, N, 1], by which the result is multiplied.

    Returns:
        [B, N, H·D].
    """
    runs = [(size, len(list(same))) for size, same in groupby(parts)]  # equal neighbours go in one call
    if len(runs) == 1:
        return _attend_windows(q, k, v, weights, window or runs[0][0])
    lengths = [size * count for size, count in runs]
    q_parts, k_parts, v_parts = (torch.split(t, lengths, 1) for t in (q, k, v))
    weight_parts: Sequence[Tensor | None] = [None] * len(runs) if weights is None else torch.split(weights, lengths, 1)
    sizes = [window or size for size, _ in runs]
    pieces = zip(q_parts, k_parts, v_parts, weight_parts, sizes, strict=True)
    return torch.cat([_attend_windows(*piece) for piece in pieces], dim=1)


def _attend_windows(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None, window: int) -> Tensor:
    b, n, d = k.shape
    out = attend(
        q.reshape(b, n // window, -1, d),  # [B, N/w, w·H, D]: heads folded into length
        k.reshape(b, n // window, window, d),
        v.reshape(b, n // window, window, d),
    )
    out = out.reshape(b, n, -1)
    # Here and not on all pieces at once, of which the backward pass would keep a copy.
    return out if weights is None else out * weights


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v over the last two dimensions: q [..., L, D], k and v [..., S, D] to [..., L, D].

    The fused kernel, except in half precision on a CPU, where it is many times slower over small windows than
    two matrix products.
    """
    if q.device.type == "cpu" and q.dtype != torch.float32:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
        return out
    return F.scaled_dot_product_attention(q, k, v)
