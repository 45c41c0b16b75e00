"""RankMe: the effective rank of features, a label-free sign of collapse (arXiv 2210.02885, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ROWS = 25_600  # as the paper does; the estimate is stable well before


def rankme(x: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of x [N, C]: from 1 to min(N, C)."""
    rows = x[:: max(1, -(-len(x) // _MAX_ROWS))].double()
    values = torch.linalg.svdvals(rows)
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    share = share[share > 0]
    return float((-(share * share.log()).sum()).exp())
