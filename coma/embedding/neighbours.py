"""Nearest neighbours among vectors by cosine similarity, exactly; near-duplicates and outliers among them.

Legend: N images, C channels, K neighbours, Q rows compared at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

_ROWS, _COLUMNS = 1024, 2**15
"""Rows and columns of the similarities that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The K nearest other images of each image, nearest first."""

    rows: Tensor  # [N, K] int64
    similarity: Tensor  # [N, K] float32, cosine

    @property
    def closeness(self) -> Tensor:
        """Mean similarity of each image to its neighbours [N]: the lower, the more an outlier."""
        return self.similarity.mean(dim=1)

    def outliers(self, most: int) -> list[int]:
        """Return the rows of least closeness, the farthest first."""
        order = torch.sort(self.closeness, stable=True).indices
        return [int(row) for row in order[:most]]

    def duplicates(self, above: float) -> list[tuple[int, int, float]]:
        """Return pairs of neighbours (a < b) of similarity `above` or more, the closest first."""
        at = (self.similarity >= above).nonzero()  # [n, 2]
        a, b = at[:, 0], self.rows[at[:, 0], at[:, 1]]
        pairs = {
            (min(pair), max(pair)): float(similarity)
            for pair, similarity in zip(
                zip(a.tolist(), b.tolist(), strict=True), self.similarity[at[:, 0], at[:, 1]].tolist(), strict=True
            )
        }
        return sorted(((*pair, similarity) for pair, similarity in pairs.items()), key=lambda each: (-each[2], each))


@torch.inference_mode()
def find_neighbours(
    vectors: Tensor, most: int, *, device: str = "cpu", progress: Callable[[int, int], None] = lambda *_: None
) -> Neighbours:
    """Find the `most` nearest other rows of each row of vectors [N, C], or all others if they are fewer."""
    bank = normalize(vectors.float(), dim=1).to(device)
    count = len(bank)
    most = min(most, count - 1)
    rows, similarity = [], []
    for start in range(0, count, _ROWS):
        queries = bank[start : start + _ROWS]  # [Q, C]
        best = torch.full((len(queries), most), -torch.inf, device=device)
        which = torch.zeros(len(queries), most, dtype=torch.int64, device=device)
        for left in range(0, count, _COLUMNS):
            close = queries @ bank[left : left + _COLUMNS].T
            own = torch.arange(start, start + len(queries), device=device) - left
            inside = (own >= 0) & (own < close.shape[1])
            close[inside.nonzero()[:, 0], own[inside]] = -torch.inf  # itself
            near, at = close.topk(min(most, close.shape[1]), dim=1)
            both, places = torch.cat([best, near], dim=1), torch.cat([which, at + left], dim=1)
            best, order = both.topk(most, dim=1)
            which = places.gather(1, order)
        rows.append(which.cpu())
        similarity.append(best.cpu())
        progress(min(start + _ROWS, count), count)
    return Neighbours(torch.cat(rows), torch.cat(similarity))
